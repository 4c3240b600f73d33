#include <gtest/gtest.h>

#include "policy/sample_budget.h"
#include "policy/victim.h"
#include "policy/window.h"

namespace kvmem::policy {
namespace {

using model::Advice;
using model::Refetch;

TEST(Victim, FarthestGoesFirst) {
  EXPECT_GT(victim_score({.next_use = 200}), victim_score({.next_use = 100}));
}

TEST(Victim, DirtyCostsTwoMoves) {
  EXPECT_GT(victim_score({.next_use = 100, .refetch = Refetch::kRead}),
            victim_score({.next_use = 190, .refetch = Refetch::kWrite}));
  EXPECT_LT(victim_score({.next_use = 100, .refetch = Refetch::kRead}),
            victim_score({.next_use = 210, .refetch = Refetch::kWrite}));
}

TEST(Victim, OfEqualsTheStreamedOneGoes) {
  EXPECT_GT(victim_score({.next_use = 100}), victim_score({.next_use = 100, .presumed = true}));
  EXPECT_LT(victim_score({.next_use = 100}),
            victim_score({.next_use = 90, .crowd = 1, .presumed = true}));
}

TEST(Victim, AdviceOutweighsEstimates) {
  EXPECT_LT(victim_score({.next_use = 1000, .advice = Advice::kHot}),
            victim_score({.next_use = 100}));
  EXPECT_GT(victim_score({.next_use = 10, .advice = Advice::kCold}),
            victim_score({.next_use = 100}));
}

TEST(Window, IsAShareOfWhatIsRead) {
  const auto frames = [](double reads) {
    const WindowFacts facts{.reads_per_round = reads, .recent = 2, .capacity_pages = 10000};
    return window_size(facts).ahead + 2;
  };
  EXPECT_LE(frames(450), 0.05 * 450);
  EXPECT_LE(frames(150), 0.05 * 150);
  EXPECT_EQ(frames(5000), 16U + 2);
  EXPECT_EQ(frames(20), 3U + 2);  // what the disk needs
}

TEST(Window, NeverTakesMoreThanAQuarter) {
  EXPECT_EQ(window_size({.capacity_pages = 8}).ahead, 2U);
  EXPECT_EQ(window_size({.capacity_pages = 0}).ahead, 0U);
}

TEST(Recent, WidensAtTheSecondInARowAndNarrowsAfterQuiet) {
  Recent recent;
  const std::uint32_t before = recent.pages();
  recent.demoted_early();  // one is the page's own matter
  EXPECT_EQ(recent.pages(), before);
  recent.demoted_early();
  EXPECT_EQ(recent.pages(), before + 1);
  for (std::uint32_t i = 0; i < Recent::kQuietMin; ++i) recent.touched();
  EXPECT_EQ(recent.pages(), before);
  recent.demoted_early();
  recent.demoted_early();  // narrowing was wrong: twice the quiet before the next
  for (std::uint32_t i = 0; i < Recent::kQuietMin; ++i) recent.touched();
  EXPECT_EQ(recent.pages(), before + 1);
  for (int i = 0; i < 100; ++i) recent.demoted_early();
  EXPECT_EQ(recent.pages(), Recent::kMax);
  for (int i = 0; i < 10000000; ++i) recent.touched();
  EXPECT_EQ(recent.pages(), Recent::kMin);
}

TEST(Recent, NarrowsByHalfTheWayAtATime) {
  Recent recent;
  for (int i = 0; i < 100; ++i) recent.demoted_early();
  for (std::uint32_t i = 0; i < Recent::kQuietMin; ++i) recent.touched();
  EXPECT_EQ(recent.pages(), (Recent::kMax + Recent::kMin) / 2);
}

TEST(SampleBudget, LivePagesStayWithinTheShare) {
  SampleBudget budget(20);
  std::uint32_t hits = 0;
  for (int i = 0; i < 100000; ++i) {
    budget.touched();
    if (budget.allowance(0) > 0) {
      budget.hit(false);
      ++hits;
    }
  }
  EXPECT_LE(hits, 2002U);
  EXPECT_GE(hits, 1900U);
}

TEST(SampleBudget, DeadPagesAreFoundEverFaster) {
  SampleBudget budget(20);
  int rounds = 0;
  for (std::uint32_t found = 0; found < 1000; ++rounds) {
    const std::uint32_t open = budget.allowance(0);
    for (std::uint32_t i = 0; i < open; ++i) budget.survived();
    found += open;
  }
  EXPECT_LE(rounds, 8);
  EXPECT_TRUE(budget.sure());
}

}  // namespace
}  // namespace kvmem::policy
