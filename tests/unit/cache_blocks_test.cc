// The block cache's claims, on a simulated disk: never a wrong byte, whoever asks, whatever fails.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <set>

#include "cache/block_cache.h"
#include "tests/unit/sim_disk.h"

namespace kvmem::cache {
namespace {

using test::SimDisk;
using test::SimLoop;
using test::SimMedia;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kBlockBytes = 2 * kPage + 100;  // three pages, the last one not full
constexpr Identity kModel{1, 2};

// What a name's bytes are, of a user and a model.
std::vector<std::byte> bytes_of(std::uint32_t uid, const Identity& model, wire::BlockName name) {
  std::vector<std::byte> bytes(kBlockBytes);
  test::Random random(name.lo * 1000003 + name.hi * 7919 + uid * 104729 + model.lo);
  for (std::uint64_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const std::uint64_t word = random.next();
    std::memcpy(bytes.data() + i, &word, 8);
  }
  return bytes;
}

// Time passes whenever somebody looks at the clock.
std::uint64_t g_now_ns = 0;
std::uint64_t g_look_ns = 0;

// One daemon after another over one disk.
class Machine {
 public:
  explicit Machine(std::uint64_t seed = 1) : media_(seed, 0, true), loop_(media_) {
    options_.block_bytes = kBlockBytes;
    options_.page_bytes = kPage;
    options_.slots_max = 64;
    options_.slots = 16;
    options_.stored_blocks = 100;
    options_.policy = "lru";
    g_now_ns = 1'000'000'000;
    g_look_ns = 1'000'000;
    options_.now_ns = [] { return g_now_ns += g_look_ns; };
    boot();
  }
  ~Machine() { shut_down(); }

  CacheOptions& options() { return options_; }
  SimMedia& media() { return media_; }
  SimLoop& loop() { return loop_; }
  BlockCache& cache() { return *cache_; }
  policy::WriteBudget& write_budget() { return shared_->budget; }
  Room& room() { return shared_->room; }
  policy::BlockShares& dram_shares() { return shared_->dram; }
  Records& records() { return *records_; }

  void boot(bool has_store = true) {
    media_.power_on();
    if (has_store) {
      tier::StoreOptions options;
      options.page_bytes = kPage;
      options.slots_per_segment = 8;
      options.capacity_bytes = std::uint64_t{8} << 20;
      options.boot_id[0] = 1;
      const test::SimFaults faults =
          std::exchange(media_.faults, {});  // a start that fails is none
      auto store = tier::Store::open(std::make_unique<SimDisk>(media_, loop_), loop_, options);
      media_.faults = faults;
      ASSERT_TRUE(store.ok()) << store.status().what();
      store_ = *std::move(store);
    }
    records_ = std::make_unique<Records>(store_.get(), options_.stored_blocks * 3);
    open_cache();
  }
  void open_cache() {
    auto history =
        history_path_.empty()
            ? nullptr
            : std::make_unique<History>(history_path_, History::Owner{0, kBlockBytes}, 1000, loop_);
    auto cache = BlockCache::create(options_, loop_, *records_, std::move(history));
    ASSERT_TRUE(cache.ok()) << cache.status().what();
    cache_ = *std::move(cache);
    records_->trim();
  }
  // From now on, as the daemon: what DRAM and the store hold is several users'.
  void share() {
    close_cache();
    shared_ = std::make_unique<Shared>(options_);
    options_.dram_shares = &shared_->dram;
    options_.store_shares = &shared_->store;
    options_.room = &shared_->room;
    options_.write_budget = &shared_->budget;
    open_cache();
  }
  void open_another(std::uint32_t uid) {
    CacheOptions options = options_;
    options.uid = uid;
    auto cache = BlockCache::create(options, loop_, *records_, nullptr);
    ASSERT_TRUE(cache.ok()) << cache.status().what();
    another_ = *std::move(cache);
  }
  // cache() is the other one.
  void swap() { std::swap(cache_, another_); }
  bool has_another() const { return another_ != nullptr; }
  void remember() {
    history_path_ = testing::TempDir() + "block_cache_" + std::to_string(::getpid());
  }
  void close_cache() {
    cache_->stop();
    if (another_ != nullptr) another_->stop();
    settle();
    cache_.reset();
    another_.reset();
    if (shared_ != nullptr) {
      EXPECT_EQ(shared_->room.held(), 0U);
    }
  }
  void shut_down() {
    if (cache_ != nullptr) close_cache();
    records_.reset();
    store_.reset();
  }
  void restart(bool host_dies) {
    loop_.end_now(host_dies);
    shut_down();
    // A store that lost both superblocks is refused for good: its owner takes another file.
    constexpr std::uint64_t kSuperblocksBytes = 8192;
    for (const test::ByteRange& d : media_.damage) {
      if (!d.overlaps(0, kSuperblocksBytes)) continue;
      media_.replace();
      break;
    }
    boot();
  }
  void settle() {
    while (loop_.step()) {
    }
    validate();
  }
  void validate() {
    cache_->validate();
    if (another_ != nullptr) another_->validate();
    if (shared_ == nullptr) return;
    shared_->dram.validate();
    shared_->store.validate();
    shared_->budget.validate();
  }
  void sync() {
    tier::SyncOp op;
    op.done = [](tier::SyncOp*, Status) {};
    store_->sync(&op);
    settle();
  }
  // A bit of everything the store holds.
  void damage_all() {
    for (std::uint64_t at = 4096; at < media_.size_bytes(); at += 512) media_.flip_bit(at, 3);
  }

 private:
  struct Shared {
    explicit Shared(const CacheOptions& options)
        : dram(options.slots * 3), store(options.stored_blocks * 3), room(options.slots * 3) {}
    policy::BlockShares dram;
    policy::BlockShares store;
    Room room;
    policy::WriteBudget budget;
  };
  CacheOptions options_;
  std::unique_ptr<Shared> shared_;
  std::string history_path_;
  SimMedia media_;
  SimLoop loop_;
  std::unique_ptr<tier::Store> store_;
  std::unique_ptr<Records> records_;
  std::unique_ptr<BlockCache> cache_;
  std::unique_ptr<BlockCache> another_;
};

std::vector<wire::BlockName> path_of(std::uint64_t conversation, std::size_t length) {
  std::vector<wire::BlockName> path;
  for (std::size_t i = 0; i < length; ++i) path.push_back({conversation, i});
  return path;
}

// A request as an engine makes it.
class Request {
 public:
  enum class Asks { kBegin, kPlan, kPlanAndOverlap };
  Request(Machine& machine, std::vector<wire::BlockName> path, Identity model = kModel,
          Asks asks = Asks::kBegin)
      : machine_(machine), cache_(machine.cache()), names_(std::move(path)) {
    lease_.identity = model;
    lease_.may_compute = asks != Asks::kBegin;
    lease_.overlaps = asks == Asks::kPlanAndOverlap;
    lease_.context = this;
    lease_.done = [](BlockCache::Lease* lease) {
      static_cast<Request*>(lease->context)->is_done = true;
    };
    cache_.begin(&lease_, names_);
  }
  // Leases are owned by what may outlive the cache here: end() is said, or the cache is gone.
  void end() { cache_.end(&lease_); }

  std::size_t run() {
    while (!is_done && machine_.loop().step()) {
    }
    EXPECT_TRUE(is_done);
    for (std::size_t i = 0; i < lease_.slots.size(); ++i) {
      EXPECT_TRUE(is_right(i)) << "block " << i;
    }
    EXPECT_TRUE(lease_.slots.empty() || lease_.slots.back() != BlockCache::kNoSlot);
    return lease_.slots.size();
  }
  const BlockCache::Lease& lease() const { return lease_; }
  bool is_right(std::size_t i) const {
    if (lease_.slots[i] == BlockCache::kNoSlot) return lease_.may_compute;
    const auto want = bytes_of(cache_.options().uid, lease_.identity, names_[i]);
    const std::byte* have = cache_.memory().data() + lease_.slots[i] * cache_.slot_bytes();
    return std::memcmp(have, want.data(), want.size()) == 0;
  }
  bool all_right() const {
    for (std::size_t i = 0; i < lease_.slots.size(); ++i) {
      if (!is_right(i)) return false;
    }
    return true;
  }
  // The rest of the path, as computed.
  void put_rest(std::size_t from) {
    for (std::size_t i = 0; i < lease_.slots.size(); ++i) {
      if (lease_.slots[i] == BlockCache::kNoSlot) put(i);
    }
    for (std::size_t i = from; i < names_.size(); ++i) put(i);
  }
  Code put(std::size_t i) {
    const auto bytes = bytes_of(cache_.options().uid, lease_.identity, names_[i]);
    struct Op : BlockCache::Put {
      bool is_done = false;
      Status status;
    } op;
    op.identity = lease_.identity;
    op.name = names_[i];
    op.bytes = bytes.data();
    op.done = [](BlockCache::Put* self, Status status) {
      static_cast<Op*>(self)->status = status;
      static_cast<Op*>(self)->is_done = true;
    };
    cache_.put(&op);
    while (!op.is_done && machine_.loop().step()) {
    }
    EXPECT_TRUE(op.is_done);
    return op.status.code();
  }

  bool is_done = false;

 private:
  Machine& machine_;
  BlockCache& cache_;
  const std::vector<wire::BlockName> names_;
  BlockCache::Lease lease_;
};

void serve(Machine& machine, const std::vector<wire::BlockName>& path) {
  Request request(machine, path);
  request.put_rest(request.run());
  request.end();
}

TEST(BlockCache, HandsOutWhatWasPut) {
  Machine machine;
  const auto path = path_of(1, 5);
  {
    Request first(machine, path);
    EXPECT_EQ(first.run(), 0U);
    EXPECT_EQ(machine.cache().contains(kModel, path), 0U) << "announced, not put";
    for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(first.put(i), Code::kOk);
    first.end();
  }
  EXPECT_EQ(machine.cache().contains(kModel, path), 3U);
  EXPECT_EQ(machine.cache().contains(kModel, path_of(2, 5)), 0U);
  Request second(machine, path);
  EXPECT_TRUE(second.is_done) << "all is in DRAM";
  EXPECT_EQ(second.run(), 3U);
  EXPECT_EQ(machine.cache().stats().hits_dram, 3U);
  EXPECT_EQ(machine.cache().stats().leased, 3U);
  EXPECT_EQ(second.put(1), Code::kOk) << "known";
  EXPECT_EQ(machine.cache().stats().puts, 3U);
  second.end();
  EXPECT_EQ(machine.cache().stats().leased, 0U);
}

TEST(BlockCache, IsNotTakenByWhoDidNotAnnounceIt) {
  Machine machine;
  Request request(machine, path_of(1, 1));
  EXPECT_EQ(request.run(), 0U);
  Request other(machine, path_of(2, 1));
  EXPECT_EQ(other.put(0), Code::kOk);
  machine.options().slots = 1;
  // Of a path that was never begun.
  Machine fresh;
  BlockCache::Put put;
  const auto bytes = bytes_of(0, kModel, {9, 9});
  static Code code;
  put.identity = kModel;
  put.name = {9, 9};
  put.bytes = bytes.data();
  put.done = [](BlockCache::Put*, Status status) { code = status.code(); };
  fresh.cache().put(&put);
  EXPECT_EQ(code, Code::kNoSpace);
  request.end();
  other.end();
}

TEST(BlockCache, ComesBackFromTheStore) {
  for (const bool write_through : {true, false}) {
    Machine machine;
    machine.close_cache();
    machine.options().write_through = write_through;
    machine.open_cache();
    for (std::uint64_t c = 0; c < 12; ++c) serve(machine, path_of(c, 4));
    machine.settle();
    EXPECT_LE(machine.cache().stats().ready, 16U);
    EXPECT_EQ(machine.cache().contains(kModel, path_of(0, 4)), 4U);
    Request again(machine, path_of(0, 4));
    EXPECT_EQ(again.run(), 4U);
    again.end();
    machine.settle();
    EXPECT_EQ(machine.cache().stats().hits_stored, 4U);
    const CacheStats stats = machine.cache().stats();
    EXPECT_EQ(stats.written, write_through ? 48U : 48U - stats.ready + 4U)
        << "what DRAM alone holds is not written before it has to go";
  }
}

TEST(BlockCache, OutlivesTheDaemonAndTheHost) {
  Machine machine;
  for (std::uint64_t c = 0; c < 5; ++c) serve(machine, path_of(c, 4));
  machine.sync();
  for (const bool host_dies : {false, true}) {
    machine.restart(host_dies);
    EXPECT_EQ(machine.records().pages_left(), 60U);
    for (std::uint64_t c = 0; c < 5; ++c) {
      EXPECT_EQ(machine.cache().contains(kModel, path_of(c, 6)), 4U);
      EXPECT_EQ(machine.cache().contains({1, 3}, path_of(c, 6)), 0U) << "another model";
    }
    Request request(machine, path_of(3, 6));
    EXPECT_EQ(request.run(), 4U);
    request.end();
    EXPECT_EQ(machine.records().pages_left(), 48U);
  }
  machine.shut_down();
  machine.options().uid = 7;
  machine.boot();
  EXPECT_EQ(machine.cache().contains(kModel, path_of(3, 4)), 0U) << "another user";
}

TEST(BlockCache, LeftBlocksGiveWayToNewOnes) {
  Machine machine;
  for (std::uint64_t c = 0; c < 20; ++c) serve(machine, path_of(c, 5));
  machine.settle();
  EXPECT_EQ(machine.cache().stats().stored, 100U);
  machine.restart(false);
  for (std::uint64_t c = 100; c < 104; ++c) serve(machine, path_of(c, 5));
  machine.settle();
  EXPECT_EQ(machine.records().pages_used(), 300U);
  EXPECT_EQ(machine.records().pages_left(), 240U);
  for (std::uint64_t c = 100; c < 104; ++c) {
    EXPECT_EQ(machine.cache().contains(kModel, path_of(c, 5)), 5U);
  }
}

// Released records come back with a restart, and what is worth most may be the oldest.
TEST(BlockCache, KnowsWhatIsWorthItsPlaceAfterARestart) {
  for (const bool remembers : {true, false}) {
    Machine machine;
    if (remembers) {
      machine.remember();
      machine.close_cache();
      machine.open_cache();
    }
    for (std::uint64_t c = 0; c < 60; ++c) {
      serve(machine, path_of(1000, 2));
      serve(machine, path_of(c, 4));
      machine.settle();
    }
    machine.cache().tick();
    machine.settle();
    EXPECT_EQ(machine.cache().stats().stored, 100U);
    machine.restart(false);
    EXPECT_EQ(machine.cache().contains(kModel, path_of(1000, 2)), remembers ? 2U : 0U);
    std::size_t here = 0;
    for (std::uint64_t c = 0; c < 60; ++c) here += machine.cache().contains(kModel, path_of(c, 4));
    EXPECT_EQ(here, remembers ? 98U : 100U);
    if (!remembers) continue;
    EXPECT_EQ(machine.cache().stats().stored, 100U) << "nobody has asked yet";
    EXPECT_EQ(machine.cache().stats().requests, 0U);
    // The next request may be of an earlier time than the last one.
    serve(machine, path_of(1000, 2));
    machine.cache().forget();
  }
}

TEST(BlockCache, KeepsALeasedBlockHoweverManyCome) {
  Machine machine;
  serve(machine, path_of(0, 4));
  Request held(machine, path_of(0, 4));
  EXPECT_EQ(held.run(), 4U);
  for (std::uint64_t c = 1; c < 40; ++c) serve(machine, path_of(c, 4));
  machine.settle();
  EXPECT_TRUE(held.all_right());
  EXPECT_EQ(machine.cache().stats().leased, 4U);
  held.end();
  machine.cache().validate();
}

TEST(BlockCache, SaysNoWhereNoSlotIsFree) {
  Machine machine;
  serve(machine, path_of(0, 13));
  Request held(machine, path_of(0, 13));
  EXPECT_EQ(held.run(), 13U);
  Request more(machine, path_of(1, 6));
  EXPECT_EQ(more.run(), 0U);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(more.put(i), Code::kOk);
  EXPECT_EQ(more.put(3), Code::kOk) << "what DRAM only keeps for later gives way";
  machine.settle();
  Request rest(machine, path_of(1, 4));
  EXPECT_EQ(rest.run(), 3U) << "all others are leased";
  EXPECT_EQ(more.put(4), Code::kNoMemory);
  rest.end();
  held.end();
  machine.settle();
  EXPECT_EQ(more.put(4), Code::kOk);
  more.end();
  machine.settle();
  // What DRAM has no slots for comes as far as there are some.
  Request first(machine, path_of(0, 13));
  EXPECT_EQ(first.run(), 13U);
  Request second(machine, path_of(1, 4));
  EXPECT_LT(second.run(), 4U);
  first.end();
  second.end();
}

TEST(BlockCache, DropsWhatDoesNotVerify) {
  Machine machine;
  serve(machine, path_of(0, 4));
  machine.sync();
  machine.restart(false);
  machine.damage_all();
  Request request(machine, path_of(0, 4));
  EXPECT_EQ(request.run(), 0U);
  EXPECT_EQ(machine.cache().stats().read_errors, 4U);
  EXPECT_EQ(machine.cache().contains(kModel, path_of(0, 4)), 0U);
  request.put_rest(0);
  EXPECT_EQ(machine.cache().contains(kModel, path_of(0, 4)), 4U);
  request.end();
}

TEST(BlockCache, WorksWithoutAStore) {
  Machine machine;
  machine.shut_down();
  machine.boot(false);
  for (std::uint64_t c = 0; c < 12; ++c) serve(machine, path_of(c, 4));
  EXPECT_EQ(machine.cache().contains(kModel, path_of(0, 4)), 0U);
  EXPECT_EQ(machine.cache().contains(kModel, path_of(11, 4)), 4U);
  EXPECT_EQ(machine.cache().stats().stored, 0U);
}

TEST(BlockCache, EndsARequestThatStillWaits) {
  Machine machine;
  serve(machine, path_of(0, 4));
  machine.sync();
  machine.restart(false);
  Request request(machine, path_of(0, 4));
  EXPECT_FALSE(request.is_done);
  request.end();
  machine.settle();
  EXPECT_TRUE(request.is_done);
  EXPECT_EQ(machine.cache().stats().leased, 0U);
  EXPECT_EQ(machine.cache().contains(kModel, path_of(0, 4)), 4U);
}

TEST(BlockCache, TakesAnotherCapacity) {
  Machine machine;
  for (std::uint64_t c = 0; c < 4; ++c) serve(machine, path_of(c, 4));
  machine.settle();
  machine.cache().set_capacity(4, 6);
  machine.settle();
  CacheStats stats = machine.cache().stats();
  EXPECT_LE(stats.slots_used, 4U);
  EXPECT_EQ(stats.stored, 6U);
  machine.cache().set_capacity(64, 100);
  for (std::uint64_t c = 10; c < 20; ++c) serve(machine, path_of(c, 4));
  machine.settle();
  stats = machine.cache().stats();
  EXPECT_GE(stats.ready, 40U);
  EXPECT_EQ(stats.stored, 46U);
}

// Less DRAM than there is to serve, so that most of it is stored alone.
void serve_many(Machine& machine, std::uint64_t slots, std::uint64_t conversations,
                std::size_t length) {
  machine.shut_down();
  machine.options().slots = slots;
  machine.boot();
  for (std::uint64_t c = 0; c < conversations; ++c) serve(machine, path_of(c, length));
}
// What is stored alone, and nowhere in DRAM.
void store_alone(Machine& machine, std::size_t length) {
  serve(machine, path_of(0, length));
  machine.sync();
  machine.restart(false);
}

TEST(BlockCache, ReadsAllUntilItKnowsWhatComputingTakes) {
  Machine machine;
  store_alone(machine, 5);
  Request request(machine, path_of(0, 6), kModel, Request::Asks::kPlan);
  EXPECT_EQ(request.lease().slots, std::vector<std::uint32_t>(5, BlockCache::kNoSlot)) << "at once";
  EXPECT_EQ(request.lease().compute_end, 0U);
  EXPECT_FALSE(request.is_done);
  EXPECT_EQ(request.run(), 5U);
  EXPECT_EQ(request.lease().restored, 5U);
  request.end();
  Request again(machine, path_of(0, 6), kModel, Request::Asks::kPlan);
  EXPECT_TRUE(again.is_done);
  EXPECT_EQ(again.run(), 5U);
  again.end();
  const CacheStats stats = machine.cache().stats();
  EXPECT_EQ(stats.choices, (std::array<std::uint64_t, 3>{1, 0, 0})) << "in DRAM is no choice";
  EXPECT_FALSE(machine.cache().last_choice().is_known);
  EXPECT_EQ(machine.cache().last_choice().stored, 5U);
}

TEST(BlockCache, LeavesToTheEngineWhatItComputesSooner) {
  Machine machine;
  serve_many(machine, 4, 8, 3);
  serve(machine, path_of(0, 3));  // reads: they are known to take milliseconds now
  serve(machine, path_of(5, 3));
  machine.cache().computed(kModel, 0, 3, 3'000);
  const std::uint64_t read = machine.cache().stats().read;
  {
    Request request(machine, path_of(1, 3), kModel, Request::Asks::kPlan);
    EXPECT_EQ(request.lease().compute_end, 3U);
    EXPECT_TRUE(request.is_done);
    EXPECT_EQ(request.run(), 0U) << "none is in DRAM";
    request.put_rest(0);
    request.end();
  }
  Request other(machine, path_of(1, 3), Identity{1, 9}, Request::Asks::kPlan);
  EXPECT_EQ(other.run(), 0U) << "another model has not these blocks";
  other.end();
  CacheStats stats = machine.cache().stats();
  EXPECT_EQ(stats.left_to_compute, 3U);
  EXPECT_EQ(stats.hits_lost, 0U);
  EXPECT_EQ(stats.read, read);
  EXPECT_EQ(stats.choices[1], 1U);
  EXPECT_EQ(machine.cache().last_choice().choice.kind, policy::RestoreKind::kCompute);

  // What is not read for a while may have changed: some are read, and nobody waits for them.
  g_now_ns += 2'000'000'000;
  {
    Request request(machine, path_of(1, 3), kModel, Request::Asks::kPlan);
    EXPECT_EQ(request.lease().compute_end, 3U);
    EXPECT_TRUE(request.is_done);
    EXPECT_EQ(request.run(), 0U);
    request.end();
  }
  machine.settle();
  EXPECT_GT(machine.cache().stats().read, read);
  {
    Request request(machine, path_of(1, 3), kModel, Request::Asks::kPlan);
    EXPECT_TRUE(request.is_done);
    EXPECT_EQ(request.run(), 3U) << "the last of them is in DRAM now";
    EXPECT_EQ(request.lease().slots[0], BlockCache::kNoSlot);
    request.end();
  }

  // Computing has become slow: they are read again.
  for (int n = 0; n < 100; ++n) machine.cache().computed(kModel, 0, 3, 60'000'000'000);
  Request request(machine, path_of(2, 3), kModel, Request::Asks::kPlan);
  EXPECT_EQ(request.lease().compute_end, 0U);
  EXPECT_EQ(request.run(), 3U);
  request.end();
}

TEST(BlockCache, ForgetsWhatComputingTookBeyondSomeModels) {
  Machine machine;
  serve_many(machine, 4, 8, 3);
  serve(machine, path_of(0, 3));
  const auto is_known = [&] {
    Request request(machine, path_of(1, 3), kModel, Request::Asks::kPlan);
    const std::size_t end = request.lease().compute_end;
    EXPECT_EQ(request.run(), end == 0 ? 3U : 0U);
    request.end();
    return end == 3;
  };
  machine.cache().computed(kModel, 0, 3, 3'000);
  EXPECT_TRUE(is_known());
  for (std::uint64_t n = 0; n < 1000; ++n) machine.cache().computed({100 + n, 0}, 0, 3, 3'000);
  EXPECT_FALSE(is_known()) << "and all is read";
  serve(machine, path_of(7, 3));
  serve(machine, path_of(6, 3));
  machine.cache().computed(kModel, 0, 3, 3'000);
  EXPECT_TRUE(is_known());
}

TEST(BlockCache, ComputesTheFirstAndReadsTheRest) {
  Machine machine;
  serve_many(machine, 12, 6, 10);
  serve(machine, path_of(0, 10));
  Request learns(machine, path_of(1, 10), kModel, Request::Asks::kPlan);
  EXPECT_EQ(learns.run(), 10U);
  learns.end();
  machine.settle();
  EXPECT_EQ(machine.cache().last_choice().choice.read_ns, 0) << "not known yet";
  // A block takes as long to compute as to read: half of each, at once.
  machine.cache().computed(kModel, 0, 10, 10 * 3 * 2'000'000);
  Request request(machine, path_of(2, 10), kModel, Request::Asks::kPlanAndOverlap);
  const std::size_t end = request.lease().compute_end;
  EXPECT_GT(end, 1U);
  EXPECT_LT(end, 10U);
  EXPECT_FALSE(request.is_done);
  EXPECT_EQ(request.run(), 10U);
  for (std::size_t i = 0; i < 10; ++i) {
    EXPECT_EQ(request.lease().slots[i] == BlockCache::kNoSlot, i < end) << i;
  }
  EXPECT_EQ(request.lease().restored, 10 - end);
  request.end();
  EXPECT_EQ(machine.cache().stats().choices[2], 1U);
}

std::size_t blocks_there(Machine& machine, std::uint64_t conversations, std::size_t length) {
  std::size_t there = 0;
  for (std::uint64_t c = 0; c < conversations; ++c) {
    there += machine.cache().contains(kModel, path_of(c, length));
  }
  return there;
}

TEST(BlockCache, AnothersFloodTakesNoMoreThanWhatIsBeyondTheShare) {
  Machine machine;
  machine.share();
  for (std::uint64_t c = 0; c < 25; ++c) serve(machine, path_of(c, 4));
  machine.settle();
  EXPECT_EQ(machine.cache().stats().stored, 100U) << "alone it has all";
  machine.open_another(7);
  machine.swap();
  for (std::uint64_t c = 0; c < 60; ++c) {
    serve(machine, path_of(c, 4));
    machine.validate();
  }
  machine.settle();
  EXPECT_EQ(machine.cache().stats().stored, 50U);
  const std::uint64_t slots = machine.cache().options().slots;
  EXPECT_LE(machine.cache().stats().slots_used, slots);
  machine.swap();
  EXPECT_EQ(machine.cache().stats().stored, 50U);
  EXPECT_EQ(machine.cache().options().slots + slots, 16U);
  EXPECT_NEAR(static_cast<double>(slots), 8, 1) << "a block more takes two: one is for leases";
  EXPECT_EQ(blocks_there(machine, 25, 4), 50U);
  // It asks for no more: but what it has is its own.
  machine.swap();
  for (std::uint64_t c = 100; c < 160; ++c) serve(machine, path_of(c, 4));
  machine.swap();
  EXPECT_EQ(blocks_there(machine, 25, 4), 50U);
}

// Nobody's pages are made before another's are given back; what waits for them comes then.
TEST(BlockCache, DramThatChangesHandsIsNeverMoreThanThereIs) {
  Machine machine;
  machine.share();
  for (std::uint64_t c = 0; c < 6; ++c) serve(machine, path_of(c, 2));
  machine.settle();
  machine.open_another(7);
  machine.swap();
  serve(machine, path_of(9, 4));
  machine.settle();
  std::vector<std::unique_ptr<Request>> held;
  machine.swap();
  for (std::uint64_t c = 0; c < 6; ++c) {
    held.push_back(std::make_unique<Request>(machine, path_of(c, 2)));
    held.back()->run();
  }
  machine.swap();
  for (std::uint64_t c = 10; c < 14; ++c) {
    Request request(machine, path_of(c, 2));
    request.put_rest(request.run());  // as many as there is room for
    request.end();
    EXPECT_LE(machine.room().held(), machine.room().pages());
    machine.validate();
  }
  const std::uint64_t refused = machine.cache().stats().puts_refused;
  machine.swap();
  for (auto& request : held) {
    EXPECT_TRUE(request->all_right()) << "leased: it cannot be taken";
    request->end();
  }
  machine.settle();
  machine.swap();
  for (std::uint64_t c = 20; c < 22; ++c) serve(machine, path_of(c, 3));
  machine.settle();
  EXPECT_EQ(machine.cache().stats().puts_refused, refused) << "there is room again";
  EXPECT_EQ(machine.cache().contains(kModel, path_of(21, 3)), 3U);
}

TEST(BlockCache, WritesNoMoreThanItsBudget) {
  for (const bool write_through : {true, false}) {
    Machine machine;
    machine.options().write_through = write_through;
    machine.share();
    const std::uint64_t slot = machine.cache().slot_bytes();
    // One block comes in with each ten of the milliseconds that pass at a look at the clock.
    constexpr double kPerMs = 0.1;
    machine.write_budget().pass_time(g_now_ns / 1'000'000);
    machine.write_budget().set_rate(kPerMs * static_cast<double>(slot), 100);  // 10 blocks saved
    const std::uint64_t begin_ms = g_now_ns / 1'000'000;
    for (std::uint64_t c = 0; c < 60; ++c) {
      serve(machine, path_of(c, 4));
      machine.settle();
      const CacheStats stats = machine.cache().stats();
      const auto passed = static_cast<double>(g_now_ns / 1'000'000 - begin_ms);
      ASSERT_LE(static_cast<double>(stats.written), 10 + passed * kPerMs + 1);
      ASSERT_EQ(machine.write_budget().spent_bytes(), stats.written * slot);
    }
    const CacheStats stats = machine.cache().stats();
    const auto passed = static_cast<double>(g_now_ns / 1'000'000 - begin_ms);
    EXPECT_GT(static_cast<double>(stats.written), passed * kPerMs / 2) << "and not much less";
    EXPECT_LT(stats.written, 200U) << "or it was none";
    EXPECT_GE(stats.write_budget_refused, 240 - stats.written - 16);
    EXPECT_EQ(stats.puts, 240U) << "what is not written is in DRAM";
    EXPECT_EQ(stats.puts_refused, 0U);
    EXPECT_EQ(machine.cache().contains(kModel, path_of(59, 4)), 4U);
    // All that is there is in DRAM or was written.
    EXPECT_LE(blocks_there(machine, 60, 4), stats.ready + stats.stored);
    EXPECT_LE(stats.stored, stats.written);
  }
}

// What an earlier daemon has written needs no budget to stay.
TEST(BlockCache, WhatIsStoredIsKeptWithoutABudget) {
  Machine machine;
  machine.options().policy = "kvmem";
  machine.remember();
  machine.share();
  for (std::uint64_t c = 0; c < 10; ++c) serve(machine, path_of(c, 4));
  machine.settle();
  EXPECT_EQ(machine.cache().stats().stored, 40U);
  machine.write_budget().pass_time(g_now_ns / 1'000'000);
  machine.write_budget().set_rate(1e-6, 1);  // nothing at all
  machine.cache().tick();
  machine.settle();
  machine.restart(false);
  EXPECT_EQ(machine.cache().stats().stored, 40U);
  EXPECT_EQ(machine.cache().stats().write_budget_refused, 0U) << "nobody has asked yet";
  for (std::uint64_t c = 0; c < 10; ++c) serve(machine, path_of(c, 5));
  machine.settle();
  const CacheStats stats = machine.cache().stats();
  EXPECT_EQ(stats.stored, 40U);
  EXPECT_EQ(stats.written, 0U);
  EXPECT_EQ(stats.hits_stored, 40U);
  EXPECT_EQ(stats.write_budget_refused, 10U);
  machine.cache().forget();
}

// Requests, deaths and failures in any order: what is leased has its name's bytes, always.
TEST(BlockCache, NeverAWrongByte) {
  const char* const policies[] = {"kvmem", "lru", "lfu-da", "arc", "s3fifo"};
  std::uint64_t hits = 0, computed = 0;
  for (std::uint64_t seed = 1; seed <= 150; ++seed) {
    SCOPED_TRACE(seed);
    Machine machine(seed);
    test::Random random(seed);
    machine.close_cache();
    machine.options().policy = policies[random.below(std::size(policies))];
    machine.options().write_through = random.one_in(2);
    machine.options().slots = 4 + random.below(20);
    machine.options().stored_blocks = 10 + random.below(60);
    if (random.one_in(2)) machine.remember();
    machine.open_cache();
    const bool is_shared = random.one_in(2);
    if (is_shared) {
      machine.share();
      if (random.one_in(2)) {
        machine.write_budget().pass_time(g_now_ns / 1'000'000);
        machine.write_budget().set_rate(
            static_cast<double>(random.below(200)),
            static_cast<double>(machine.cache().slot_bytes() * (1 + random.below(10))));
      }
    }
    if (random.one_in(2)) {
      test::SimFaults& faults = machine.media().faults;
      faults.read_flip = faults.read_elsewhere = 40;
      faults.read_error = faults.write_error = faults.no_space = faults.short_io = 60;
      faults.sync_error = 30;
      faults.misdirect = faults.flip = 20;
    }
    std::vector<std::unique_ptr<Request>> open;
    const Identity models[] = {kModel, {1, 9}};
    for (int n = 0; n < 120; ++n) {
      switch (random.below(12)) {
        default: {
          g_look_ns = random.one_in(8) ? 500'000'000 : 1'000'000;
          const Identity& model = models[random.below(2)];
          const std::uint64_t left = machine.cache().stats().left_to_compute;
          auto request =
              std::make_unique<Request>(machine, path_of(random.below(9), 1 + random.below(8)),
                                        model, static_cast<Request::Asks>(random.below(3)));
          if (random.one_in(3)) {
            machine.cache().computed(
                model, random.below(4), random.below(4),
                (random.one_in(8) ? 1'000'000'000 : 1'000'000) * random.below(20));
          }
          computed += machine.cache().stats().left_to_compute - left;
          const std::size_t run = request->run();
          hits += run;
          if (!random.one_in(4)) request->put_rest(run);
          open.push_back(std::move(request));
          break;
        }
        case 0:
        case 1:
        case 2:
          if (open.empty()) break;
          std::swap(open[random.below(open.size())], open.back());
          ASSERT_TRUE(open.back()->all_right());
          open.back()->end();
          open.pop_back();
          break;
        case 3:
          for (std::uint64_t steps = random.below(30); steps > 0; --steps) machine.loop().step();
          break;
        case 4:
          if (!is_shared) {
            machine.cache().set_capacity(2 + random.below(24), 5 + random.below(60));
          } else if (machine.has_another()) {
            machine.swap();
          } else {
            machine.open_another(9);
          }
          break;
        case 5:
          if (!random.one_in(3)) break;
          for (auto& request : open) {
            ASSERT_TRUE(request->all_right());
            request->end();
          }
          open.clear();
          machine.restart(random.one_in(2));
          break;
      }
      machine.validate();
      ASSERT_FALSE(testing::Test::HasFailure());
    }
    for (auto& request : open) {
      ASSERT_TRUE(request->all_right());
      request->end();
    }
    machine.settle();
    machine.cache().forget();
  }
  EXPECT_GT(hits, 4'000U) << "or it showed nothing";
  EXPECT_GT(computed, 500U) << "likewise";
}

}  // namespace
}  // namespace kvmem::cache
