// Copy on demand after fork, discards, and what happens where they meet: each of these once gave
// other bytes, or none.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/regions_fixture.h"

namespace kvmem {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

class LoopForks : public LoopRegions {
 protected:
  View* filled(std::uint32_t pages) {
    View* view = engine_->map(*anonymous(pages));
    engine_->run([&] {
      for (std::uint32_t page = 0; page < pages; ++page) fill(*view, page, 1);
    });
    return view;
  }
  // A write fault on a page whose demotion is under way: the record is void, the page stays.
  void cancel_demotion(View& view) {
    ASSERT_TRUE(loop_->migrator().demote(*view.region, 0).ok());
    loop_->migrator().fault(view, os::Fault{view.address, true, true, false}, os::now_ns());
  }
};

TEST_F(LoopForks, AHoleInTheRegionDoesNotEndTheHold) {
  View* parent = filled(4);
  ASSERT_NE(::mmap(FakeEngine::bytes(*parent) + kPageBytes, kPageBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
            MAP_FAILED);
  View* child = engine_->map(*fork_of(*parent));
  std::size_t wrong = 0;
  engine_->run([&] {
    fill(*parent, 3, 2);
    wrong = wrong_words(*child, 3, 1);
  });
  EXPECT_EQ(wrong, 0U);
}

TEST_F(LoopForks, AFailedWriteLeavesASharedPageProtected) {
  start(66 << 20, 200);  // a store of 32 slots
  View* filler = filled(40);
  for (std::uint32_t page = 0; page < 40; ++page) {
    (void)loop_->migrator().demote(*filler->region, page);
    idle(10);
  }
  View* parent = filled(2);
  View* child = engine_->map(*fork_of(*parent));
  const std::uint64_t errors = loop_->migrator().counters().store_write_errors;
  (void)loop_->migrator().demote(*parent->region, 0);
  idle(50);
  EXPECT_GT(loop_->migrator().counters().store_write_errors, errors);
  std::size_t wrong = 0;
  engine_->run([&] {
    fill(*parent, 0, 2);
    wrong = wrong_words(*child, 0, 1);
  });
  EXPECT_EQ(wrong, 0U);
}

TEST_F(LoopForks, AGrandchildKeepsItsBytesWhenTheMiddleExits) {
  View* parent = filled(2);
  View* child = engine_->map(*fork_of(*parent));
  View* grandchild = engine_->map(*fork_of(*child));
  engine_->unmap(*child);
  std::size_t wrong = 0;
  engine_->run([&] {
    fill(*parent, 0, 2);
    wrong = wrong_words(*grandchild, 0, 1);
  });
  EXPECT_EQ(wrong, 0U);
}

TEST_F(LoopForks, WhatAChildDiscardsItsOwnChildStillHas) {
  View* parent = filled(2);
  View* child = engine_->map(*fork_of(*parent));
  View* grandchild = engine_->map(*fork_of(*child));
  loop_->migrator().discard(*child->region, 0, 1, nullptr);
  idle(50);
  std::size_t wrong = 0;
  engine_->run([&] { wrong = wrong_words(*grandchild, 0, 1); });
  EXPECT_EQ(wrong, 0U);
}

TEST_F(LoopForks, ADiscardOfMorePagesThanCanMoveDiscardsThemAll) {
  start(256 << 20, 400);
  View* parent = filled(kPages);
  View* child = engine_->map(*fork_of(*parent));
  auto countdown = std::make_shared<migrate::Countdown>();
  bool gone = false;
  countdown->remaining = 1;
  countdown->done = [&] { gone = true; };
  loop_->migrator().discard(*parent->region, 0, kPages, countdown);
  if (--countdown->remaining == 0) countdown->done();
  while (!gone) ASSERT_TRUE(loop_->run_once().ok());
  std::size_t old = 0;
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < kPages; ++page) {
      old += words_of(*parent, page)[5] != 0;
      wrong += wrong_words(*child, page, 1);
    }
  });
  EXPECT_EQ(old, 0U);
  EXPECT_EQ(wrong, 0U);
}

TEST_F(LoopForks, AnAnsweredDiscardIsOverAndTakesNoLaterWriteAway) {
  View* view = filled(2);
  std::size_t old = 0;
  std::size_t lost = 0;
  for (int round = 0; round < 40; ++round) {
    cancel_demotion(*view);
    std::atomic<bool> answered{false};
    auto countdown = std::make_shared<migrate::Countdown>();
    countdown->remaining = 1;
    countdown->done = [&] { answered = true; };
    loop_->migrator().discard(*view->region, 0, 1, countdown);
    if (--countdown->remaining == 0) countdown->done();
    engine_->run([&] {
      while (!answered) std::this_thread::yield();
      old += words_of(*view, 0)[5] != 0;
      words_of(*view, 0)[7] = 0x77;
    });
    while (!loop_->store()->idle() || loop_->migrator().demotes_in_flight() > 0) {
      ASSERT_TRUE(loop_->run_once().ok());
    }
    engine_->run([&] {
      lost += words_of(*view, 0)[7] != 0x77;
      fill(*view, 0, 1);
    });
  }
  EXPECT_EQ(old, 0U);
  EXPECT_EQ(lost, 0U);
}

TEST_F(LoopForks, AChildOfACorruptPageIsToldOnce) {
  View* parent = filled(2);
  ASSERT_TRUE(loop_->migrator().demote(*parent->region, 0).ok());
  while (loop_->migrator().demotes_in_flight() > 0) ASSERT_TRUE(loop_->run_once().ok());
  ASSERT_EQ(parent->region->table.read(0).state, PageState::kStored);
  View* child = engine_->map(*fork_of(*parent));
  {
    UniqueFd fd(::open(store_.path().c_str(), O_RDWR | O_CLOEXEC));
    struct stat st {};
    ASSERT_EQ(::fstat(fd.get(), &st), 0);
    const std::vector<char> junk(1 << 20, 0x5a);
    for (off_t at = 1 << 20; at < st.st_size; at += 1 << 20) {
      ASSERT_EQ(::pwrite(fd.get(), junk.data(), junk.size(), at),
                static_cast<ssize_t>(junk.size()));
    }
    ASSERT_EQ(::fsync(fd.get()), 0);
  }
  loop_->migrator().fault(*child, os::Fault{child->address, false, false, false}, os::now_ns());
  idle(300);
  EXPECT_EQ(child->region->table.read(0).state, PageState::kLost);
  EXPECT_EQ(loop_->migrator().counters().store_corrupt, 1U);
}

TEST_F(LoopForks, AParentThatExitedCanStillBeDemoted) {
  View* parent = filled(16);
  View* child = engine_->map(*fork_of(*parent));
  engine_->unmap(*parent);
  std::size_t wrong = 0;
  engine_->run([&] {
    for (std::uint32_t page = 0; page < 16; ++page) wrong += wrong_words(*child, page, 1);
  });
  EXPECT_EQ(wrong, 0U);
}

}  // namespace
}  // namespace kvmem
