// Regions on a real loop: userfaultfd, io_uring, memfds and a store file on disk below, threads of
// this process as the engine above, and the bytes that belong where.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>

#include "os/timer.h"
#include "tests/unit/fake_engine.h"

namespace kvmem::test {

using loop::Loop;
using loop::LoopOptions;
using migrate::Region;
using migrate::View;
using residency::PageState;

inline constexpr std::uint32_t kPages = 48;

// The word that belongs at `word` of `page` after its `version`-th write.
inline std::uint64_t pattern(std::uint32_t page, std::size_t word, std::uint64_t version) {
  std::uint64_t x = (static_cast<std::uint64_t>(page) << 40) ^ (word << 8) ^ version;
  x *= 0x9e3779b97f4a7c15;
  return x ^ x >> 29;
}

inline std::uint64_t* words_of(const View& view, std::uint32_t page) {
  return reinterpret_cast<std::uint64_t*>(FakeEngine::bytes(view) +
                                          (static_cast<std::size_t>(page) << kPageShift));
}

inline constexpr std::size_t kWords = kPageBytes / 8;

inline void fill(const View& view, std::uint32_t page, std::uint64_t version) {
  std::uint64_t* words = words_of(view, page);
  for (std::size_t i = 0; i < kWords; ++i) words[i] = pattern(page, i, version);
}

inline std::size_t wrong_words(const View& view, std::uint32_t page, std::uint64_t version) {
  const std::uint64_t* words = words_of(view, page);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < kWords; ++i) wrong += words[i] != pattern(page, i, version);
  return wrong;
}

inline std::uint32_t count_state(const Region& region, PageState state) {
  std::uint32_t n = 0;
  for (std::uint32_t page = 0; page < region.page_count(); ++page)
    n += region.table.read(page).state == state;
  return n;
}

class LoopRegions : public ::testing::Test {
 protected:
  void SetUp() override {
    start(256 << 20);
    if (!engine_->usable()) GTEST_SKIP() << "userfaultfd is not permitted here";
  }
  // `store_bytes` 0: no store.
  void start(std::uint64_t store_bytes, std::uint64_t dram_pages = 16,
             os::MemoryKind kind = os::MemoryKind::kShmem) {
    engine_.reset();
    loop_.reset();
    LoopOptions options;
    options.memory_kind = kind;
    options.dram_pages = dram_pages;
    if (store_bytes > 0) options.store_path = store_.path();
    options.store_bytes = store_bytes;
    auto created = Loop::create(options);
    ASSERT_TRUE(created.ok()) << created.status().what();
    loop_ = *std::move(created);
    engine_ = std::make_unique<FakeEngine>(*loop_);
  }
  void TearDown() override {
    engine_.reset();
    loop_.reset();
  }

  Region* anonymous(std::uint32_t pages = kPages) {
    loop::RegionSpec spec;
    spec.session_id = 7;
    spec.page_count = pages;
    auto region = loop_->create_region(std::move(spec));
    return region.ok() ? *region : nullptr;
  }

  // The engine writes the first `pages` pages, then reads them; how many words are not what it
  // wrote.
  std::size_t wrong_after_writing(const View& view, std::uint32_t pages = kPages) {
    std::size_t wrong = 0;
    engine_->run([&] {
      for (std::uint32_t page = 0; page < pages; ++page) fill(view, page, 1);
      for (std::uint32_t page = 0; page < pages; ++page) wrong += wrong_words(view, page, 1);
    });
    return wrong;
  }

  // Forks as a daemon does: `parent`'s engine is held while its copy is made.
  Region* fork_of(View& parent) {
    EXPECT_TRUE(loop_->migrator().hold(parent).ok());
    auto child = loop_->clone_region(*parent.region, 8);
    loop_->migrator().release(parent);
    return child.ok() ? *child : nullptr;
  }
  // Runs the loop for a while with nothing to wait for.
  void idle(std::uint64_t milliseconds) {
    os::Timer timer;
    bool fired = false;
    timer.start(loop_->ring(), milliseconds * 1'000'000, &fired,
                [](void* flag) { *static_cast<bool*>(flag) = true; });
    while (!fired) ASSERT_TRUE(loop_->run_once().ok());
  }

  TemporaryFile store_{"loop-store"};
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<FakeEngine> engine_;
};

}  // namespace kvmem::test
