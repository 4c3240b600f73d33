// The planner against modelled engines: reads counted beside what the future-knowing MIN and LRU
// would read, on the very trace the engine produced.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <random>

#include "loop/planner.h"
#include "tests/sim/workloads.h"

namespace kvmem::sim {
namespace {

using model::Advice;
using model::PageRef;
using model::Reason;
using model::Refetch;
using model::Touch;

constexpr std::uint64_t kSeed = 20240607;

struct Result {
  double reads = 0;  // a round
  double min = 0;    // likewise, of MIN
  double lru = 0;    // of LRU
  double samples = 0;
  double touches = 0;  // faults that told of a page, a round
  double demand = 0;   // touches that waited without a fetch on its way
  double busy = 0;     // share of the time in which the disk transferred
  double bound = 0;    // share of the time that the disk or the processor needs at least
  double writes = 0;
};

// Runs `rounds` rounds and says what one of them cost on average.
template <class Round>
Result measure(EngineModel& engine, std::uint64_t capacity, int rounds, Round&& round) {
  const Counts before = engine.counts();
  const loop::PlannerStats stats_before = engine.planner().stats();
  const std::size_t from = engine.trace().size();
  for (int i = 0; i < rounds; ++i) round();
  const Counts counts = engine.counts() - before;
  const loop::PlannerStats stats = engine.planner().stats();
  EXPECT_TRUE(engine.planner().validate());
  Result result;
  const double n = rounds;
  result.reads = static_cast<double>(counts.reads) / n;
  result.writes = static_cast<double>(counts.writes) / n;
  result.min = static_cast<double>(min_misses(engine.trace(), capacity, from)) / n;
  result.lru = static_cast<double>(lru_misses(engine.trace(), capacity, from)) / n;
  result.samples = static_cast<double>(stats.samples_hit - stats_before.samples_hit) / n;
  result.touches = static_cast<double>(stats.touches - stats_before.touches) / n;
  result.demand = static_cast<double>(stats.demand - stats_before.demand) / n;
  result.busy = counts.disk_busy / counts.time;
  return result;
}

void print(const char* name, std::uint64_t pages, std::uint64_t capacity, const Result& r) {
  std::printf(
      "%-30s %6llu pages, %5llu frames: reads %8.1f  MIN %8.1f (x%.3f)  LRU %8.1f  waits %7.1f  "
      "sampled %5.1f%%  disk busy %3.0f%%\n",
      name, static_cast<unsigned long long>(pages), static_cast<unsigned long long>(capacity),
      r.reads, r.min, r.min > 0 ? r.reads / r.min : 0.0, r.lru, r.demand,
      r.touches > 0 ? 100 * r.samples / r.touches : 0.0, 100 * r.busy);
}

struct DenseCase {
  std::uint32_t pages;
  int percent;
};

class Dense : public testing::TestWithParam<DenseCase> {};

// What the window costs at least: recent pages, three reads in flight and the free frame.
constexpr double kWindowMin = 7;

void expect_near_min(const Result& result, std::uint32_t pages, std::uint64_t capacity) {
  const auto least = static_cast<double>(pages - capacity);
  EXPECT_LE(result.reads, std::max(1.05 * least, least + kWindowMin));
  EXPECT_LE(result.demand, 0.01 * result.reads + 1);
  EXPECT_LE(result.samples, 0.021 * result.touches + 1);
}

TEST_P(Dense, OneThreadReadsHardlyMoreThanMin) {
  const auto [pages, percent] = GetParam();
  const std::uint64_t capacity = std::uint64_t{pages} * percent / 100;
  EngineModel engine(capacity, kSeed);
  engine.add_region(0, pages, true);
  DenseModel model(0, pages, 5, 1);
  for (int i = 0; i < 3; ++i) model.token(engine);
  const Result result = measure(engine, capacity, 8, [&] { model.token(engine); });
  print("dense, 1 thread", pages, capacity, result);
  expect_near_min(result, pages, capacity);
}

TEST_P(Dense, TwoThreadsReadHardlyMoreThanMin) {
  const auto [pages, percent] = GetParam();
  const std::uint64_t capacity = std::uint64_t{pages} * percent / 100;
  // Between threads the speed varies by a third, so no two rounds interleave alike.
  EngineModel engine(capacity, kSeed, {.compute_jitter = 0.3});
  engine.add_region(0, pages, true);
  DenseModel model(0, pages, 9, 2);
  for (int i = 0; i < 3; ++i) model.token(engine);
  const Result result = measure(engine, capacity, 8, [&] { model.token(engine); });
  print("dense, 2 threads", pages, capacity, result);
  expect_near_min(result, pages, capacity);
  // 400 us of disk for every read and 75 us of two processors for every page: where the disk is the
  // narrow place, it works nearly all the time.
  if (400.0 * (pages - capacity) > 1.5 * 75.0 * pages && pages > 300) {
    EXPECT_GE(result.busy, 0.95);
  }
}

// The engine reads the file in one order into memory of its own (dirty), and uses it in another.
TEST_P(Dense, LearnsAnOrderThatIsNotTheLoadOrder) {
  const auto [pages, percent] = GetParam();
  const std::uint64_t capacity = std::uint64_t{pages} * percent / 100;
  EngineModel engine(capacity, kSeed, {.compute_jitter = 0.3});
  engine.add_region(0, pages, false);
  DenseModel model(0, pages, 5, 2);
  model.load(engine, true);
  model.shuffle(kSeed);
  for (int i = 0; i < 3; ++i) model.token(engine);
  const Result result = measure(engine, capacity, 8, [&] { model.token(engine); });
  print("dense, loaded otherwise", pages, capacity, result);
  expect_near_min(result, pages, capacity);
}

INSTANTIATE_TEST_SUITE_P(Sizes, Dense,
                         testing::Values(DenseCase{250, 25}, DenseCase{250, 40}, DenseCase{250, 60},
                                         DenseCase{250, 90}, DenseCase{750, 25}, DenseCase{750, 40},
                                         DenseCase{750, 60}, DenseCase{750, 90},
                                         DenseCase{4000, 25}, DenseCase{4000, 40},
                                         DenseCase{4000, 60}, DenseCase{4000, 90}),
                         [](const auto& test) {
                           return std::to_string(test.param.pages) + "_at_" +
                                  std::to_string(test.param.percent);
                         });

struct MoeCase {
  int percent;
  MoeShape shape;
};

class Moe : public testing::TestWithParam<MoeCase> {};

TEST_P(Moe, ReadsLessThanLru) {
  const auto [percent, shape] = GetParam();
  MoeModel model(0, shape, 2, kSeed);
  const std::uint64_t capacity = std::uint64_t{model.pages()} * percent / 100;
  EngineModel engine(capacity, kSeed, {.compute_jitter = 0.3});
  engine.add_region(0, model.pages(), true);
  model.step(engine, 1000);  // warm-up: all experts
  for (int i = 0; i < 20; ++i) model.step(engine, 1);
  const Result result = measure(engine, capacity, 40, [&] { model.step(engine, 1); });
  print("mixture of experts", model.pages(), capacity, result);
  EXPECT_LT(result.reads, 0.95 * result.lru);
}

INSTANTIATE_TEST_SUITE_P(Shapes, Moe,
                         testing::Values(MoeCase{25, {}}, MoeCase{40, {}}, MoeCase{60, {}},
                                         MoeCase{40, {.expert_pages = 3}},
                                         MoeCase{40, {.skew = 0.5}}, MoeCase{40, {.skew = 1.5}},
                                         MoeCase{40, {.experts = 64, .used = 6}}),
                         [](const auto& test) { return "case" + std::to_string(test.index); });

// A model's region falls silent and another one's takes its place.
TEST(Planner, TurnsToANewModelWithinThreeRounds) {
  constexpr std::uint32_t kPages = 1000;
  constexpr std::uint64_t kCapacity = 600;
  EngineModel engine(kCapacity, kSeed);
  engine.add_region(0, kPages, true);
  engine.add_region(1, kPages, true);
  DenseModel first(0, kPages, 5, 1);
  DenseModel second(1, kPages, 5, 1);
  for (int i = 0; i < 6; ++i) first.token(engine);
  for (int i = 0; i < 4; ++i) {
    const Result result = measure(engine, kCapacity, 1, [&] { second.token(engine); });
    print("after a change of model", kPages, kCapacity, result);
    if (i == 3) {
      EXPECT_LE(result.reads, 1.05 * (kPages - kCapacity));
    }
  }
}

TEST(Planner, WhatFitsIsNeitherMovedNorSampled) {
  EngineModel engine(500, kSeed);
  engine.add_region(0, 400, true);
  engine.add_region(1, 100, false);
  DenseModel model(0, 400, 5, 2);
  DenseModel cache(1, 100, 10, 1);
  for (int i = 0; i < 10; ++i) {
    model.token(engine);
    cache.load(engine, true);
  }
  EXPECT_EQ(engine.counts().reads, 400);
  EXPECT_EQ(engine.counts().samples, 0);
  EXPECT_EQ(engine.counts().demotes, 0);
}

// The KV cache grows by a page every fourth token, and each of its pages is written or read in
// every token.
TEST(Planner, KeepsAGrowingCacheThatIsAlwaysInUse) {
  constexpr std::uint32_t kPages = 500;
  constexpr std::uint64_t kCapacity = 250;
  EngineModel engine(kCapacity, kSeed);
  engine.add_region(0, kPages, true);
  engine.add_region(1, 100, false);
  DenseModel model(0, kPages, 5, 2);
  std::uint32_t cached = 1;
  int tokens = 0;
  const auto token = [&] {
    model.token(engine);
    engine.run(tensor_op(1, 0, cached, 1, true));
    if (++tokens % 4 == 0) ++cached;
  };
  for (int i = 0; i < 10; ++i) token();
  const Result result = measure(engine, kCapacity, 40, token);
  print("growing cache", kPages + cached, kCapacity, result);
  EXPECT_LE(result.reads, 1.08 * result.min);
  EXPECT_LE(result.writes, 0.5);
}

TEST(Planner, RandomAccessCostsLittleMoreThanLru) {
  constexpr std::uint32_t kPages = 1000;
  constexpr std::uint64_t kCapacity = 400;
  EngineModel engine(kCapacity, kSeed);
  engine.add_region(0, kPages, true);
  std::mt19937_64 random(kSeed);
  const auto round = [&] {
    Op op(1);
    for (int i = 0; i < 1000; ++i)
      op[0].push_back({{0, static_cast<std::uint32_t>(random() % kPages)}});
    engine.run(op);
  };
  for (int i = 0; i < 5; ++i) round();
  const Result result = measure(engine, kCapacity, 10, round);
  print("uniformly random", kPages, kCapacity, result);
  EXPECT_LE(result.reads, 1.05 * result.lru);
}

TEST(Planner, TwoEnginesInTurnShareTheFrames) {
  constexpr std::uint32_t kPages = 600;
  constexpr std::uint64_t kCapacity = 500;
  EngineModel engine(kCapacity, kSeed);
  engine.add_region(0, kPages, true);
  engine.add_region(1, kPages, true);
  DenseModel first(0, kPages, 5, 2);
  DenseModel second(1, kPages, 7, 2);
  const auto round = [&] {
    first.token(engine);
    second.token(engine);
  };
  for (int i = 0; i < 3; ++i) round();
  const Result result = measure(engine, kCapacity, 6, round);
  print("two models in turn", 2 * kPages, kCapacity, result);
  EXPECT_LE(result.reads, 1.06 * result.min);
}

TEST(Planner, TwoEnginesAtOnceShareTheFrames) {
  constexpr std::uint32_t kPages = 600;
  constexpr std::uint64_t kCapacity = 500;
  EngineModel engine(kCapacity, kSeed, {.compute_jitter = 0.3});
  engine.add_region(0, kPages, true);
  engine.add_region(1, kPages, true);
  const auto round = [&] {
    Op op(2);
    for (std::uint32_t i = 0; i < kPages; ++i) {
      op[0].push_back({{0, i}});
      op[1].push_back({{1, i}});
    }
    engine.run(op);
  };
  for (int i = 0; i < 3; ++i) round();
  const Result result = measure(engine, kCapacity, 6, round);
  print("two models at once", 2 * kPages, kCapacity, result);
  EXPECT_LE(result.reads, 1.06 * result.min);
}

}  // namespace
}  // namespace kvmem::sim
