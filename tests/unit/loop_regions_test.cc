// The whole daemon below the server, with the real userfaultfd, io_uring, memfds and disk: engine
// threads in this process read and write regions larger than the DRAM budget.

#include <gtest/gtest.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "tests/unit/regions_fixture.h"

namespace kvmem {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

TEST_F(LoopRegions, WhatWasWrittenComesBackAfterDemotion) {
  Region* region = anonymous();
  View* view = engine_->map(*region);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint64_t version = 1; version <= 3; ++version) {
      for (std::uint32_t page = 0; page < kPages; ++page) fill(*view, page, version);
      for (std::uint32_t page = 0; page < kPages; ++page)
        wrong += wrong_words(*view, page, version);
    }
  });
  EXPECT_EQ(wrong, 0U);
  EXPECT_LE(loop_->dram().used_pages(), 16U);
  EXPECT_GT(loop_->migrator().counters().store_write_bytes, 0U);
  EXPECT_EQ(loop_->migrator().counters().frames_over_budget, 0U);
}

TEST_F(LoopRegions, ReadOnlyPagesAreWrittenToTheStoreOnce) {
  Region* region = anonymous();
  View* view = engine_->map(*region);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kPages; ++page) fill(*view, page, 1);
    for (int round = 0; round < 4; ++round) {
      for (std::uint32_t page = 0; page < kPages; ++page) wrong += wrong_words(*view, page, 1);
    }
  });
  EXPECT_EQ(wrong, 0U);
  // Each page at most once, and a few whose first demotion was cancelled.
  EXPECT_LE(loop_->migrator().counters().store_write_bytes,
            (kPages + 8 + loop_->migrator().counters().writes_cancelled) * kPageBytes);
}

TEST_F(LoopRegions, UntouchedPagesReadAsZeroesAndHaveNoFrame) {
  Region* region = anonymous();
  View* view = engine_->map(*region);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < 4; ++page) {
      for (std::size_t i = 0; i < kWords; ++i) wrong += words_of(*view, page)[i] != 0;
    }
  });
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(loop_->dram().used_pages(), 4U);
  EXPECT_EQ(count_state(*region, PageState::kFresh), kPages - 4);
}

TEST_F(LoopRegions, ThreadsThatWriteWhilePagesAreDemotedLoseNothing) {
  Region* region = anonymous();
  View* view = engine_->map(*region);
  // Each thread owns every third page, but for the page's first words: one a thread, counted up by
  // that thread alone.
  constexpr unsigned kThreads = 3;
  constexpr int kSteps = 120;
  std::atomic<std::size_t> wrong{0};
  std::array<std::array<std::uint64_t, kPages>, kThreads> counted{};
  const auto check = [&](std::uint32_t page, std::uint64_t version) {
    const std::uint64_t* words = words_of(*view, page);
    for (std::size_t i = kThreads; i < kWords; ++i) wrong += words[i] != pattern(page, i, version);
  };
  std::vector<std::function<void()>> bodies;
  for (unsigned t = 0; t < kThreads; ++t) {
    bodies.emplace_back([&, t] {
      std::mt19937_64 random(t + 1);
      std::array<std::uint64_t, kPages> version{};
      for (int step = 0; step < kSteps; ++step) {
        const auto page = static_cast<std::uint32_t>(random() % kPages);
        if (page % kThreads != t) {
          ++words_of(*view, page)[t];
          ++counted[t][page];
          continue;
        }
        if (version[page] > 0) check(page, version[page]);
        ++version[page];
        std::uint64_t* words = words_of(*view, page);
        for (std::size_t i = kThreads; i < kWords; ++i) words[i] = pattern(page, i, version[page]);
      }
      for (std::uint32_t page = t; page < kPages; page += kThreads) {
        if (version[page] > 0) check(page, version[page]);
      }
    });
  }
  engine_->run(std::move(bodies));
  engine_->run([&] {
    for (unsigned t = 0; t < kThreads; ++t) {
      for (std::uint32_t page = 0; page < kPages; ++page)
        wrong += words_of(*view, page)[t] != counted[t][page];
    }
  });
  EXPECT_EQ(wrong.load(), 0U);
  EXPECT_GT(loop_->migrator().counters().demotions, 0U);
}

TEST_F(LoopRegions, SystemCallsReadAndWriteColdPages) {
  Region* region = anonymous();
  View* view = engine_->map(*region);
  TemporaryFile file("loop-file");
  UniqueFd fd(::open(file.path().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  const std::size_t size = static_cast<std::size_t>(kPages) << kPageShift;
  std::size_t wrong = 0;
  ssize_t written = 0;
  ssize_t read = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kPages; ++page) fill(*view, page, 5);
    written = ::pwrite(fd.get(), FakeEngine::bytes(*view), size, 0);
    std::memset(FakeEngine::bytes(*view), 0, size);
    read = ::pread(fd.get(), FakeEngine::bytes(*view), size, 0);
    for (std::uint32_t page = 0; page < kPages; ++page) wrong += wrong_words(*view, page, 5);
  });
  EXPECT_EQ(written, static_cast<ssize_t>(size));
  EXPECT_EQ(read, static_cast<ssize_t>(size));
  EXPECT_EQ(wrong, 0U);
}

TEST_F(LoopRegions, DiscardedPagesReadAsZeroesAndGiveEverythingBack) {
  Region* region = anonymous();
  View* view = engine_->map(*region);
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kPages; ++page) fill(*view, page, 1);
  });
  bool gone = false;
  auto countdown = std::make_shared<migrate::Countdown>();
  countdown->remaining = 1;
  countdown->done = [&] { gone = true; };
  loop_->migrator().discard(*region, 0, kPages, countdown);
  if (--countdown->remaining == 0) countdown->done();
  loop_->note_change();
  while (!gone) ASSERT_TRUE(loop_->run_once().ok());
  EXPECT_EQ(loop_->dram().used_pages(), 0U);
  EXPECT_EQ(loop_->store()->stats().slots_live[0], 0U);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kPages; ++page) wrong += words_of(*view, page)[9] != 0;
  });
  EXPECT_EQ(wrong, 0U);
}

TEST_F(LoopRegions, AClosedRegionGivesBackFramesAndSlots) {
  Region* region = anonymous();
  View* view = engine_->map(*region);
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kPages; ++page) fill(*view, page, 1);
  });
  engine_->unmap(*view);
  while (loop_->regions()[0] != nullptr) ASSERT_TRUE(loop_->run_once().ok());
  EXPECT_EQ(loop_->dram().used_pages(), 0U);
  EXPECT_EQ(loop_->store()->stats().slots_live[0], 0U);
}

// A file of `kPages` pages, the last of kTail bytes, with what pattern(page, word, 3) says.
constexpr std::size_t kTail = 12345;

void write_pages(const TemporaryFile& file) {
  UniqueFd fd(::open(file.path().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  std::vector<std::uint64_t> page(kWords);
  for (std::uint32_t p = 0; p < kPages; ++p) {
    for (std::size_t i = 0; i < kWords; ++i) page[i] = pattern(p, i, 3);
    const std::size_t size = p + 1 == kPages ? kTail : kPageBytes;
    ASSERT_EQ(::write(fd.get(), page.data(), size), static_cast<ssize_t>(size));
  }
}

Result<Region*> region_of(Loop& loop, const TemporaryFile& file) {
  loop::RegionSpec spec;
  spec.page_count = kPages;
  auto origin = tier::Origin::open(UniqueFd(::open(file.path().c_str(), O_RDONLY | O_CLOEXEC)));
  if (!origin.ok()) return origin.status();
  spec.origin = std::make_unique<tier::Origin>(*std::move(origin));
  return loop.create_region(std::move(spec));
}

TEST_F(LoopRegions, PagesOfAFileAreReadBackAndNeverWritten) {
  TemporaryFile file("loop-origin");
  write_pages(file);
  auto region = region_of(*loop_, file);
  ASSERT_TRUE(region.ok()) << region.status().what();
  View* first = engine_->map(**region);
  View* second = engine_->map(**region, 8, 16);
  std::atomic<std::size_t> wrong{0};
  const auto read_all = [&wrong](View* view) {
    for (int round = 0; round < 3; ++round) {
      for (std::uint32_t i = 0; i < view->page_count; ++i) {
        const std::uint32_t page = view->first_page + i;
        const std::uint64_t* words = words_of(*view, i);
        const std::size_t whole = page + 1 == kPages ? kTail / 8 : kWords;
        for (std::size_t w = 0; w < whole; ++w) wrong += words[w] != pattern(page, w, 3);
        for (std::size_t w = whole + 1; w < kWords; ++w) wrong += words[w] != 0;
      }
    }
  };
  engine_->run({[&] { read_all(first); }, [&] { read_all(second); }});
  EXPECT_EQ(wrong.load(), 0U);
  while (loop_->migrator().demotes_in_flight() > 0) ASSERT_TRUE(loop_->run_once().ok());
  EXPECT_LE(loop_->dram().used_pages(), 16U);
  EXPECT_EQ(loop_->migrator().counters().store_write_bytes, 0U);
  EXPECT_EQ(loop_->migrator().counters().demotions, loop_->migrator().counters().pages_dropped);
}

TEST_F(LoopRegions, AFillInHandIsReadWhenTheOthersHaveEnded) {
  TemporaryFile file("loop-hand");
  write_pages(file);
  auto region = region_of(*loop_, file);
  ASSERT_TRUE(region.ok()) << region.status().what();
  View* view = engine_->map(**region);
  migrate::Migrator& migrator = loop_->migrator();
  std::size_t wrong = 0;
  bool held = false;
  // The last one asked for finds the place free and nobody to take it over. Three rounds: in one a
  // thread waits for it.
  for (std::uint32_t first : {0U, 4U, 8U}) {
    for (std::uint32_t page = first; page < first + 4; ++page)
      ASSERT_TRUE(migrator.promote(**region, page).ok());
    if (first == 4) {
      engine_->run([&] { wrong += words_of(*view, first + 3)[7] != pattern(first + 3, 7, 3); });
    }
    while (migrator.fills_in_flight() > 0) {
      held |= migrator.fill_in_hand();
      ASSERT_TRUE(loop_->run_once().ok());
    }
    EXPECT_FALSE(migrator.fill_in_hand());
  }
  EXPECT_TRUE(held);
  EXPECT_EQ(count_state(**region, PageState::kResident), 12U);
  engine_->run([&] {
    for (std::uint32_t page = 0; page < 12; ++page) wrong += wrong_words(*view, page, 3);
  });
  EXPECT_EQ(wrong, 0U);
}

TEST_F(LoopRegions, AForkedCopyKeepsTheMomentOfTheFork) {
  Region* parent = anonymous(24);
  View* view = engine_->map(*parent);
  engine_->run([&] {
    for (std::uint32_t page = 0; page < 20; ++page) fill(*view, page, 1);
  });
  ASSERT_TRUE(loop_->migrator().hold(*view).ok());
  auto cloned = loop_->clone_region(*parent, 8);
  ASSERT_TRUE(cloned.ok());
  loop_->migrator().release(*view);
  View* child = engine_->map(**cloned);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < 24; page += 2) fill(*view, page, 2);  // after the fork
    for (std::uint32_t page = 0; page < 20; ++page) wrong += wrong_words(*child, page, 1);
    for (std::uint32_t page = 20; page < 24; ++page) wrong += words_of(*child, page)[1] != 0;
    for (std::uint32_t page = 1; page < 20; page += 2) fill(*child, page, 9);
    for (std::uint32_t page = 0; page < 20; ++page)
      wrong += wrong_words(*view, page, page % 2 == 0 ? 2 : 1);
  });
  EXPECT_EQ(wrong, 0U);
  // The parent may go first: its pages stay as long as the child needs them.
  engine_->unmap(*view);
  engine_->run([&] {
    for (std::uint32_t page = 0; page < 20; ++page)
      wrong += wrong_words(*child, page, page % 2 == 0 ? 1 : 9);
  });
  EXPECT_EQ(wrong, 0U);
  engine_->unmap(*child);
  while (loop_->regions()[0] != nullptr || loop_->regions()[1] != nullptr)
    ASSERT_TRUE(loop_->run_once().ok());
  EXPECT_EQ(loop_->dram().used_pages(), 0U);
  EXPECT_EQ(loop_->store()->stats().slots_live[0], 0U);
}

TEST_F(LoopRegions, ANewLoopTakesOverWhereTheOldOneStopped) {
  Region* region = anonymous();
  View* view = engine_->map(*region);
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kPages; ++page) fill(*view, page, 1);
  });
  const std::uint64_t id = region->id;
  UniqueFd memory(::dup(region->memory.fd()));
  UniqueFd table = *region->table.read_only_fd();
  // The old loop goes without closing anything, as a daemon that stops or dies does.
  loop_->detach();
  start(256 << 20);  // the engine's memory stays in `memory`
  EXPECT_EQ(loop_->recovered_sessions(), std::vector<std::uint64_t>{7});
  loop::RegionSpec spec;
  spec.session_id = 7;
  spec.page_count = kPages;
  auto adopted =
      loop_->adopt_region(std::move(spec), id, std::move(memory), std::move(table), UniqueFd());
  ASSERT_TRUE(adopted.ok()) << adopted.status().what();
  loop_->release_unclaimed(7);
  view = engine_->map(**adopted);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kPages; ++page) wrong += wrong_words(*view, page, 1);
  });
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(loop_->migrator().counters().pages_lost, 0U);
}

TEST_F(LoopRegions, WithoutAStoreTheBudgetGivesWayAndNothingIsLost) {
  start(0);
  Region* region = anonymous();
  View* view = engine_->map(*region);
  EXPECT_EQ(wrong_after_writing(*view), 0U);
  EXPECT_EQ(loop_->migrator().counters().frames_over_budget, kPages - 16);
  EXPECT_EQ(count_state(*region, PageState::kResident), kPages);
}

TEST_F(LoopRegions, AFullStoreKeepsPagesInDramAndSaysSo) {
  start(66 << 20);  // one segment: 32 slots
  Region* region = anonymous(80);
  View* view = engine_->map(*region);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint64_t version = 1; version <= 2; ++version) {
      for (std::uint32_t page = 0; page < 80; ++page) fill(*view, page, version);
      for (std::uint32_t page = 0; page < 80; ++page) wrong += wrong_words(*view, page, version);
    }
  });
  EXPECT_EQ(wrong, 0U);
  EXPECT_GT(loop_->migrator().counters().frames_over_budget, 0U);
  EXPECT_GT(loop_->store()->stats().no_space, 0U);
  // It is asked now and then, not at every turn: each try protects a page from its engine first.
  EXPECT_LT(loop_->migrator().counters().store_write_errors, 2000U);
  EXPECT_EQ(loop_->migrator().counters().pages_lost, 0U);
}

thread_local sigjmp_buf recover;
thread_local volatile sig_atomic_t bus_errors = 0;

TEST_F(LoopRegions, ACorruptPageRaisesSigbusAndIsNeverOtherBytes) {
  Region* region = anonymous();
  View* view = engine_->map(*region);
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kPages; ++page) fill(*view, page, 1);
  });
  while (!loop_->store()->idle() || loop_->migrator().demotes_in_flight() > 0)
    ASSERT_TRUE(loop_->run_once().ok());
  const std::uint32_t stored = count_state(*region, PageState::kStored);
  ASSERT_GT(stored, 0U);
  {
    // One bit in every 64 KiB of the store: no page of it stays whole.
    UniqueFd fd(::open(store_.path().c_str(), O_RDWR | O_CLOEXEC));
    struct stat st {};
    ASSERT_EQ(::fstat(fd.get(), &st), 0);
    for (off_t at = 40'000; at < st.st_size; at += 65'536) {
      std::uint8_t byte = 0;
      ASSERT_EQ(::pread(fd.get(), &byte, 1, at), 1);
      byte ^= 4;
      ASSERT_EQ(::pwrite(fd.get(), &byte, 1, at), 1);
    }
    ASSERT_EQ(::fsync(fd.get()), 0);
  }
  struct sigaction on_bus {};
  struct sigaction before {};
  on_bus.sa_handler = [](int) {
    bus_errors = bus_errors + 1;
    siglongjmp(recover, 1);
  };
  ::sigaction(SIGBUS, &on_bus, &before);
  std::size_t wrong = 0;
  std::uint32_t refused = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kPages; ++page) {
      if (sigsetjmp(recover, 1) == 0) wrong += wrong_words(*view, page, 1);
    }
    refused = static_cast<std::uint32_t>(bus_errors);
  });
  ::sigaction(SIGBUS, &before, nullptr);
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(refused, loop_->migrator().counters().pages_lost);
  EXPECT_GE(refused, stored);  // reading on may have demoted more, into damaged slots or not
  EXPECT_EQ(loop_->migrator().counters().store_corrupt, refused);
}

// A region made of huge pages while there were some; by now this machine has none. Its engine moves
// pages aside as libkvmem does.
class LoopWithoutHugePages : public LoopRegions, public loop::EngineHand {
 protected:
  void SetUp() override {
    if (os::huge_tlb_pages_available() > 0) GTEST_SKIP() << "this machine has huge pages";
    LoopRegions::SetUp();
    if (IsSkipped()) return;
    start(256 << 20, 16, os::MemoryKind::kHugeTlb);
    loop_->set_engine_hand(this);
  }
  void TearDown() override {
    if (loop_ != nullptr) loop_->set_engine_hand(nullptr);
    LoopRegions::TearDown();
  }

  Region* region_of_huge_pages() {
    constexpr std::uint64_t kId = 77;
    auto memory = os::SharedMemory::create("test", static_cast<std::size_t>(kPages) << kPageShift,
                                           os::MemoryKind::kHugeTlb, false);
    auto table =
        residency::ResidencyTable::create(kId, kPages, os::MemoryKind::kHugeTlb, PageState::kFresh);
    if (!memory.ok() || !table.ok()) return nullptr;
    return adopt(kId, UniqueFd(::dup(memory->fd())), *table->read_only_fd(), UniqueFd());
  }
  Region* adopt(std::uint64_t id, UniqueFd memory, UniqueFd table, UniqueFd aside) {
    loop::RegionSpec spec;
    spec.session_id = 7;
    spec.page_count = kPages;
    auto region = loop_->adopt_region(std::move(spec), id, std::move(memory), std::move(table),
                                      std::move(aside));
    return region.ok() ? *region : nullptr;
  }
  std::uint32_t aside_pages(const Region& region) const {
    std::uint32_t n = 0;
    for (std::uint32_t page = 0; page < region.page_count(); ++page)
      n += (region.table.read(page).flags & residency::Residency::kAside) != 0;
    return n;
  }

  enum class Engine : std::uint8_t { kMoves, kFailsFirst, kIsOld, kStopsWhenAnswered };
  Engine engine_kind_ = Engine::kMoves;
  std::uint32_t asked_ = 0;

 private:
  void unmap(View&, std::uint32_t) override {}
  void poison(View&, std::uint32_t) override {}
  void move_aside(View& view, std::uint32_t page) override { asks_.emplace_back(&view, page); }
  void flush() override {
    for (const auto& [view, page] : std::exchange(asks_, {})) {
      ++asked_;
      if (engine_kind_ == Engine::kIsOld) continue;
      Region& region = *view->region;
      if (!region.has_aside()) {
        ASSERT_TRUE(loop_->make_aside(region).ok());
      }
      auto request = std::make_shared<migrate::AsideRequest>();
      request->done = [this, view = view, page = page, request = request.get()] {
        if (request->status.ok()) answered(*view, page);
      };
      loop_->migrator().move_aside(region, page, std::move(request));
      loop_->note_change();
    }
  }
  void answered(View& view, std::uint32_t page) {
    if (engine_kind_ == Engine::kStopsWhenAnswered) return;
    const bool fails = std::exchange(engine_kind_, Engine::kMoves) == Engine::kFailsFirst;
    if (!fails) engine_->map_aside(view, page);
    EXPECT_TRUE(loop_->migrator().moved_aside(*view.region, page, !fails).ok());
    EXPECT_FALSE(loop_->migrator().moved_aside(*view.region, page, true).ok());
  }

  std::vector<std::pair<View*, std::uint32_t>> asks_;
};

// No fill can be had, and none may be tried as fast as the processor can.
TEST_F(LoopWithoutHugePages, AnEmptyPoolIsAskedNowAndThen) {
  engine_kind_ = Engine::kIsOld;
  Region* region = region_of_huge_pages();
  ASSERT_NE(region, nullptr);
  View* view = engine_->map(*region);
  for (std::uint32_t page = 0; page < 8; ++page) {
    loop_->fault(*view, {.address = view->address_of(page), .write = true}, os::now_ns());
  }
  idle(300);
  // The first eight at once, then one try each ten milliseconds, however often the loop turns.
  EXPECT_GE(loop_->migrator().counters().populate_failures, 2U);
  EXPECT_LE(loop_->migrator().counters().populate_failures, 8U * 32);
  EXPECT_EQ(asked_, 0U);  // demotion might still free one
  idle(2500);
  EXPECT_TRUE(loop_->huge_pages_gone());
  EXPECT_GE(asked_, 8U);  // in vain, and again
  EXPECT_EQ(aside_pages(*region), 0U);
}

TEST_F(LoopWithoutHugePages, PagesMoveAsideAndKeepTheirBytes) {
  engine_kind_ = Engine::kFailsFirst;
  Region* region = region_of_huge_pages();
  ASSERT_NE(region, nullptr);
  View* view = engine_->map(*region);
  EXPECT_EQ(wrong_after_writing(*view), 0U);
  EXPECT_EQ(aside_pages(*region), kPages);
  EXPECT_EQ(loop_->migrator().counters().pages_aside, kPages);
  EXPECT_GT(loop_->migrator().counters().demotions, 0U);
  EXPECT_EQ(loop_->dram().capacity_pages(), 16U);  // those that were given up are there again
  EXPECT_LE(loop_->dram().used_pages(), 17U);
}

TEST_F(LoopWithoutHugePages, AForkedCopyOfPagesAsideKeepsTheMomentOfTheFork) {
  Region* parent = region_of_huge_pages();
  ASSERT_NE(parent, nullptr);
  View* view = engine_->map(*parent);
  engine_->run([&] {
    for (std::uint32_t page = 0; page < 24; ++page) fill(*view, page, 1);
  });
  Region* child = fork_of(*view);
  ASSERT_NE(child, nullptr);
  EXPECT_NE(child->memory.kind(), os::MemoryKind::kHugeTlb);
  View* child_view = engine_->map(*child);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < 12; ++page) fill(*view, page, 2);
    for (std::uint32_t page = 0; page < 24; ++page) wrong += wrong_words(*child_view, page, 1);
    for (std::uint32_t page = 0; page < 24; ++page)
      wrong += wrong_words(*view, page, page < 12 ? 2 : 1);
  });
  EXPECT_EQ(wrong, 0U);
}

TEST_F(LoopWithoutHugePages, ANewLoopTakesOverPagesAside) {
  Region* region = region_of_huge_pages();
  ASSERT_NE(region, nullptr);
  View* view = engine_->map(*region);
  engine_->run([&] {
    for (std::uint32_t page = 1; page < kPages; ++page) fill(*view, page, 1);
  });
  // One is with its engine when the daemon goes.
  engine_kind_ = Engine::kStopsWhenAnswered;
  loop_->fault(*view, {.address = view->address_of(0), .write = true}, os::now_ns());
  for (int turn = 0; turn < 40 && aside_pages(*region) < kPages; ++turn) idle(100);
  ASSERT_EQ(aside_pages(*region), kPages);
  const std::uint64_t id = region->id;
  UniqueFd memory(::dup(region->memory.fd()));
  UniqueFd aside(::dup(region->aside.fd()));
  UniqueFd table = *region->table.read_only_fd();
  loop_->detach();
  start(256 << 20, 16, os::MemoryKind::kHugeTlb);
  loop_->set_engine_hand(this);
  EXPECT_EQ(adopt(id, UniqueFd(::dup(memory.get())), UniqueFd(::dup(table.get())), UniqueFd()),
            nullptr);  // without the memory in which its pages lie
  region = adopt(id, std::move(memory), std::move(table), std::move(aside));
  ASSERT_NE(region, nullptr);
  loop_->release_unclaimed(7);
  view = engine_->map(*region);
  for (std::uint32_t page = 0; page < kPages; ++page) engine_->map_aside(*view, page);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint32_t page = 1; page < kPages; ++page) wrong += wrong_words(*view, page, 1);
    for (std::size_t i = 0; i < kWords; ++i) wrong += words_of(*view, 0)[i] != 0;
  });
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(loop_->migrator().counters().pages_lost, 0U);
}

TEST_F(LoopWithoutHugePages, AnEngineThatDiesBeforeItHasMappedAPageGivesItsFrameBack) {
  engine_kind_ = Engine::kStopsWhenAnswered;
  Region* region = region_of_huge_pages();
  ASSERT_NE(region, nullptr);
  View* view = engine_->map(*region);
  loop_->fault(*view, {.address = view->address_of(3), .write = true}, os::now_ns());
  for (int turn = 0; turn < 80 && aside_pages(*region) == 0; ++turn) idle(100);
  EXPECT_EQ(region->table.read(3).state, PageState::kResident);
  EXPECT_EQ(loop_->dram().used_pages(), 1U);
  engine_->unmap(*view);
  idle(20);
  EXPECT_EQ(loop_->dram().used_pages(), 0U);
  EXPECT_TRUE(std::all_of(loop_->regions().begin(), loop_->regions().end(),
                          [](Region* r) { return r == nullptr; }));
}

TEST_F(LoopWithoutHugePages, EnginesThatStopBeforeTheyHaveMappedAPageHoldUpNoOther) {
  engine_kind_ = Engine::kStopsWhenAnswered;
  Region* region = region_of_huge_pages();
  ASSERT_NE(region, nullptr);
  View* view = engine_->map(*region);
  constexpr std::uint32_t kMany = 14;  // more than are filled aside at once
  for (std::uint32_t page = 0; page < kMany; ++page) {
    loop_->fault(*view, {.address = view->address_of(page), .write = true}, os::now_ns());
  }
  for (int turn = 0; turn < 20 && aside_pages(*region) < kMany; ++turn) idle(300);
  EXPECT_EQ(aside_pages(*region), kMany);
  engine_->unmap(*view);
  idle(20);
  EXPECT_EQ(loop_->dram().used_pages(), 0U);
}

TEST_F(LoopWithoutHugePages, NewRegionsAreOrdinaryMemory) {
  Region* region = anonymous();
  ASSERT_NE(region, nullptr);
  EXPECT_NE(region->memory.kind(), os::MemoryKind::kHugeTlb);
  EXPECT_TRUE(loop_->huge_pages_gone());
  View* view = engine_->map(*region);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kPages; ++page) fill(*view, page, 1);
    for (std::uint32_t page = 0; page < kPages; ++page) wrong += wrong_words(*view, page, 1);
  });
  EXPECT_EQ(wrong, 0U);
}

// One fill may be in hand: populated, and not read until the disk has nothing else. Whoever comes
// to wait for it, or closes what it belongs to, must not have to wait for that.
class LoopReadInHand : public LoopRegions {
 protected:
  // A region that lies in the store, and reads of it under way.
  Region* stored() {
    Region* region = anonymous(12);
    view_ = engine_->map(*region);
    engine_->run([&] {
      for (std::uint32_t page = 0; page < 12; ++page) fill(*view_, page, 1);
    });
    loop_->demote(*region, 0, 12);
    for (int turns = 0; turns < 400 && count_state(*region, PageState::kStored) < 12; ++turns) {
      idle(5);
    }
    EXPECT_EQ(count_state(*region, PageState::kStored), 12U);
    return region;
  }
  void read_ahead(Region& region, std::uint32_t first, std::uint32_t count) {
    for (std::uint32_t page = first; page < first + count; ++page) {
      const Status status = loop_->migrator().promote(region, page);
      EXPECT_TRUE(status.ok() || status.code() == Code::kBusy) << status.what();  // on its way
    }
  }
  bool gone() const {
    const auto& regions = loop_->regions();
    return std::all_of(regions.begin(), regions.end(), [](Region* r) { return r == nullptr; });
  }
  View* view_ = nullptr;
};

TEST_F(LoopReadInHand, IsServedToWhoeverWaits) {
  Region* region = stored();
  for (std::uint32_t first = 0; first < 12; first += 4) {
    read_ahead(*region, first, 4);
    std::size_t wrong = 0;
    engine_->run({[&] { wrong = wrong_words(*view_, first + 3, 1); },
                  [&] { (void)wrong_words(*view_, first + 2, 1); }});
    EXPECT_EQ(wrong, 0U);
  }
}

TEST_F(LoopReadInHand, IsServedToAForkedChild) {
  Region* region = stored();
  read_ahead(*region, 0, 4);
  Region* child = fork_of(*view_);
  ASSERT_NE(child, nullptr);
  View* copy = engine_->map(*child);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint32_t page = 12; page-- > 0;) wrong += wrong_words(*copy, page, 1);
  });
  EXPECT_EQ(wrong, 0U);
}

TEST_F(LoopReadInHand, EndsWithItsRegion) {
  Region* region = stored();
  for (std::uint32_t turns = 0; turns < 6; ++turns) {
    read_ahead(*region, 0, 4);
    for (std::uint32_t i = 0; i < turns; ++i) ASSERT_TRUE(loop_->run_once().ok());
    engine_->unmap(*view_);
    for (int wait = 0; wait < 400 && !gone(); ++wait) idle(5);
    ASSERT_TRUE(gone());
    region = stored();
  }
}

TEST_F(LoopReadInHand, EndsWithTheLoop) {
  for (std::uint32_t turns = 0; turns < 6; ++turns) {
    Region* region = stored();
    read_ahead(*region, 0, 4);
    for (std::uint32_t i = 0; i < turns; ++i) ASSERT_TRUE(loop_->run_once().ok());
    start(256 << 20);  // the one before is gone with all its moves, or this aborts
  }
}

}  // namespace
}  // namespace kvmem
