// The Placer on a machine that is only reckoned: pages are used at random times, each at its own
// rate, moves take no time, and what a look finds comes when it would.

#include <gtest/gtest.h>

#include <cmath>
#include <queue>
#include <vector>

#include "heat/random.h"
#include "loop/placer.h"

namespace kvmem::loop {
namespace {

using model::Memory;

constexpr double kLimit = 512;  // pages a second: 1 GiB

class Reckoned {
 public:
  // Of `pages` pages, `in_dram` lie in DRAM, drawn at random.
  Reckoned(std::uint32_t pages, std::uint32_t in_dram, std::uint64_t seed = 1)
      : random_(seed), placer_({.places_per_s = kLimit, .seed = seed}) {
    rate_.assign(pages, 0);
    memory_.assign(pages, Memory::kCxl);
    looked_.assign(pages, false);
    placer_.region_added(0, pages);
    while (in_dram > 0) {
      Memory& memory = memory_[random_.below(pages)];
      in_dram -= memory == Memory::kCxl;
      memory = Memory::kDram;
    }
    for (std::uint32_t page = 0; page < pages; ++page) placer_.arrived({0, page}, memory_[page]);
  }

  double& rate(std::uint32_t page) { return rate_[page]; }
  Placer& placer() { return placer_; }
  Memory memory(std::uint32_t page) const { return memory_[page]; }
  std::uint64_t moves() const { return moves_; }
  void set_dram_room(std::int64_t pages) { dram_room_ = pages; }

  void run(double seconds) {
    const std::uint64_t end = now_ + static_cast<std::uint64_t>(seconds * 1e9);
    for (; now_ < end; now_ += Placer::kTickNs) {
      while (!uses_.empty() && uses_.top().first <= now_) {
        const auto [at, page] = uses_.top();
        uses_.pop();
        looked_[page] = false;
        placer_.used({0, page}, at);
      }
      placer_.plan(now_, dram_room_, {true, true}, places_);
      for (const model::PageRef& look : places_.looks) {
        placer_.looked_at(look, now_);
        if (!looked_[look.page]) expect_use(look.page);
      }
      for (const model::PageRef& down : places_.down) {
        ++dram_room_;
        move(down.page, Memory::kCxl);
      }
      for (const Places::Swap& swap : places_.swaps) {
        if (swap.is_pair) move(swap.down.page, Memory::kCxl);
        if (!swap.is_pair) --dram_room_;
        move(swap.up.page, Memory::kDram);
      }
    }
  }

  // Rates are others from now on, also those of pages that are looked at.
  void rates_changed() {
    uses_ = {};
    for (std::uint32_t page = 0; page < rate_.size(); ++page) {
      if (looked_[page]) expect_use(page);
    }
  }

  // Of all uses in a second, those of pages in DRAM.
  double share_in_dram() const {
    double all = 0;
    double dram = 0;
    for (std::size_t page = 0; page < rate_.size(); ++page) {
      all += rate_[page];
      dram += memory_[page] == Memory::kDram ? rate_[page] : 0;
    }
    return dram / all;
  }
  double best_share(std::uint32_t in_dram) const {
    std::vector<double> sorted = rate_;
    std::sort(sorted.rbegin(), sorted.rend());
    double all = 0;
    double best = 0;
    for (std::size_t i = 0; i < sorted.size(); ++i) {
      all += sorted[i];
      best += i < in_dram ? sorted[i] : 0;
    }
    return best / all;
  }
  std::uint32_t in_dram() const {
    return static_cast<std::uint32_t>(std::count(memory_.begin(), memory_.end(), Memory::kDram));
  }

 private:
  void expect_use(std::uint32_t page) {
    looked_[page] = true;
    if (rate_[page] <= 0) return;
    const double after = -std::log(1 - random_.unit()) / rate_[page];
    uses_.emplace(now_ + static_cast<std::uint64_t>(std::min(after, 1e6) * 1e9), page);
  }
  void move(std::uint32_t page, Memory to) {
    EXPECT_NE(memory_[page], to);
    memory_[page] = to;
    ++moves_;
    // Its engine loses its mapping for that.
    placer_.looked_at({0, page}, now_);
    if (!looked_[page]) expect_use(page);
    placer_.moved({0, page}, to, now_);
  }

  heat::Random random_;
  Placer placer_;
  Places places_;
  std::vector<double> rate_;
  std::vector<Memory> memory_;
  std::vector<bool> looked_;
  using Use = std::pair<std::uint64_t, std::uint32_t>;
  std::priority_queue<Use, std::vector<Use>, std::greater<>> uses_;
  std::uint64_t now_ = 1'000'000'000;
  std::uint64_t moves_ = 0;
  std::int64_t dram_room_ = 0;
};

constexpr std::uint32_t kPages = 2048;  // 4 GiB
constexpr std::uint32_t kHot = 400;

// The pages [first, first + kHot) in an order that has nothing to do with addresses.
std::uint32_t scattered(std::uint32_t i) { return i * 1151 % kPages; }

void heat_up(Reckoned& machine, std::uint32_t first) {
  for (std::uint32_t i = 0; i < kPages; ++i)
    machine.rate(scattered(i)) = i - first < kHot ? 100 : 0.02;
  machine.rates_changed();
}

TEST(Placer, AHotSetIsInDramWithinFiveSeconds) {
  for (const std::uint64_t seed : {1, 2, 3, 4, 5}) {
    Reckoned machine(kPages, 512, seed);
    heat_up(machine, 0);
    machine.run(5);
    EXPECT_GE(machine.share_in_dram(), 0.95 * machine.best_share(512)) << seed;
    EXPECT_EQ(machine.in_dram(), 512U);  // they changed places
  }
}

TEST(Placer, AnotherHotSetTakesThePlaceOfTheFirst) {
  for (const std::uint64_t seed : {1, 2, 3, 4, 5}) {
    Reckoned machine(kPages, 512, seed);
    heat_up(machine, 0);
    machine.run(20);
    heat_up(machine, 1000);
    EXPECT_LT(machine.share_in_dram(), 0.1);
    machine.run(8);
    EXPECT_GE(machine.share_in_dram(), 0.95 * machine.best_share(512)) << seed;
  }
}

TEST(Placer, WhereNothingPaysItHardlyMovesAnything) {
  for (const std::uint64_t seed : {1, 2, 3, 4, 5}) {
    Reckoned machine(kPages, 512, seed);
    for (std::uint32_t page = 0; page < kPages; ++page) machine.rate(page) = 10;
    machine.run(10);
    EXPECT_LE(machine.placer().stats().pace_per_s, 0.05 * kLimit) << seed;
    const std::uint64_t before = machine.moves();
    machine.run(10);
    EXPECT_LE(machine.moves() - before, 10 * 0.05 * kLimit) << seed;
  }
}

TEST(Placer, ManyDegreesOfHeatAreNearlyInOrder) {
  for (const std::uint64_t seed : {1, 2, 3}) {
    Reckoned machine(kPages, 512, seed);
    for (std::uint32_t i = 0; i < kPages; ++i)
      machine.rate(scattered(i)) = 300.0 / (i + 1);  // zipf
    machine.run(30);
    EXPECT_GE(machine.share_in_dram(), 0.95 * machine.best_share(512)) << seed;
  }
}

TEST(Placer, RoomInDramIsUsed) {
  Reckoned machine(kPages, 100);
  heat_up(machine, 0);
  machine.set_dram_room(400);
  machine.run(10);
  EXPECT_EQ(machine.in_dram(), 500U);
  EXPECT_GE(machine.placer().stats().ups_room, 400U);
  EXPECT_GE(machine.share_in_dram(), 0.95 * machine.best_share(500));
}

TEST(Placer, WhatDramMayNotKeepGoesDownColdestFirst) {
  Reckoned machine(kPages, 1024);
  heat_up(machine, 0);
  machine.run(10);
  machine.set_dram_room(-400);
  machine.run(10);
  EXPECT_EQ(machine.in_dram(), 624U);
  EXPECT_GE(machine.share_in_dram(), 0.95 * machine.best_share(624));
}

TEST(Placer, AdviceGoesBeforeWhatIsSeen) {
  Reckoned machine(kPages, 512);
  heat_up(machine, 0);
  // Never used, but hot they say; much used, but cold they say.
  for (std::uint32_t i = 1500; i < 1520; ++i)
    machine.placer().advise({0, scattered(i)}, 1,
                            i % 2 == 0 ? model::Advice::kHot : model::Advice::kPin);
  for (std::uint32_t i = 0; i < 20; ++i)
    machine.placer().advise({0, scattered(i)}, 1, model::Advice::kCold);
  machine.run(20);
  for (std::uint32_t i = 1500; i < 1520; ++i)
    EXPECT_EQ(machine.memory(scattered(i)), Memory::kDram);
  for (std::uint32_t i = 0; i < 20; ++i) EXPECT_EQ(machine.memory(scattered(i)), Memory::kCxl) << i;
}

TEST(Placer, PagesThatLeaveAreForgotten) {
  Reckoned machine(64, 16);
  for (std::uint32_t page = 0; page < 64; ++page) machine.rate(page) = page < 16 ? 100 : 1;
  machine.run(1);
  for (std::uint32_t page = 0; page < 64; ++page) machine.placer().left({0, page});
  Places places;
  machine.placer().plan(100'000'000'000, 16, {true, true}, places);
  EXPECT_TRUE(places.looks.empty());
  EXPECT_TRUE(places.swaps.empty());
  machine.placer().region_removed(0);
  machine.placer().region_added(0, 16);
  machine.placer().plan(200'000'000'000, 16, {true, true}, places);
  EXPECT_TRUE(places.swaps.empty());
}

// With a limit of nothing nobody is asked.
TEST(Placer, NoLimitNoLooks) {
  Placer placer({});
  placer.region_added(0, 4);
  placer.arrived({0, 0}, Memory::kCxl);
  placer.arrived({0, 1}, Memory::kDram);
  Places places;
  placer.plan(1'000'000'000, 4, {true, true}, places);
  EXPECT_TRUE(places.looks.empty());
  EXPECT_TRUE(places.swaps.empty());
}

}  // namespace
}  // namespace kvmem::loop
