// What tenants make of one capacity: nobody pushes another below his share, and what one does not
// use others do.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <string>

#include "policy/block_policy.h"
#include "policy/block_shares.h"
#include "tests/sim/clairvoyant.h"
#include "tests/sim/trace.h"

namespace kvmem::sim {
namespace {

using policy::BlockKey;
using policy::BlockShares;
using policy::make_block_policy;

constexpr std::size_t kCapacity = 6000;  // blocks
constexpr BlockKey kOthers = BlockKey{1} << 40;

// A cache of blocks of so many pages, as the daemon's is one.
class Cache final : public BlockShares::Member {
 public:
  Cache(const char* name, std::uint64_t block_pages)
      : block_pages_(block_pages), policy_(make_block_policy(name, 0)) {}

  std::size_t resident_blocks() const override { return policy_->resident_blocks(); }
  std::uint64_t pages_for(std::size_t blocks) const override { return blocks * block_pages_; }
  double next_to_go(std::uint64_t now_ms) override { return policy_->next_to_go(now_ms); }
  void set_pages(std::uint64_t pages) override {
    gone_.clear();
    policy_->set_capacity(pages / block_pages_, &gone_);
  }

  // Returns how many blocks were there.
  std::size_t serve(BlockShares& shares, const TraceRequest& request) {
    const std::size_t hits = policy_->resident_run(request.path);
    shares.ask(this, request.path.size(), request.time_ms);
    gone_.clear();
    policy_->serve(
        {request.time_ms, request.path, true, request.input_tokens, request.output_tokens}, &gone_);
    shares.settle(this);
    return hits;
  }
  const policy::BlockPolicy& policy() const { return *policy_; }

 private:
  const std::uint64_t block_pages_;
  std::unique_ptr<policy::BlockPolicy> policy_;
  std::vector<BlockKey> gone_;
};

// What the second tenant does while the first has conversations.
Trace scan(const Trace& beside) {  // prompts that nobody asks for twice
  Trace out;
  BlockKey next = kOthers;
  for (const TraceRequest& request : beside) {
    TraceRequest one{request.time_ms, 16 * kTokensPerBlock, 0, {}};
    for (int i = 0; i < 16; ++i) one.path.push_back(next++);
    for (int n = 0; n < 3; ++n) {
      out.push_back(one);
      for (BlockKey& key : one.path) key += BlockKey{1} << 32;
    }
  }
  return out;
}
Trace loop(const Trace& beside, std::uint64_t prompts) {  // the same ones again and again, in a row
  Trace out;
  std::uint64_t next = 0;
  for (const TraceRequest& request : beside) {
    for (int n = 0; n < 4; ++n) {
      TraceRequest one{request.time_ms, 32 * kTokensPerBlock, 0, {}};
      const BlockKey first = kOthers + next++ % prompts * 32;
      for (BlockKey i = 0; i < 32; ++i) one.path.push_back(first + i);
      out.push_back(one);
    }
  }
  return out;
}

struct Both {
  std::uint64_t first = 0;  // blocks that were there
  std::uint64_t second = 0;
};

// `tenants`: 2, or 1, as if both were one user's.
Both run_both(const char* name, const Trace& first, const Trace& second, unsigned tenants,
              std::uint64_t second_block_pages = 1) {
  BlockShares shares(kCapacity);
  Cache a(name, 1);
  Cache b(name, second_block_pages);
  shares.add(&a, 0);
  shares.add(&b, tenants - 1);
  Both hits;
  std::size_t i = 0;
  std::size_t n = 0;
  while (i < first.size() || n < second.size()) {
    const bool is_second =
        i == first.size() || (n < second.size() && second[n].time_ms < first[i].time_ms);
    (is_second ? hits.second : hits.first) +=
        is_second ? b.serve(shares, second[n++]) : a.serve(shares, first[i++]);
    if ((i + n) % 500 == 0) {
      shares.validate();
      a.policy().validate();
      b.policy().validate();
    }
  }
  shares.validate();
  return hits;
}

std::uint64_t alone(const char* name, const Trace& trace, std::size_t capacity) {
  return run_policy(trace, *make_block_policy(name, capacity)).hit_blocks;
}

// Both in one policy, which knows no tenants: how many of the first one's were there.
std::uint64_t in_one(const char* name, const Trace& first, const Trace& second) {
  const auto policy = make_block_policy(name, kCapacity);
  std::uint64_t hits = 0;
  std::vector<BlockKey> gone;
  std::size_t n = 0;
  for (const TraceRequest& request : first) {
    for (; n < second.size() && second[n].time_ms < request.time_ms; ++n) {
      policy->serve({second[n].time_ms, second[n].path, true, second[n].input_tokens, 0}, &gone);
    }
    hits += policy->resident_run(request.path);
    policy->serve(
        {request.time_ms, request.path, true, request.input_tokens, request.output_tokens}, &gone);
    gone.clear();
  }
  return hits;
}

class EachShared : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Of, EachShared, testing::Values("kvmem", "lru", "lfu-da", "arc", "s3fifo"),
                         [](const auto& of) {
                           std::string name = of.param;
                           std::erase(name, '-');
                           return name;
                         });

// A tolerance of 2 %: blocks of a request are there on credit for a moment.
TEST_P(EachShared, AFloodTakesNothingOfAnothersShare) {
  const char* const name = GetParam();
  const Trace talks = generate_trace(21, 2500);
  const std::uint64_t least = alone(name, talks, kCapacity / 2) * 98 / 100;
  ASSERT_GT(least, 40'000U);
  EXPECT_GE(run_both(name, talks, scan(talks), 2).first, least);
  const Trace greedy = loop(talks, 1000);
  EXPECT_GE(run_both(name, talks, greedy, 2).first, least);
  EXPECT_GE(run_both(name, talks, greedy, 2, 3).first, least) << "blocks of another size";
  EXPECT_LT(in_one(name, talks, greedy), least) << "or it showed nothing";
}

// What comes back soonest is worth most: without shares it would have all.
TEST(Shares, ValueAloneWouldLetOneTenantStarve) {
  const Trace talks = generate_trace(21, 2500);
  const std::uint64_t least = alone("kvmem", talks, kCapacity / 2) * 98 / 100;
  EXPECT_LT(run_both("kvmem", talks, loop(talks, 1000), 1).first, least);
  EXPECT_LT(in_one("lru", talks, scan(talks)), alone("lru", talks, kCapacity / 2) * 98 / 100);
}

TEST_P(EachShared, WhatOneDoesNotUseOthersDo) {
  const char* const name = GetParam();
  const Trace talks = generate_trace(22, 2500);
  constexpr std::size_t kPrompts = 10;
  const Trace little = loop(talks, kPrompts);
  const Both hits = run_both(name, talks, little, 2);
  const std::uint64_t rest = alone(name, talks, kCapacity - kPrompts * 32);
  ASSERT_GT(rest * 98 / 100, alone(name, talks, kCapacity / 2)) << "or it showed nothing";
  EXPECT_GE(hits.first, rest * 98 / 100);
  EXPECT_EQ(hits.second, (little.size() - kPrompts) * 32) << "all but the first time";
}

// The first asks for nothing any more: his share is the others'.
TEST(Shares, WhoHasGoneLosesWhatIsWorthLess) {
  for (const char* name : {"kvmem", "lru"}) {
    Trace gone = generate_trace(23, 600);
    Trace later = generate_trace(24, 2500);
    for (TraceRequest& request : later) {
      request.time_ms += gone.back().time_ms + BlockShares::kActiveMs;
      for (BlockKey& key : request.path) key += kOthers;
    }
    const Both hits = run_both(name, gone, later, 2);
    EXPECT_EQ(hits.first, alone(name, gone, kCapacity)) << name << ": it was alone by then";
    EXPECT_GE(hits.second, alone(name, later, kCapacity) * 95 / 100) << name;
    EXPECT_GT(hits.second, alone(name, later, kCapacity / 2)) << name;
  }
}

}  // namespace
}  // namespace kvmem::sim
