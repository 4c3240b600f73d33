#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "policy/write_budget.h"

namespace kvmem::policy {
namespace {

constexpr std::uint64_t kBlock = 10;  // bytes
constexpr double kHorizon = 1000;

// Offers of one tenant, one a unit of time, each written if it is worth it.
struct Offers {
  explicit Offers(double rate) {
    budget.set_rate(rate, kHorizon);
    budget.set_active(0, true);
  }
  bool offer(double chance) {
    budget.pass_time(++now);
    const bool is_written = budget.admits(0, chance, kBlock) && budget.spend(0, kBlock);
    written += is_written;
    budget.validate();
    return is_written;
  }
  WriteBudget budget;
  std::uint64_t now = 0;
  std::uint64_t written = 0;
};

TEST(WriteBudget, WithoutALimitAllIsWritten) {
  WriteBudget budget;
  for (int n = 0; n < 1000; ++n) {
    EXPECT_TRUE(budget.admits(3, 0, 1 << 30));
    EXPECT_TRUE(budget.spend(3, 1 << 30));
  }
}

TEST(WriteBudget, NeverMoreThanTheRateAndTheBurst) {
  for (unsigned seed = 1; seed <= 40; ++seed) {
    std::mt19937 random(seed);
    const double rate = 1 + random() % 30;
    WriteBudget budget;
    budget.set_rate(rate, kHorizon);
    std::vector<std::pair<std::uint64_t, std::uint64_t>> spent;  // time, bytes
    std::uint64_t now = 0;
    for (int n = 0; n < 3000; ++n) {
      if (random() % 3 == 0) budget.pass_time(now += random() % (n % 700 < 20 ? 3000 : 5));
      const WriteBudget::Tenant tenant = random() % 3;
      if (random() % 40 == 0) budget.set_active(tenant, random() % 2 == 0);
      const std::uint64_t bytes = 1 + random() % 400;
      // What is admitted is no matter: whoever writes asks.
      if (random() % 2 == 0) (void)budget.admits(tenant, (random() % 100) / 100.0, bytes);
      if (budget.spend(tenant, bytes)) spent.emplace_back(now, bytes);
      budget.validate();
    }
    ASSERT_GT(spent.size(), 20U);
    for (std::size_t from = 0; from < spent.size(); from += 7) {
      std::uint64_t bytes = 0;
      for (std::size_t to = from; to < spent.size(); ++to) {
        bytes += spent[to].second;
        const auto time = static_cast<double>(spent[to].first - spent[from].first);
        ASSERT_LE(static_cast<double>(bytes), rate * (time + kHorizon) + 1) << seed;
      }
    }
  }
}

TEST(WriteBudget, IsSpentOnTheBest) {
  Offers offers(2);  // one block in five
  std::mt19937 random(1);
  std::uniform_real_distribution<double> chance(0, 1);
  std::uint64_t best = 0;
  std::uint64_t written_before = 0;
  for (int n = 0; n < 40'000; ++n) {
    const double c = chance(random);
    if (n == 10'000) written_before = offers.written;
    const bool is_written = offers.offer(c);
    if (n >= 10'000) best += is_written && c >= 0.8;
  }
  const std::uint64_t written = offers.written - written_before;
  EXPECT_NEAR(static_cast<double>(written), 6000, 200) << "no less than there is";
  EXPECT_GT(best, written * 9 / 10) << "the upper fifth";
  EXPECT_NEAR(offers.budget.price(0), 0.8, 0.06);
}

// Where all are alike there is no best: some of each are written, and the budget is used.
TEST(WriteBudget, EqualsAreWrittenInPart) {
  Offers offers(2.5);
  std::uint64_t longest = 0;
  std::uint64_t since = 0;
  for (int n = 0; n < 20'000; ++n) {
    since = offers.offer(0.4) ? 0 : since + 1;
    if (n > 5000) longest = std::max(longest, since);
  }
  EXPECT_NEAR(static_cast<double>(offers.written), 20'000 / 4 + 250, 150);
  EXPECT_LE(longest, 5U) << "evenly";
}

TEST(WriteBudget, PriceFollowsWhatIsOffered) {
  Offers offers(5);  // half
  std::mt19937 random(2);
  std::uniform_real_distribution<double> chance(0, 0.2);
  for (int n = 0; n < 8000; ++n) offers.offer(chance(random));
  EXPECT_NEAR(offers.budget.price(0), 0.1, 0.03);
  std::uint64_t good = 0;
  std::uint64_t bad = 0;
  for (int n = 0; n < 8000; ++n) {
    const bool is_good = n % 5 < 2;
    const bool is_written = offers.offer(is_good ? 0.9 : chance(random));
    if (n >= 2000) (is_good ? good : bad) += is_written;
  }
  EXPECT_EQ(good, 2400U) << "all of them";
  EXPECT_NEAR(static_cast<double>(bad), 600, 60) << "what is left";
  // Few offers: any will do.
  for (int n = 0; n < 4000; ++n) {
    offers.now += 50;
    const bool is_written = offers.offer(0.001);
    EXPECT_TRUE(is_written || n < 40) << n;
  }
}

TEST(WriteBudget, WhatCannotBeToldIsFirstComeFirstServed) {
  Offers offers(5);
  std::uint64_t n = 0;
  while (offers.offer(WriteBudget::kUnknown)) ++n;
  EXPECT_GT(n, 900U) << "what was saved, and what came in meanwhile";
  EXPECT_LT(n, 1100U);
  EXPECT_LT(offers.budget.saved_bytes(), kBlock);
}

TEST(WriteBudget, WhatIsPlannedIsNotPlannedTwice) {
  Offers offers(1);  // 1000 bytes saved
  EXPECT_TRUE(offers.budget.admits(0, WriteBudget::kUnknown, 600));
  EXPECT_FALSE(offers.budget.admits(0, WriteBudget::kUnknown, 600, 600));
  EXPECT_FALSE(offers.budget.admits(0, 0.99, 600, 600));
}

TEST(WriteBudget, TenantsHaveEqualPartsAndTheRestOfOthers) {
  WriteBudget budget;
  budget.set_rate(10, kHorizon);
  budget.set_saved(0);
  budget.set_active(1, true);
  budget.set_active(2, true);
  std::uint64_t written[3] = {};
  const auto take = [&](WriteBudget::Tenant tenant) {
    while (budget.spend(tenant, kBlock)) ++written[tenant];
  };
  std::uint64_t now = 0;
  for (; now < 10'000; budget.pass_time(++now)) {
    take(1);
    take(2);
  }
  EXPECT_NEAR(static_cast<double>(written[1]), 5000, 10) << "though it is always the first";
  EXPECT_NEAR(static_cast<double>(written[2]), 5000, 10);
  // The second writes nothing: it saves its part, and then all is the first one's.
  for (; now < 20'000; budget.pass_time(++now)) take(1);
  EXPECT_NEAR(static_cast<double>(written[1]), 5000 + 10'000 - 500, 20);
  budget.set_active(2, false);
  take(1);
  EXPECT_NEAR(static_cast<double>(written[1]), 5000 + 10'000, 20) << "what it had saved";
  EXPECT_FALSE(budget.admits(2, 0.9, kBlock)) << "not active";
}

TEST(WriteBudget, ALimitCanBeChangedAndTakenAway) {
  Offers offers(5);
  EXPECT_EQ(offers.budget.saved_bytes(), 5000) << "it begins full";
  offers.budget.set_rate(2, kHorizon);
  EXPECT_EQ(offers.budget.saved_bytes(), 2000);
  offers.budget.set_saved(300);
  offers.budget.set_rate(50, kHorizon);
  EXPECT_EQ(offers.budget.saved_bytes(), 300) << "no present";
  offers.budget.pass_time(2);
  EXPECT_EQ(offers.budget.saved_bytes(), 400);
  offers.budget.set_rate(0, kHorizon);
  EXPECT_TRUE(offers.budget.spend(0, 1 << 30));
  offers.budget.set_rate(1, kHorizon);
  offers.budget.validate();
}

}  // namespace
}  // namespace kvmem::policy
