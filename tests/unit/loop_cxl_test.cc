// Pages between DRAM and CXL memory. Where the machine has a memory node without CPUs they move
// there and back; elsewhere both tiers are node 0, and all but the kernel's copy is the same.
#include <sys/mman.h>

#include "os/numa.h"
#include "tests/unit/regions_fixture.h"

namespace kvmem::test {
namespace {

using model::Memory;

constexpr std::uint64_t kDram = 8;
constexpr std::uint64_t kCxl = 8;

int far_node() {
  for (const os::NumaNode& node : os::numa_nodes()) {
    if (!node.has_cpus) return node.number;
  }
  return 0;
}

class LoopCxl : public LoopRegions, public loop::EngineHand {
 protected:
  void SetUp() override {
    start_with(kDram, kCxl, os::NodeSet::of(far_node()));
    if (!engine_->usable()) GTEST_SKIP() << "userfaultfd is not permitted here";
  }
  void start_with(std::uint64_t dram_pages, std::uint64_t cxl_pages, os::NodeSet cxl) {
    engine_.reset();
    loop_.reset();
    LoopOptions options;
    options.memory_kind = os::MemoryKind::kShmem;
    options.dram_pages = dram_pages;
    options.dram_nodes = os::NodeSet::of(0);
    options.cxl_pages = cxl_pages;
    options.cxl_nodes = cxl;
    options.place_bytes_per_s = 1 << 30;
    options.store_path = store_.path();
    options.store_bytes = 256 << 20;
    auto created = Loop::create(options);
    ASSERT_TRUE(created.ok()) << created.status().what();
    loop_ = *std::move(created);
    engine_ = std::make_unique<FakeEngine>(*loop_);
    loop_->set_engine_hand(this);
  }

  void unmap(View& view, std::uint32_t page) override {
    ASSERT_EQ(::madvise(FakeEngine::bytes(view) + (static_cast<std::size_t>(page) << kPageShift),
                        kPageBytes, MADV_DONTNEED),
              0);
  }
  void flush() override {
    is_settled_ = watched_ != nullptr && in_dram(*watched_, kDram, kCxl) >= kCxl - 1;
  }
  void move_aside(View&, std::uint32_t) override {}
  void poison(View&, std::uint32_t) override {}

  // What the table, the frames and the kernel say of the pages agrees.
  void expect_consistent(const Region& region) {
    const migrate::Migrator& migrator = loop_->migrator();
    for (int i = 0; i < 10'000; ++i) {
      if (migrator.places_in_flight() + migrator.demotes_in_flight() + migrator.fills_in_flight() ==
          0)
        break;
      ASSERT_TRUE(loop_->run_once().ok());
    }
    std::uint64_t dram = 0;
    std::uint64_t cxl = 0;
    std::uint32_t elsewhere = 0;
    for (std::uint32_t page = 0; page < region.page_count(); ++page) {
      if (region.table.read(page).state != PageState::kResident) continue;
      const bool is_cxl = region.frame_of(page) == Memory::kCxl;
      ++(is_cxl ? cxl : dram);
      elsewhere += os::node_of(region.page_data(page)) != (is_cxl ? far_node() : 0);
    }
    EXPECT_EQ(loop_->dram().used_pages(), dram);
    EXPECT_EQ(loop_->cxl().used_pages(), cxl);
    EXPECT_EQ(elsewhere, 0U);
  }
  std::uint32_t in_dram(const Region& region, std::uint32_t first, std::uint32_t count) const {
    std::uint32_t n = 0;
    for (std::uint32_t page = first; page < first + count; ++page) {
      n += region.table.read(page).state == PageState::kResident &&
           region.frame_of(page) == Memory::kDram;
    }
    return n;
  }

  Region* watched_ = nullptr;
  std::atomic<bool> is_settled_{false};  // what lay in CXL memory first lies in DRAM
};

TEST_F(LoopCxl, WhatDoesNotFitIntoDramLiesInCxlMemory) {
  Region* region = anonymous(kDram + kCxl);
  View* view = engine_->map(*region);
  EXPECT_EQ(wrong_after_writing(*view, kDram + kCxl), 0U);
  EXPECT_EQ(loop_->migrator().counters().store_write_bytes, 0U);
  expect_consistent(*region);
  EXPECT_EQ(loop_->dram().used_pages(), kDram);
  EXPECT_EQ(loop_->cxl().used_pages(), kCxl);
}

TEST_F(LoopCxl, WhatIsUsedMostComesIntoDram) {
  Region* region = anonymous(kDram + kCxl);
  View* view = engine_->map(*region);
  watched_ = region;
  std::size_t wrong = 0;
  std::uint64_t rounds = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kDram + kCxl; ++page) fill(*view, page, 1);
    // The second half, which lies in CXL memory, is worked in; bounded by 60 s.
    const std::uint64_t end = os::now_ns() + 60'000'000'000;
    while (os::now_ns() < end) {
      ++rounds;
      for (std::uint32_t page = kDram; page < kDram + kCxl; ++page) {
        std::uint64_t* const words = words_of(*view, page);
        wrong += words[rounds % kWords] != pattern(page, rounds % kWords, 1);
        words[rounds % kWords] = pattern(page, rounds % kWords, 1);
      }
      if (is_settled_) break;
      ::usleep(200);
    }
  });
  EXPECT_EQ(wrong, 0U);
  watched_ = nullptr;
  EXPECT_TRUE(is_settled_);
  EXPECT_GE(loop_->placer().stats().swaps_hotter, kCxl - 1);
  expect_consistent(*region);
  for (std::uint32_t page = 0; page < kDram + kCxl; ++page) {
    engine_->run([&] { wrong += wrong_words(*view, page, 1); });
  }
  EXPECT_EQ(wrong, 0U);
}

// Three threads write in a region three times as large as both, while pages come, go, and change
// places.
TEST_F(LoopCxl, ThreadsThatWriteWhilePagesChangePlacesLoseNothing) {
  Region* region = anonymous();
  View* view = engine_->map(*region);
  std::atomic<std::size_t> wrong{0};
  std::vector<std::function<void()>> bodies;
  for (std::uint32_t thread = 0; thread < 3; ++thread) {
    bodies.emplace_back([&, thread] {
      for (std::uint64_t version = 1; version <= 4; ++version) {
        for (std::uint32_t page = thread; page < kPages; page += 3) {
          if (version > 1) wrong += wrong_words(*view, page, version - 1);
          fill(*view, page, version);
          // Some are worked in far more.
          for (int i = 0; i < 8 && page % 8 < 2; ++i) wrong += wrong_words(*view, page, version);
        }
      }
    });
  }
  engine_->run(std::move(bodies));
  EXPECT_EQ(wrong.load(), 0U);
  EXPECT_GT(loop_->migrator().counters().store_write_bytes, 0U);
  EXPECT_GT(loop_->migrator().counters().pages_to_dram, 0U);
  expect_consistent(*region);
  EXPECT_LE(loop_->memory().used_pages(), kDram + kCxl);
}

TEST_F(LoopCxl, ABudgetOfNothingEmptiesIt) {
  Region* region = anonymous(kDram + kCxl);
  View* view = engine_->map(*region);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kDram + kCxl; ++page) fill(*view, page, 1);
  });
  loop_->set_cxl(0, 1 << 30);
  for (int i = 0; i < 500 && loop_->cxl().used_pages() > 0; ++i) idle(20);
  EXPECT_EQ(loop_->cxl().used_pages(), 0U);
  EXPECT_LE(loop_->dram().used_pages(), kDram);
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kDram + kCxl; ++page) wrong += wrong_words(*view, page, 1);
  });
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(loop_->cxl().used_pages(), 0U);
  expect_consistent(*region);
}

TEST_F(LoopCxl, ASmallerBudgetOfDramSendsPagesToCxlMemory) {
  Region* region = anonymous(kDram);
  View* view = engine_->map(*region);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kDram; ++page) fill(*view, page, 1);
  });
  EXPECT_EQ(loop_->cxl().used_pages(), 0U);
  loop_->set_dram_pages(kDram / 2);
  for (int i = 0; i < 500 && loop_->dram().used_pages() > kDram / 2; ++i) idle(20);
  EXPECT_EQ(loop_->dram().used_pages(), kDram / 2);
  EXPECT_EQ(loop_->cxl().used_pages(), kDram / 2);
  EXPECT_EQ(loop_->migrator().counters().store_write_bytes, 0U);
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kDram; ++page) wrong += wrong_words(*view, page, 1);
  });
  EXPECT_EQ(wrong, 0U);
  expect_consistent(*region);
}

TEST_F(LoopCxl, PinnedPagesComeUpAndStay) {
  Region* region = anonymous(kDram + kCxl);
  View* view = engine_->map(*region);
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kDram + kCxl; ++page) fill(*view, page, 1);
  });
  ASSERT_TRUE(loop_->pin(*region, kDram, 3, true).ok());
  for (int i = 0; i < 500 && in_dram(*region, kDram, 3) < 3; ++i) idle(20);
  EXPECT_EQ(in_dram(*region, kDram, 3), 3U);
  EXPECT_EQ(loop_->migrator().place(*region, kDram, Memory::kCxl).code(), Code::kBusy);
}

// As without it: huge pages of all nodes are DRAM's.
TEST_F(LoopCxl, WithoutABudgetAllNodesAreDram) {
  start_with(kDram, 0, os::NodeSet::of(far_node()));
  EXPECT_TRUE(loop_->memory().nodes(Memory::kDram).empty());
  Region* region = anonymous();
  EXPECT_EQ(wrong_after_writing(*engine_->map(*region)), 0U);
  EXPECT_EQ(loop_->cxl().used_pages(), 0U);
  EXPECT_LE(loop_->dram().used_pages(), kDram);
  loop_->set_cxl(kCxl, 1 << 30);
  EXPECT_EQ(loop_->memory().nodes(Memory::kDram), os::NodeSet::of(0));
}

// A node that is not there any more is a node without memory.
TEST_F(LoopCxl, ANodeThatIsGoneIsDoneWithout) {
  start_with(kDram, kCxl, os::NodeSet::of(os::NodeSet::kNodesMax - 1));
  Region* region = anonymous();
  View* view = engine_->map(*region);
  EXPECT_EQ(wrong_after_writing(*view), 0U);
  EXPECT_EQ(loop_->cxl().used_pages(), 0U);
  EXPECT_LE(loop_->cxl().capacity_pages(), 2U);  // one more a second is tried
  EXPECT_TRUE(loop_->cxl().is_short());
  EXPECT_LE(loop_->dram().used_pages(), kDram);
}

}  // namespace
}  // namespace kvmem::test
