// The gate: nobody is inside while it is closed, and an engine never waits for long.

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "region/gate.h"

namespace kvmem {
namespace {

constexpr std::uint64_t kForEver = 3'600'000'000'000;

Status at_once(void* /*argument*/) { return {}; }
Status refuse(void* /*argument*/) { return {Code::kUnsupported, "no"}; }
Status note(void* argument) {
  static_cast<std::atomic<bool>*>(argument)->store(true);
  return {};
}

TEST(Gate, IsOpenUntilItIsClosedAndAfterwards) {
  Gate gate(kForEver);
  { const Gate::Pass pass(gate); }
  ASSERT_TRUE(gate.close(at_once, nullptr).ok());
  gate.open();
  { const Gate::Pass pass(gate); }
  EXPECT_EQ(gate.stats().closed, 1U);
  EXPECT_EQ(gate.stats().held, 0U);
}

TEST(Gate, ClosingWaitsForCallsInsideThenDrains) {
  Gate gate(kForEver);
  std::atomic<bool> drained{false};
  gate.enter();
  std::thread closer([&] {
    EXPECT_TRUE(gate.close(note, &drained).ok());
    gate.open();
  });
  while (!gate.is_closing()) std::this_thread::yield();
  gate.enter();  // as one driver call within another: it does not wait for itself
  gate.leave();
  EXPECT_FALSE(drained.load());
  gate.leave();
  closer.join();
  EXPECT_TRUE(drained.load());
}

TEST(Gate, AClosedGateHoldsCallsUntilItOpens) {
  Gate gate(1);  // no patience, which must not matter
  ASSERT_TRUE(gate.close(at_once, nullptr).ok());
  std::atomic<bool> passed{false};
  std::thread engine([&] {
    const Gate::Pass pass(gate);
    passed.store(true);
  });
  while (gate.stats().held == 0) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(passed.load());
  gate.open();
  engine.join();
  EXPECT_TRUE(passed.load());
  EXPECT_GE(gate.stats().held_ns, 20'000'000U);
}

// Or a move of many pages, one closing after another, would hold it for as long.
TEST(Gate, WhatWasHeldGetsThroughBeforeItClosesAgain) {
  Gate gate(kForEver);
  ASSERT_TRUE(gate.close(at_once, nullptr).ok());
  std::atomic<bool> passed{false};
  std::thread engine([&] {
    const Gate::Pass pass(gate);
    passed.store(true);
  });
  while (gate.stats().waiting == 0) std::this_thread::yield();
  gate.open();
  ASSERT_TRUE(gate.close(at_once, nullptr).ok());  // without a pause
  EXPECT_TRUE(passed.load());
  gate.open();
  engine.join();
}

// A call inside may wait for one that is held: a copy behind work that another thread has yet to
// start.
TEST(Gate, ACallThatWaitsForTooLongOpensItAgain) {
  Gate gate(10'000'000);
  std::atomic<bool> started{false};
  gate.enter();
  Status closed;
  std::thread closer([&] { closed = gate.close(at_once, nullptr); });
  while (!gate.is_closing()) std::this_thread::yield();
  std::thread engine([&] {
    const Gate::Pass pass(gate);
    started.store(true);
  });
  while (!started.load()) std::this_thread::yield();
  gate.leave();
  engine.join();
  closer.join();
  EXPECT_EQ(closed.code(), Code::kBusy);
  EXPECT_EQ(gate.stats().given_up, 1U);
  EXPECT_EQ(gate.stats().closed, 0U);
  ASSERT_TRUE(gate.close(at_once, nullptr).ok());
  gate.open();
}

// The device does not come to rest: its work waits for what is held.
TEST(Gate, ADrainThatTakesTooLongIsInVain) {
  Gate gate(10'000'000);
  std::atomic<bool> passed{false};
  std::thread engine;
  struct Context {
    Gate* gate;
    std::atomic<bool>* passed;
    std::thread* engine;
  } context{&gate, &passed, &engine};
  const Status closed = gate.close(
      [](void* argument) {
        auto* c = static_cast<Context*>(argument);
        *c->engine = std::thread([c] {
          const Gate::Pass pass(*c->gate);
          c->passed->store(true);
        });
        while (!c->passed->load()) std::this_thread::yield();
        return Status{};
      },
      &context);
  engine.join();
  EXPECT_EQ(closed.code(), Code::kBusy);
}

TEST(Gate, StaysOpenWhereTheDrainFailsOrAStreamIsCaptured) {
  Gate gate(kForEver);
  EXPECT_EQ(gate.close(refuse, nullptr).code(), Code::kUnsupported);
  { const Gate::Pass pass(gate); }
  gate.capture_begun();
  std::atomic<bool> drained{false};
  EXPECT_EQ(gate.close(note, &drained).code(), Code::kBusy);
  EXPECT_FALSE(drained.load());
  { const Gate::Pass pass(gate); }
  gate.capture_ended();
  ASSERT_TRUE(gate.close(note, &drained).ok());
  gate.open();
}

// `edited` is no atomic: that nobody is inside while it changes is what makes this right.
TEST(Gate, NobodyIsInsideWhileItIsClosed) {
  for (const std::uint64_t patience_ns : {kForEver, std::uint64_t{20'000}}) {
    Gate gate(patience_ns);
    std::uint64_t edited = 0;
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> odd{0};
    std::vector<std::thread> engines;
    for (unsigned t = 0; t < 4; ++t) {
      engines.emplace_back([&] {
        while (!stop.load(std::memory_order_relaxed)) {
          const Gate::Pass pass(gate);
          if (edited % 2 != 0) ++odd;
        }
      });
    }
    std::vector<std::thread> closers;
    std::atomic<std::uint64_t> edits{0};
    for (unsigned t = 0; t < 2; ++t) {
      closers.emplace_back([&] {
        for (int i = 0; i < 1000; ++i) {
          if (!gate.close(at_once, nullptr).ok()) continue;
          ++edited;
          std::this_thread::yield();
          ++edited;
          ++edits;
          gate.open();
        }
      });
    }
    for (std::thread& closer : closers) closer.join();
    stop = true;
    for (std::thread& engine : engines) engine.join();
    EXPECT_EQ(odd.load(), 0U);
    EXPECT_EQ(edited, 2 * edits.load());
    EXPECT_EQ(gate.stats().closed, edits.load());
    if (patience_ns == kForEver) {
      EXPECT_EQ(edits.load(), 2000U);
    }
  }
}

}  // namespace
}  // namespace kvmem
