#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "policy/block_shares.h"

namespace kvmem::policy {
namespace {

// A cache whose blocks are worth what the test says, the least goes first.
class Cache final : public BlockShares::Member {
 public:
  explicit Cache(std::uint64_t block_pages = 1) : block_pages_(block_pages) {}

  std::size_t resident_blocks() const override { return values_.size(); }
  std::uint64_t pages_for(std::size_t blocks) const override { return blocks * block_pages_; }
  double next_to_go(std::uint64_t /*now_ms*/) override {
    ++looks;
    return values_.empty() ? std::numeric_limits<double>::infinity() : *values_.begin();
  }
  void set_pages(std::uint64_t pages) override {
    capacity_ = pages / block_pages_;
    shrink();
  }
  void serve(BlockShares& shares, std::size_t blocks, double value, std::uint64_t now_ms = 0) {
    shares.ask(this, blocks, now_ms);
    for (std::size_t i = 0; i < blocks; ++i) values_.insert(value);
    shrink();
    shares.settle(this);
    shares.validate();
  }
  void hold(std::size_t blocks, double value) {  // from before it is a member
    for (std::size_t i = 0; i < blocks; ++i) values_.insert(value);
  }
  std::size_t with(double value) const { return values_.count(value); }

  std::size_t looks = 0;

 private:
  void shrink() {
    while (values_.size() > capacity_) values_.erase(values_.begin());
  }
  const std::uint64_t block_pages_;
  std::size_t capacity_ = SIZE_MAX;
  std::multiset<double> values_;
};

TEST(BlockShares, WhoIsAloneHasAllAndIsNotTouched) {
  BlockShares shares(100);
  Cache a;
  shares.add(&a, 1);
  EXPECT_EQ(shares.pages_of(&a), 100U);
  for (int n = 0; n < 20; ++n) a.serve(shares, 10, n);
  EXPECT_EQ(a.resident_blocks(), 100U);
  EXPECT_EQ(a.looks, 0U);
}

TEST(BlockShares, ATenantGetsHisShareWhateverItIsWorth) {
  BlockShares shares(100);
  Cache rich;
  Cache poor;
  shares.add(&rich, 1);
  shares.add(&poor, 2);
  EXPECT_EQ(shares.share_of(2, 0), 0U) << "he has asked for nothing";
  rich.serve(shares, 100, 9);
  poor.serve(shares, 70, 1);
  EXPECT_EQ(shares.share_of(2, 0), 50U);
  EXPECT_EQ(rich.resident_blocks(), 50U);
  EXPECT_EQ(poor.resident_blocks(), 50U);
  rich.serve(shares, 100, 9);
  EXPECT_EQ(poor.resident_blocks(), 50U);
}

TEST(BlockShares, BeyondTheSharesTheMostValuableStay) {
  BlockShares shares(90);
  Cache a;
  Cache b;
  Cache idle;
  shares.add(&a, 1);
  shares.add(&b, 2);
  shares.add(&idle, 3);
  idle.serve(shares, 1, 0);
  a.serve(shares, 60, 5);  // 30 of them beyond his share, and 29 of them for nobody's
  b.serve(shares, 20, 1);
  EXPECT_EQ(a.resident_blocks(), 60U) << "there is room yet";
  b.serve(shares, 30, 6);
  EXPECT_EQ(b.with(6), 30U);
  EXPECT_EQ(b.with(1), 0U) << "the first to go, once he is beyond his share";
  EXPECT_EQ(a.resident_blocks(), 59U);
  b.serve(shares, 20, 7);
  EXPECT_EQ(b.resident_blocks(), 50U) << "dearer than what the other has beyond his share";
  EXPECT_EQ(a.resident_blocks(), 39U);
  b.serve(shares, 20, 8);
  EXPECT_EQ(a.resident_blocks(), 30U) << "his share";
  EXPECT_EQ(b.resident_blocks(), 59U);
  EXPECT_EQ(idle.resident_blocks(), 1U);
}

TEST(BlockShares, WhoIsNotActiveIsProtectedNoMore) {
  BlockShares shares(100);
  Cache gone;
  Cache here;
  Cache other;
  shares.add(&gone, 1);
  shares.add(&here, 2);
  shares.add(&other, 3);
  gone.serve(shares, 30, 9, 1000);
  gone.serve(shares, 20, 1, 1000);
  here.serve(shares, 100, 5, 1000);
  EXPECT_EQ(gone.resident_blocks(), 50U);
  const std::uint64_t later_ms = 1000 + BlockShares::kActiveMs;
  EXPECT_TRUE(shares.is_active(1, later_ms - 1));
  EXPECT_FALSE(shares.is_active(1, later_ms));
  other.serve(shares, 10, 3, later_ms);
  here.serve(shares, 100, 5, later_ms);
  EXPECT_EQ(shares.share_of(1, later_ms), 0U);
  EXPECT_EQ(shares.share_of(2, later_ms), 50U);
  EXPECT_EQ(gone.with(1), 0U);
  EXPECT_EQ(gone.with(9), 30U) << "worth more than what is asked for beyond a share";
  EXPECT_EQ(here.resident_blocks(), 60U);
  other.serve(shares, 90, 3, later_ms);
  EXPECT_EQ(gone.resident_blocks(), 0U) << "others' shares are all there is";
  EXPECT_EQ(other.resident_blocks(), 50U);
}

TEST(BlockShares, CachesOfOneTenantShareWhatIsHisByValue) {
  BlockShares shares(120);
  Cache small(1);
  Cache large(4);
  Cache other(1);
  shares.add(&small, 1);
  shares.add(&large, 1);
  shares.add(&other, 2);
  other.serve(shares, 60, 9);
  small.serve(shares, 60, 2);
  large.serve(shares, 10, 3);
  EXPECT_EQ(other.resident_blocks(), 60U);
  EXPECT_EQ(large.resident_blocks(), 10U);
  EXPECT_EQ(small.resident_blocks(), 20U);
}

TEST(BlockShares, WhoComesWithBlocksCompetesWithThem) {
  BlockShares shares(100);
  Cache a;
  Cache b;
  a.hold(100, 2);
  shares.add(&a, 1);
  b.hold(40, 3);
  b.hold(40, 1);
  shares.add(&b, 2);
  EXPECT_EQ(b.with(3), 40U);
  EXPECT_EQ(b.with(1), 0U);
  EXPECT_EQ(a.resident_blocks(), 60U);
  shares.validate();
  shares.remove(&a);
  EXPECT_EQ(shares.pages_of(&b), 100U);
  shares.validate();
}

// Tenants at random: no one who asked for his share has less of it, but for part of a block.
TEST(BlockShares, NobodyIsPushedBelowHisShare) {
  for (unsigned seed = 1; seed <= 60; ++seed) {
    std::mt19937 random(seed);
    const std::uint64_t pages = 50 + random() % 400;
    BlockShares shares(pages);
    struct Tenant {
      std::vector<std::unique_ptr<Cache>> caches;
      std::uint64_t most_asked = 0;
    };
    std::map<BlockShares::Tenant, Tenant> tenants;
    std::map<Cache*, std::uint64_t> block_pages;
    for (BlockShares::Tenant t = 0; t < 2 + seed % 4; ++t) {
      for (unsigned n = 0; n <= random() % 2; ++n) {
        const std::uint64_t size = 1 + random() % 5;
        tenants[t].caches.push_back(std::make_unique<Cache>(size));
        block_pages[tenants[t].caches.back().get()] = size;
        shares.add(tenants[t].caches.back().get(), t);
      }
    }
    const auto used = [&](const Tenant& tenant) {
      std::uint64_t sum = 0;
      for (const auto& cache : tenant.caches) sum += cache->pages_for(cache->resident_blocks());
      return sum;
    };
    for (int n = 0; n < 400; ++n) {
      Tenant& asks = tenants[random() % tenants.size()];
      Cache& cache = *asks.caches[random() % asks.caches.size()];
      std::map<const Tenant*, std::uint64_t> before;
      for (auto& [t, tenant] : tenants) before[&tenant] = used(tenant);
      const std::size_t blocks = random() % 60;
      cache.serve(shares, blocks, random() % 100);
      std::uint64_t total = 0;
      for (auto& [t, tenant] : tenants) {
        total += used(tenant);
        if (&tenant == &asks) continue;
        const std::uint64_t share = shares.share_of(t, 0);
        EXPECT_LE(used(tenant), before[&tenant]);
        EXPECT_GE(used(tenant) + 4, std::min(before[&tenant], share)) << seed << ' ' << n;
      }
      const std::uint64_t wants = before[&asks] + cache.pages_for(blocks);
      EXPECT_GE(used(asks) + 4, std::min(wants, pages / tenants.size())) << seed << ' ' << n;
      EXPECT_LE(total, pages);
      ASSERT_FALSE(testing::Test::HasFailure());
    }
  }
}

}  // namespace
}  // namespace kvmem::policy
