// The ledger: no claims beyond the budget, whoever asks for what; and everybody comes to his share.

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "policy/ledger.h"

namespace kvmem::policy {
namespace {

TEST(Ledger, GrantsWhatNobodyHolds) {
  Ledger ledger(100);
  EXPECT_EQ(ledger.claim(1, 60).granted_bytes, 60U);
  EXPECT_EQ(ledger.claim(1, 80).granted_bytes, 80U);
  EXPECT_EQ(ledger.claim(1, 30).granted_bytes, 30U);
  EXPECT_EQ(ledger.claim(2, 200).granted_bytes, 70U);
  EXPECT_EQ(ledger.claimed_bytes(), 100U);
}

TEST(Ledger, AsksThoseAboveTheirShareForWhatALesserOneLacks) {
  Ledger ledger(100);
  EXPECT_EQ(ledger.claim(1, 90).granted_bytes, 90U);
  Ledger::Answer answer = ledger.claim(2, 30);
  EXPECT_EQ(answer.granted_bytes, 10U);
  ASSERT_EQ(answer.asked.size(), 1U);
  EXPECT_EQ(answer.asked[0].holder, 1U);
  EXPECT_EQ(answer.asked[0].keeps_bytes, 70U);  // no more than is lacking
  EXPECT_EQ(answer.asked[0].keeps_idle_bytes, 70U);
  EXPECT_TRUE(answer.entitled);
  EXPECT_EQ(ledger.claim(1, 70).granted_bytes, 70U);
  answer = ledger.claim(2, 30);
  EXPECT_EQ(answer.granted_bytes, 30U);
  EXPECT_TRUE(answer.asked.empty());
}

TEST(Ledger, WhoHasHisShareGetsMoreFromThoseWhoDoNothing) {
  Ledger ledger(100);
  (void)ledger.claim(1, 50);
  (void)ledger.claim(2, 50);
  const Ledger::Answer answer = ledger.claim(1, 80);
  EXPECT_EQ(answer.granted_bytes, 50U);
  EXPECT_FALSE(answer.entitled);
  ASSERT_EQ(answer.asked.size(), 1U);
  EXPECT_EQ(answer.asked[0].keeps_bytes, 50U);
  EXPECT_EQ(answer.asked[0].keeps_idle_bytes, 20U);
}

TEST(Ledger, WhatIsOnlyWantedIsTakenFromNobody) {
  Ledger ledger(100);
  EXPECT_EQ(ledger.claim(1, 60, 90).granted_bytes, 90U);
  const Ledger::Answer answer = ledger.claim(2, 10, 70);
  EXPECT_EQ(answer.granted_bytes, 10U);
  EXPECT_TRUE(answer.asked.empty());
}

TEST(Ledger, WhatIsForgottenIsFree) {
  Ledger ledger(100);
  (void)ledger.claim(1, 100);
  ledger.forget(1);
  EXPECT_EQ(ledger.claim(2, 100).granted_bytes, 100U);
  EXPECT_TRUE(ledger.claim(2, 0).asked.empty());
  EXPECT_EQ(ledger.holders(), 0U);
}

TEST(Ledger, ASmallerBudgetTakesNothingAwayButGrantsNoMore) {
  Ledger ledger(100);
  (void)ledger.claim(1, 60);
  (void)ledger.claim(2, 40);
  ledger.set_budget(50);
  EXPECT_EQ(ledger.claim(1, 60).granted_bytes, 60U);
  EXPECT_EQ(ledger.claim(3, 10).granted_bytes, 0U);
  EXPECT_EQ(ledger.claim(1, 10).granted_bytes, 10U);
  EXPECT_EQ(ledger.claim(3, 10).granted_bytes, 0U);  // 10 and 40 are the budget
}

// Engines that claim, release, die, and give back when they are asked.
TEST(Ledger, NeverMoreThanTheBudgetAndEverybodyComesToHisShare) {
  for (unsigned seed = 1; seed <= 1000; ++seed) {
    std::mt19937 random(seed);
    const std::uint64_t budget = 1 + random() % 1000;
    Ledger ledger(budget);
    for (int n = 0; n < 100; ++n) {
      const Ledger::Holder holder = random() % 5;
      if (random() % 10 == 0) {
        ledger.forget(holder);
      } else {
        const Ledger::Answer answer = ledger.claim(holder, random() % (2 * budget));
        for (const auto& asked : answer.asked) {
          ASSERT_LE(asked.keeps_idle_bytes, asked.keeps_bytes);
          ASSERT_LE(asked.keeps_bytes, ledger.held_by(asked.holder));
          if (random() % 2 == 0) (void)ledger.claim(asked.holder, asked.keeps_idle_bytes);
        }
      }
      ASSERT_LE(ledger.claimed_bytes(), budget);
    }
    for (Ledger::Holder holder = 0; holder < 5; ++holder) (void)ledger.claim(holder, 1);
    const std::uint64_t fair = budget / std::max<std::size_t>(ledger.holders(), 1);
    for (Ledger::Holder holder = 0; holder < 5 && fair > 0; ++holder) {
      const Ledger::Answer answer = ledger.claim(holder, fair);
      for (const auto& asked : answer.asked) (void)ledger.claim(asked.holder, asked.keeps_bytes);
      ASSERT_EQ(ledger.claim(holder, fair).granted_bytes, fair) << seed;
    }
  }
}

}  // namespace
}  // namespace kvmem::policy
