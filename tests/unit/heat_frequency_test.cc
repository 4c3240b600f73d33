#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>

#include "heat/frequency.h"

namespace kvmem::heat {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr std::uint64_t kLong = 1'000'000 * kSecond;  // a half-life in which nothing fades

// Samples of a page that is accessed at random moments: each open until it is touched, at most for
// `probation_s`. Returns the time they took.
double sample(Frequency& frequency, PageId id, double per_second, int samples, double probation_s,
              std::mt19937_64& random) {
  std::exponential_distribution<double> until(per_second);
  double took_s = 0;
  for (int i = 0; i < samples; ++i) {
    const double s = until(random);
    took_s += std::min(s, probation_s);
    if (s < probation_s) {
      frequency.touched_after(id, static_cast<std::uint64_t>(s * 1e9));
    } else {
      frequency.untouched_for(id, static_cast<std::uint64_t>(probation_s * 1e9));
    }
  }
  return took_s;
}

TEST(Frequency, RatesOverFiveOrdersOfMagnitudeAreFound) {
  std::mt19937_64 random(1);
  Frequency frequency(kLong);
  frequency.resize(6);
  double rate = 0.1;
  for (PageId id = 0; id < 6; ++id, rate *= 10) sample(frequency, id, rate, 1000, 1e9, random);
  rate = 0.1;
  // Some of the 1,000 came soon by chance, and what was seen before them faded.
  for (PageId id = 0; id < 6; ++id, rate *= 10) {
    EXPECT_NEAR(frequency.per_second(id), rate, 3 * frequency.deviation(id)) << id;
    EXPECT_LT(frequency.deviation(id), 0.2 * rate) << id;
  }
}

TEST(Frequency, SamplesGivenUpCountForTheTimeTheyWereOpen) {
  std::mt19937_64 random(2);
  Frequency frequency(kLong);
  frequency.resize(1);
  // Five of six are given up: 1 - e^-0.2 is 0.18.
  sample(frequency, 0, 2, 6000, 0.1, random);
  // Of those seen alone it would be 20. That they all came soon is taken for a change now and then.
  EXPECT_GT(frequency.per_second(0), 1.8);
  EXPECT_LT(frequency.per_second(0), 3);
  EXPECT_LT(frequency.seen(0), 1300);
}

TEST(Frequency, LongWithoutAnAccessIsColdAndNeverObservedIsUsual) {
  std::mt19937_64 random(3);
  Frequency frequency(kLong);
  frequency.resize(3);
  sample(frequency, 0, 10, 100, 1e9, random);
  frequency.untouched_for(1, 100 * kSecond);
  EXPECT_LT(frequency.per_second(1), 0.01);
  EXPECT_GT(frequency.per_second(2), frequency.per_second(1) * 10);
  EXPECT_LT(frequency.per_second(2), frequency.per_second(0));
  EXPECT_DOUBLE_EQ(frequency.per_second(2), frequency.usual_per_second());
  EXPECT_EQ(frequency.seen(1), 0);
  EXPECT_EQ(frequency.exposure_s(2), 0);
}

TEST(Frequency, AccessedBitsGiveTheRateWhileSomeAreClear) {
  std::mt19937_64 random(4);
  Frequency frequency(kLong);
  frequency.resize(2);
  for (const auto& [id, rate] : {std::pair<PageId, double>{0, 3}, {1, 0.2}}) {
    std::bernoulli_distribution accessed(1 - std::exp(-rate * 0.5));
    for (int i = 0; i < 4000; ++i) frequency.scanned(id, kSecond / 2, accessed(random));
    EXPECT_NEAR(frequency.per_second(id), rate, 0.1 * rate) << id;
  }
}

TEST(Frequency, BitThatIsAlwaysSetIsHotterThanOneThatIsNot) {
  Frequency frequency(kLong);
  frequency.resize(2);
  for (int i = 0; i < 1000; ++i) {
    frequency.scanned(0, kSecond, true);
    frequency.scanned(1, kSecond, i % 8 != 0);
  }
  EXPECT_GT(frequency.per_second(0), frequency.per_second(1));
  EXPECT_NEAR(frequency.per_second(1), std::log(8.0), 0.3);  // 1 - e^-x is 7/8
  EXPECT_TRUE(std::isfinite(frequency.per_second(0)));
}

TEST(Frequency, WhatChangedIsKnownAfterAFewHalfLives) {
  std::mt19937_64 random(5);
  Frequency frequency(kSecond);
  frequency.resize(2);
  double now_s = 1;
  const auto go_on = [&](double rate, double seconds) {
    for (const double end = now_s + seconds; now_s < end;) {
      now_s += sample(frequency, 0, rate, 1, 0.05, random);
      frequency.advance(static_cast<std::uint64_t>(now_s * 1e9));
    }
  };
  go_on(200, 5);
  EXPECT_NEAR(frequency.per_second(0), 200, 70);
  go_on(2, 5);
  EXPECT_LT(frequency.per_second(0), 20);
  go_on(200, 5);
  EXPECT_NEAR(frequency.per_second(0), 200, 70);
}

TEST(Frequency, PageThatBecomesHotDoesNotCarryItsColdTimeAlong) {
  std::mt19937_64 random(6);
  Frequency frequency(kLong);  // so that only what is surprising fades
  frequency.resize(1);
  sample(frequency, 0, 1, 100, 1e9, random);
  ASSERT_NEAR(frequency.per_second(0), 1, 0.3);
  sample(frequency, 0, 200, 16, 1e9, random);
  EXPECT_GT(frequency.per_second(0), 60);  // 116 accesses in 100 s, otherwise
}

TEST(Frequency, WaitThatWasToldInPartsIsOneWait) {
  Frequency frequency(kLong);
  frequency.resize(2);
  for (PageId id = 0; id < 2; ++id) {
    for (int i = 0; i < 20; ++i) frequency.touched_after(id, 10 * kSecond);
  }
  for (int i = 0; i < 9; ++i) frequency.untouched_for(0, kSecond);
  frequency.touched_after(0, 9 * kSecond + kSecond / 1000, 9 * kSecond);
  frequency.touched_after(1, 9 * kSecond + kSecond / 1000);
  EXPECT_NEAR(frequency.per_second(0), frequency.per_second(1), 0.01 * frequency.per_second(1));
  EXPECT_NEAR(frequency.exposure_s(0), 209, 2);
}

TEST(Frequency, WhatIsNotObservedAnyMoreBecomesUsual) {
  Frequency frequency(kSecond);
  frequency.resize(2);
  frequency.advance(1);
  for (int i = 0; i < 50; ++i) frequency.touched_after(0, kSecond / 1000);
  EXPECT_NEAR(frequency.seen(0), 50, 1);
  frequency.advance(1 + kSecond);
  EXPECT_NEAR(frequency.seen(0), 25, 1);  // to the half-life, and the rate is what it was
  EXPECT_NEAR(frequency.seen(0) / frequency.exposure_s(0), 1000, 20);
  frequency.advance(1 + 100 * kSecond);
  EXPECT_EQ(frequency.seen(0), 0);
  EXPECT_EQ(frequency.exposure_s(0), 0);
  EXPECT_DOUBLE_EQ(frequency.per_second(0), frequency.per_second(1));
}

TEST(Frequency, ObservationsTooSmallForAStepAreNotLost) {
  Frequency frequency(kLong);
  frequency.resize(1);
  // The last ones add 1/100,000 each, a step is 1/1,500.
  for (int i = 0; i < 100'000; ++i) frequency.touched_after(0, 10'000);
  // Each is rounded by 1/3,000 or so: 0.1 of all together, of a hundred thousand.
  EXPECT_NEAR(frequency.seen(0), 1e5, 2e4);
  EXPECT_NEAR(frequency.exposure_s(0), 1, 0.2);
}

TEST(Frequency, ForgottenPagesLeaveTheOthersAsTheyWere) {
  Frequency frequency(kLong);
  frequency.resize(4);
  for (PageId id = 0; id < 4; ++id) {
    for (int i = 0; i < 10; ++i) frequency.touched_after(id, kSecond / (id + 1));
  }
  const double kept = frequency.seen(3) / frequency.exposure_s(3);
  frequency.forget(1, 2);
  EXPECT_EQ(frequency.exposure_s(1), 0);
  EXPECT_EQ(frequency.seen(2), 0);
  EXPECT_DOUBLE_EQ(frequency.seen(3) / frequency.exposure_s(3), kept);
  // 20 accesses in 12.5 s are left, beside one that was made up for a second.
  EXPECT_NEAR(frequency.usual_per_second(), 20.1 / 13.5, 0.05);
  EXPECT_EQ(frequency.metadata_bytes(), 4 * 4U);
}

}  // namespace
}  // namespace kvmem::heat
