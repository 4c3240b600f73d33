// Restore or compute: the choice is the best there is, from costs that are learned.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <memory>
#include <vector>

#include "policy/restore_choice.h"

namespace kvmem::policy {
namespace {

constexpr std::uint64_t kUs = 1'000;
constexpr std::uint64_t kMs = 1'000'000;
constexpr std::uint64_t kSecond = 1'000'000'000;

// A disk that takes `latency` for a page and gives one each `spacing`.
class Disk {
 public:
  Disk(std::uint64_t latency_ns, std::uint64_t spacing_ns)
      : latency_ns_(latency_ns), spacing_ns_(spacing_ns) {}
  void set(std::uint64_t latency_ns, std::uint64_t spacing_ns) {
    latency_ns_ = latency_ns;
    spacing_ns_ = spacing_ns;
  }
  // Up to 32 at once.
  void read(ReadCost& cost, std::uint64_t pages) {
    std::deque<std::pair<std::uint64_t, std::uint64_t>> under_way;  // begun, ends
    std::uint64_t last = now;
    while (pages > 0 || !under_way.empty()) {
      while (pages > 0 && under_way.size() < 32) {
        last = std::max(now + latency_ns_, last + spacing_ns_);
        cost.begins(now);
        under_way.emplace_back(now, last);
        --pages;
      }
      const auto [begun, ends] = under_way.front();
      under_way.pop_front();
      now = ends;
      cost.ends(begun, ends);
    }
  }
  std::uint64_t now = kSecond;

 private:
  std::uint64_t latency_ns_, spacing_ns_;
};

TEST(RestoreChoice, LearnsWhatADiskTakes) {
  Disk disk(2 * kMs, 700 * kUs);
  ReadCost cost;
  EXPECT_FALSE(cost.is_known());
  for (int n = 0; n < 20; ++n) disk.read(cost, 100);
  EXPECT_TRUE(cost.is_known());
  const ReadCost::Estimate e = cost.estimate(0, disk.now);
  EXPECT_NEAR(e.first_ns, 2e6, 1e4);
  EXPECT_NEAR(e.page_ns, 7e5, 1e4);
  EXPECT_NEAR(e.ns(11), 2e6 + 7e6, 1e5);
  EXPECT_EQ(e.ns(0), 0);
  EXPECT_NEAR(cost.estimate(10, disk.now).ns(1), 2e6 + 7e6, 1e5);
  EXPECT_FALSE(cost.is_stale(disk.now));
  EXPECT_TRUE(cost.is_stale(disk.now + ReadCost::kFreshNs));
}

TEST(RestoreChoice, FollowsADiskThatSlowsDownAndRecovers) {
  Disk disk(2 * kMs, 700 * kUs);
  ReadCost cost;
  for (int n = 0; n < 20; ++n) disk.read(cost, 100);
  disk.set(100 * kMs, 100 * kMs);
  const std::uint64_t slowed = disk.now;
  while (cost.estimate(0, disk.now).page_ns < 80e6 && disk.now < slowed + 60 * kSecond) {
    disk.read(cost, 4);
  }
  EXPECT_LT(disk.now - slowed, 2 * kSecond);
  disk.set(2 * kMs, 700 * kUs);
  ReadCost probed = cost;
  const std::uint64_t recovered = disk.now;
  while (cost.estimate(0, disk.now).page_ns > 1e6 && disk.now < recovered + 60 * kSecond) {
    disk.read(cost, 8);
  }
  EXPECT_LT(disk.now - recovered, kSecond);
  // If little is read, what was known before is soon worth nothing.
  disk.now += ReadCost::kFreshNs;
  disk.read(probed, 8);
  EXPECT_LT(probed.estimate(0, disk.now).page_ns, 1e6);
  EXPECT_NEAR(probed.estimate(0, disk.now).first_ns, 2e6, 1e4);
}

TEST(RestoreChoice, NoticesADiskThatStands) {
  Disk disk(2 * kMs, 700 * kUs);
  ReadCost cost;
  for (int n = 0; n < 20; ++n) disk.read(cost, 100);
  for (int n = 0; n < 32; ++n) cost.begins(disk.now);
  EXPECT_LT(cost.estimate(0, disk.now + kMs).page_ns, 1e6);
  EXPECT_GT(cost.estimate(0, disk.now + 3 * kSecond / 2).page_ns, 300e6);
  EXPECT_FALSE(cost.is_stale(disk.now + 9 * kSecond)) << "it is being read";
}

// What a transformer computes: 2 P n + 4 w (p n + n^2 / 2), w = layers x heads x dim.
struct Model {
  double parameters, width, flops, bytes_per_token;
  double seconds(double position, double tokens) const {
    return (2 * parameters * tokens + 4 * width * (position * tokens + tokens * tokens / 2)) /
           flops;
  }
};
constexpr Model kLlama8B{8e9, 32.0 * 32 * 128, 400e12, 131072};
constexpr Model kLlama70B{70e9, 80.0 * 64 * 128, 400e12, 327680};
constexpr std::uint64_t kBlockTokens = 512;

ComputeCost learned(const Model& model) {
  ComputeCost cost;
  for (std::uint64_t n = 0; n < 60; ++n) {
    const std::uint64_t first = n * 7 % 40;
    const std::uint64_t count = 1 + n * 13 % 50;
    cost.took(
        first, count,
        static_cast<std::uint64_t>(1e9 * model.seconds(static_cast<double>(first * kBlockTokens),
                                                       static_cast<double>(count * kBlockTokens))));
  }
  return cost;
}

TEST(RestoreChoice, LearnsWhatComputingTakes) {
  for (const Model& model : {kLlama8B, kLlama70B}) {
    const ComputeCost cost = learned(model);
    for (const std::uint64_t block : {0, 10, 60, 250}) {
      const double ns =
          1e9 * model.seconds(static_cast<double>(block * kBlockTokens), kBlockTokens);
      EXPECT_NEAR(cost.ns(block), ns, 0.01 * ns) << block;
    }
  }
  ComputeCost one;
  EXPECT_FALSE(one.is_known());
  one.took(0, 10, 500);
  EXPECT_NEAR(one.ns(3), 50, 1e-6);
  one.took(0, 0, 5);
  one.took(3, 5, 0);
  EXPECT_NEAR(one.ns(3), 50, 1e-6) << "nothing was said";
  one.took(0, 10, 5'000'000);
  EXPECT_LT(one.ns(3), 300) << "something else was in the way";
  for (int n = 0; n < 200; ++n) one.took(0, 10, 5'000'000);
  EXPECT_NEAR(one.ns(3), 500'000, 1'000) << "it is slower now";
  for (int n = 0; n < 400; ++n) one.took(0, 10, 500);
  EXPECT_NEAR(one.ns(3), 50, 1) << "and as it was";
}

// The best of all m, said in another way than the choice is made.
double brute_force(const std::vector<std::uint8_t>& stored, const Model& model, double block_bytes,
                   double bandwidth, double first_s, bool overlaps, std::size_t* at) {
  double best = INFINITY;
  for (std::size_t m = 0; m <= stored.size(); ++m) {
    double compute = 0;
    for (std::size_t i = 0; i < m; ++i) {
      if (stored[i] != 0) {
        compute += model.seconds(static_cast<double>(i * kBlockTokens), kBlockTokens);
      }
    }
    const auto reads =
        static_cast<double>(std::count(stored.begin() + static_cast<long>(m), stored.end(), 1));
    const double read = reads == 0 ? 0 : first_s + (reads - 1) * block_bytes / bandwidth;
    const double all = overlaps ? std::max(compute, read) : compute + read;
    if (all < best * (1 - 1e-9)) {
      best = all;
      *at = m;
    }
  }
  return best;
}

TEST(RestoreChoice, IsTheBestOnAGridOfBandwidthsAndLengths) {
  int kinds[3] = {};
  int cases = 0;
  for (const Model& model : {kLlama8B, kLlama70B}) {
    const ComputeCost compute = learned(model);
    const double block_bytes = model.bytes_per_token * kBlockTokens;
    for (const double bandwidth : {0.1e9, 0.5e9, 0.9e9, 1.5e9, 2.5e9, 3.3e9, 7e9, 50e9}) {
      for (const std::size_t length : {1, 2, 5, 16, 64, 250}) {
        for (const std::size_t resident : {0, 1, 3, 40}) {
          for (const bool overlaps : {false, true}) {
            // Some at the start are in memory, and every ninth behind them.
            std::vector<std::uint8_t> stored(resident + length, 1);
            std::fill_n(stored.begin(), resident, 0);
            for (std::size_t i = resident + 8; i < stored.size(); i += 9) stored[i] = 0;
            const std::unique_ptr<bool[]> is_stored(new bool[stored.size()]);
            std::copy(stored.begin(), stored.end(), is_stored.get());
            const double first_s = 0.002 + block_bytes / bandwidth;
            const ReadCost::Estimate read{1e9 * first_s, 1e9 * block_bytes / bandwidth};
            std::size_t at = 0;
            const double best =
                brute_force(stored, model, block_bytes, bandwidth, first_s, overlaps, &at);
            for (const RestoreKind before :
                 {RestoreKind::kRead, RestoreKind::kCompute, RestoreKind::kSplit}) {
              const RestoreChoice choice = choose_restore({is_stored.get(), stored.size()}, 1, read,
                                                          compute, overlaps, before);
              // Within what was learned, and a fifth if another choice was there first.
              EXPECT_GE(choice.ns, 1e9 * best * 0.99);
              EXPECT_LE(choice.ns, 1e9 * best * (choice.kind == before ? 1.26 : 1.01));
              EXPECT_GE(choice.read_ns, choice.ns * 0.79);
              EXPECT_GE(choice.compute_ns, choice.ns * 0.79);
              ++cases;
              if (before != choice.kind) continue;
              ++kinds[static_cast<int>(choice.kind)];
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(cases, 2 * 8 * 6 * 4 * 2 * 3);
  for (const int of_kind : kinds) EXPECT_GT(of_kind, 50);
}

TEST(RestoreChoice, SitsOnTheBestIndexWithoutAPast) {
  const ComputeCost compute = learned(kLlama8B);
  const double block_bytes = kLlama8B.bytes_per_token * kBlockTokens;
  for (const double bandwidth : {0.5e9, 2e9, 3e9}) {
    const std::vector<std::uint8_t> stored(64, 1);
    const std::unique_ptr<bool[]> is_stored(new bool[64]);
    std::fill_n(is_stored.get(), 64, true);
    const double first_s = block_bytes / bandwidth;
    std::size_t at = 0;
    (void)brute_force(stored, kLlama8B, block_bytes, bandwidth, first_s, true, &at);
    const RestoreChoice choice =
        choose_restore({is_stored.get(), 64}, 1, {1e9 * first_s, 1e9 * block_bytes / bandwidth},
                       compute, true, RestoreKind::kSplit);
    EXPECT_EQ(choice.kind, RestoreKind::kSplit);
    EXPECT_NEAR(static_cast<double>(choice.compute_end), static_cast<double>(at), 1) << bandwidth;
  }
}

TEST(RestoreChoice, NothingStoredIsNothingToChoose) {
  const bool resident[] = {false, false};
  const RestoreChoice choice =
      choose_restore(resident, 1, {1e6, 1e6}, learned(kLlama8B), true, RestoreKind::kCompute);
  EXPECT_EQ(choice.kind, RestoreKind::kRead);
  EXPECT_EQ(choice.compute_end, 0U);
  EXPECT_EQ(choice.ns, 0);
}

// A small change of bandwidth around break-even does not turn the choice to and fro.
TEST(RestoreChoice, DoesNotWaver) {
  ComputeCost compute;
  compute.took(0, 10, 10'000'000);  // 1 ms a block
  const bool stored[] = {true, true, true, true};
  RestoreKind kind = RestoreKind::kRead;
  int turns = 0;
  for (int n = 0; n < 100; ++n) {
    const double page_ns = n % 2 == 0 ? 0.9e6 : 1.1e6;
    const RestoreChoice choice =
        choose_restore(stored, 1, {page_ns, page_ns}, compute, false, kind);
    turns += choice.kind != kind;
    kind = choice.kind;
  }
  EXPECT_EQ(turns, 0);
  EXPECT_EQ(choose_restore(stored, 1, {2e6, 2e6}, compute, false, kind).kind,
            RestoreKind::kCompute);
}

}  // namespace
}  // namespace kvmem::policy
