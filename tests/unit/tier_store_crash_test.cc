// The page store against a disk that loses power, forgets, tears, misdirects, flips and fails, with
// a model beside it. In every case: no read ever gives bytes other than those written under its
// name, and no durable record is lost unless the disk itself destroyed its place.
//
// Deterministic. A failure names its seed; KVMEM_STORE_SEED=<n> runs that case alone, with
// KVMEM_STORE_CASES=<n> more or fewer are run.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <optional>

#include "tests/unit/sim_disk.h"
#include "tier/store.h"
#include "tier/store_format.h"

namespace kvmem::tier {
namespace {

using test::ByteRange;
using test::Random;
using test::SimDisk;
using test::SimLoop;
using test::SimMedia;

struct Totals {
  std::uint64_t cases = 0, lives = 0, host_crashes = 0, kills = 0;
  std::uint64_t writes = 0, reads = 0, refused = 0, found = 0;
  std::uint64_t durable_checked = 0, ephemeral_checked = 0, destroyed_by_disk = 0;
  std::uint64_t seals = 0, reopens = 0, failed_syncs = 0, no_space = 0, dead_stores = 0;
};

struct Buffer {
  explicit Buffer(std::uint64_t size_bytes)
      : size(size_bytes), bytes(static_cast<std::uint8_t*>(std::aligned_alloc(4096, size_bytes))) {}
  ~Buffer() { std::free(bytes); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  static std::uint64_t word(std::uint64_t seed, std::uint64_t i) {  // splitmix64
    std::uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  void fill(std::uint64_t seed) {
    auto* words = reinterpret_cast<std::uint64_t*>(bytes);
    for (std::uint64_t i = 0; i < size / 8; ++i) words[i] = word(seed, i);
  }
  bool holds(std::uint64_t seed) const {
    const auto* words = reinterpret_cast<const std::uint64_t*>(bytes);
    for (std::uint64_t i = 0; i < size / 8; ++i) {
      if (words[i] != word(seed, i)) return false;
    }
    return true;
  }
  const std::uint64_t size;
  std::uint8_t* bytes;
};

using Name = std::pair<std::uint64_t, std::uint64_t>;  // key, generation
std::uint64_t content_of(const Name& name) { return name.first << 32 ^ name.second; }
Key key_of(std::uint64_t key) { return {key, ~key}; }

// What the caller was told it has.
struct Entry {
  Locator locator = kNoLocator;
  RecordKind kind = RecordKind::kEphemeral;
  bool durable = false;
  int reads_inflight = 0;
};

class Case {
 public:
  Case(std::uint64_t seed, Totals& totals)
      : random_(seed ^ 0x5eed),
        totals_(totals),
        geometry_(pick_geometry()),
        media_(make_media(seed)) {
    options_.page_bytes = geometry_.page_bytes;
    options_.slots_per_segment = geometry_.slots_per_segment;
    options_.capacity_bytes = geometry_.segment_offset(2 + random_.below(5));
    options_.inflight_max = static_cast<std::uint32_t>(1 + random_.below(8));
    options_.queued_max = 8;
    options_.boot_id[0] = 1;
    faults_.sector_bytes = random_.one_in(2) ? 512 : 4096;
    const auto rate = [&](std::uint64_t often) {
      return random_.one_in(3) ? often + random_.below(often * 4) : 0;
    };
    faults_.read_error = rate(20);
    faults_.write_error = rate(20);
    faults_.sync_error = rate(6);
    faults_.no_space = rate(15);
    faults_.short_io = rate(4);
    faults_.read_flip = rate(20);
    faults_.read_elsewhere = rate(20);
    faults_.misdirect = rate(5);
    faults_.flip = rate(4);
  }

  void run() {
    ++totals_.cases;
    const std::uint64_t lives = 2 + random_.below(3);
    for (std::uint64_t life = 0; life < lives && !::testing::Test::HasFailure(); ++life) {
      if (!live_once()) break;
    }
    store_.reset();
  }

 private:
  struct Write : WriteOp {
    Case* test = nullptr;
    Name name;
    std::unique_ptr<Buffer> buffer;
    bool durable_wanted = false;
  };
  struct Read : ReadOp {
    Case* test = nullptr;
    Name name;
    std::unique_ptr<Buffer> buffer;
    std::optional<Status> outcome;
  };

  format::Geometry pick_geometry() {
    return {random_.one_in(4) ? 8192U : 4096U, static_cast<std::uint32_t>(1 + random_.below(6))};
  }
  std::unique_ptr<SimMedia> make_media(std::uint64_t seed) {
    if (!random_.one_in(4)) return std::make_unique<SimMedia>(seed, 0, true);
    const std::uint64_t size =
        geometry_.segment_offset(2 + random_.below(4)) + random_.below(3) * 4096;
    return std::make_unique<SimMedia>(seed, size, false);
  }

  // One life of the daemon: open, compare with the model, work, die. False: the store is gone for
  // a reason that is the disk's.
  bool live_once() {
    ++totals_.lives;
    if (!open()) return false;
    if (store_ == nullptr) return true;  // died while opening
    media_->faults = {};
    media_->faults.sector_bytes = faults_.sector_bytes;
    compare_with_model();
    if (::testing::Test::HasFailure()) return false;
    media_->faults = faults_;
    media_->read_faults_left = ~0ULL;
    host_crashed_ = false;
    work();
    return true;
  }

  bool open() {
    loop_ = std::make_unique<SimLoop>(*media_);
    media_->power_on();
    const bool interrupted = random_.one_in(8);
    media_->faults = faults_;
    if (!random_.one_in(4)) {
      media_->faults = {};
      media_->faults.misdirect = faults_.misdirect;
      media_->faults.sector_bytes = faults_.sector_bytes;
    }
    // One bad read, of whatever kind, must not lose a record; reading again is the remedy.
    media_->read_faults_left = 1;
    if (interrupted) plan_end(1 + random_.below(20));
    for (int attempt = 0;; ++attempt) {
      Result<std::unique_ptr<Store>> store =
          Store::open(std::make_unique<SimDisk>(*media_, *loop_), *loop_, options_);
      if (!media_->powered) {
        if (store.ok()) *store = nullptr;
        ended();
        return true;
      }
      if (store.ok()) {
        store_ = std::move(*store);
        store_->validate();
        ever_opened_ = true;
        superblock_hit_ = false;  // whichever copy was bad has been written anew
        loop_->plan_end(0, false);
        return true;
      }
      const Code code = store.status().code();
      const bool misread = media_->read_faults_left == 0;
      if (attempt == 0 && (code == Code::kErrno || misread)) {  // the operator tries again
        media_->faults = {};
        media_->kill();
        media_->power_on();
        if (sync_failed()) std::erase_if(model_, [](auto& e) { return !e.second.durable; });
        continue;
      }
      // Cut short while it was made, or wiped out by a misdirected write since the last good open.
      EXPECT_TRUE(!ever_opened_ || superblock_hit_) << store.status().what();
      EXPECT_TRUE(code == Code::kCorrupt || code == Code::kInvalid) << store.status().what();
      ++totals_.dead_stores;
      return false;
    }
  }

  void plan_end(std::uint64_t events) {
    end_is_host_ = random_.one_in(2);
    loop_->plan_end(events, end_is_host_);
  }

  // After the power went, or the process: what can still be expected of the disk.
  void ended() {
    store_.reset();
    loop_ = std::make_unique<SimLoop>(*media_);
    end_is_host_ ? ++totals_.host_crashes : ++totals_.kills;
    if (end_is_host_) {
      ++options_.boot_id[0];
      host_crashed_ = true;
    }
    for (const ByteRange& d : media_->damage) superblock_hit_ |= d.overlaps(0, 8192);
    for (auto it = model_.begin(); it != model_.end();) {
      Entry& e = it->second;
      e.reads_inflight = 0;
      const std::uint64_t slot = e.locator - 1;
      const std::uint64_t segment = slot / geometry_.slots_per_segment;
      bool destroyed = false;
      for (const ByteRange& d : media_->damage) {
        destroyed |= d.overlaps(geometry_.slot_offset(slot), geometry_.slot_bytes()) ||
                     d.overlaps(geometry_.segment_offset(segment), 4096);
      }
      if (destroyed && e.durable) ++totals_.destroyed_by_disk;
      // Not durable: may be there after the host's crash, must be there after a kill, unless a sync
      // has failed, with which a disk may drop anything that was not durable yet.
      const bool expected = !destroyed && (e.durable || (!end_is_host_ && !sync_failed()));
      it = expected ? std::next(it) : model_.erase(it);
    }
    failed_syncs_known_ = media_->failed_syncs;
  }

  void compare_with_model() {
    std::map<Name, std::vector<Record>> listed;
    for (const Record& r : store_->records()) {
      EXPECT_EQ(r.key.lo, ~r.key.hi);
      EXPECT_FALSE(host_crashed_ && r.kind == RecordKind::kEphemeral) << "outlived its boot";
      listed[{r.key.hi, r.generation}].push_back(r);
      ++totals_.found;
    }
    for (const auto& [name, e] : model_) {
      const Record* match = nullptr;
      for (const Record& r : listed[name]) {
        if (r.locator == e.locator) match = &r;
      }
      e.durable ? ++totals_.durable_checked : ++totals_.ephemeral_checked;
      ASSERT_NE(match, nullptr) << "lost " << name.first << "." << name.second
                                << (e.durable ? " durable" : "");
      ASSERT_EQ(match->kind, e.kind);
    }
    for (const auto& [name, records] : listed) {
      for (const Record& r : records) {
        auto known = model_.find(name);
        const bool expected = known != model_.end() && known->second.locator == r.locator;
        const Status status = read_now(name, r.locator);
        if (expected) {
          ASSERT_TRUE(status.ok())
              << "lost " << name.first << "." << name.second << ": " << status.what();
          ASSERT_TRUE(store_->claim(r.key, r.generation, r.locator).ok());
          if (r.kind == RecordKind::kPersistent) known->second.durable = true;
        } else if (status.ok() && known == model_.end() && random_.one_in(2)) {
          // Released before, or never acknowledged, but whole: the caller may take it over.
          ASSERT_TRUE(store_->claim(r.key, r.generation, r.locator).ok());
          Entry e;
          e.locator = r.locator;
          e.kind = r.kind;
          e.durable = r.kind == RecordKind::kPersistent;
          model_[name] = e;
        }
      }
    }
    const std::uint64_t unclaimed = store_->stats().slots_unclaimed;
    ASSERT_EQ(store_->release_unclaimed(RecordKind::kEphemeral) +
                  store_->release_unclaimed(RecordKind::kPersistent),
              unclaimed);
    store_->validate();
  }

  Status read_now(const Name& name, Locator locator) {
    Read* op = start_read(name, locator, true);
    while (!op->outcome && loop_->step()) {
    }
    return op->outcome.value_or(Status(Code::kBusy, "never ended"));
  }

  void work() {
    plan_end(1 + random_.below(300));
    for (int i = 0; i < 150 && media_->powered; ++i) {
      switch (random_.below(10)) {
        case 0:
        case 1:
        case 2:
        case 3:
          start_write();
          break;
        case 4:
        case 5:
          if (!model_.empty()) {
            auto it = any_entry();
            (void)start_read(it->first, it->second.locator, false);
          }
          break;
        case 6:
          // Mostly near full, where slots are reused, now and then nearly empty.
          for (std::uint64_t n = random_.one_in(10) ? 20 : random_.below(4); n > 0; --n) {
            if (!model_.empty()) release(any_entry());
          }
          break;
        case 7:
          now_ns_ += 15'000'000;
          store_->tick(now_ns_);
          break;
        case 8:
          if (random_.one_in(4)) start_sync();
          break;
        default:
          guess();
      }
      const std::uint64_t steps = random_.below(6);
      for (std::uint64_t k = 0; k < steps && media_->powered; ++k) {
        if (!loop_->step()) break;
        if (media_->powered) note_durable();
      }
      if (media_->powered && i % 8 == 0) store_->validate();
      if (::testing::Test::HasFailure()) return;
    }
    if (media_->powered) {
      if (random_.one_in(3)) {
        while (media_->powered && loop_->step()) note_durable();
        EXPECT_TRUE(!media_->powered || store_->idle());
      }
      if (media_->powered) loop_->end_now(end_is_host_);
    }
    const StoreStats stats = store_->stats();
    totals_.seals += stats.seals;
    totals_.reopens += stats.reopens;
    totals_.failed_syncs += stats.sync_errors;
    totals_.no_space += stats.no_space;
    totals_.refused += stats.corrupt;
    ended();
    writes_.clear();
    reads_.clear();
    syncs_.clear();
  }

  bool sync_failed() const { return media_->failed_syncs != failed_syncs_known_; }

  std::map<Name, Entry>::iterator any_entry() {
    auto it = model_.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(random_.below(model_.size())));
    return it;
  }

  // Durable is what the store says while it runs.
  void note_durable() {
    const StoreStats stats = store_->stats();
    const bool all = stats.slots_unsynced == 0 && stats.segments_failed == 0;
    for (auto& [name, e] : model_) {
      const bool now = store_->is_durable(key_of(name.first), name.second, e.locator);
      EXPECT_FALSE(e.durable && !now);
      EXPECT_FALSE(all && e.kind == RecordKind::kPersistent && !now);
      e.durable = now;
    }
  }

  void start_write() {
    Write& op = writes_.emplace_back();
    op.test = this;
    op.name.first = random_.below(20);
    op.name.second = ++generations_[op.name.first];  // of different keys the same, on purpose
    op.buffer = std::make_unique<Buffer>(geometry_.page_bytes);
    op.buffer->fill(content_of(op.name));
    op.key = key_of(op.name.first);
    op.generation = op.name.second;
    op.kind = random_.one_in(2) ? RecordKind::kPersistent : RecordKind::kEphemeral;
    op.until_durable = op.kind == RecordKind::kPersistent && random_.one_in(2);
    op.page = op.buffer->bytes;
    op.done = [](WriteOp* self, Status status) {
      auto* w = static_cast<Write*>(self);
      w->test->written(*w, status);
    };
    ++totals_.writes;
    const Status status = store_->write(&op);
    if (status.ok()) return;
    EXPECT_TRUE(status.code() == Code::kNoSpace || status.code() == Code::kBusy) << status.what();
    writes_.pop_back();
  }
  void written(Write& op, Status status) {
    op.buffer->fill(0xdead);  // the page is the caller's again
    if (!media_->powered) return;
    if (status.ok() || op.locator != kNoLocator) {
      Entry e;
      e.locator = op.locator;
      e.kind = op.kind;
      e.durable = status.ok() && op.until_durable;
      EXPECT_TRUE(model_.emplace(op.name, e).second);
    }
    if (!status.ok()) {
      EXPECT_TRUE(status.code() == Code::kNoSpace || status.code() == Code::kErrno);
      EXPECT_TRUE(faults_.no_space + faults_.write_error + faults_.sync_error + faults_.short_io >
                      0 ||
                  status.code() == Code::kNoSpace)
          << status.what();
    }
  }

  Read* start_read(const Name& name, Locator locator, bool must_start) {
    Read& op = reads_.emplace_back();
    op.test = this;
    op.name = name;
    op.buffer = std::make_unique<Buffer>(geometry_.page_bytes);
    op.key = key_of(name.first);
    op.generation = name.second;
    op.locator = locator;
    op.page = op.buffer->bytes;
    op.done = [](ReadOp* self, Status status) {
      auto* r = static_cast<Read*>(self);
      r->test->was_read(*r, status);
    };
    ++totals_.reads;
    const Status status = store_->read(&op);
    if (status.ok()) return &op;
    if (must_start || status.code() == Code::kCorrupt) {
      was_read(op, status);
      return &op;
    }
    EXPECT_EQ(status.code(), Code::kBusy);
    reads_.pop_back();
    return nullptr;
  }
  void was_read(Read& op, Status status) {
    op.outcome = status;
    if (status.ok()) {
      EXPECT_TRUE(op.buffer->holds(content_of(op.name))) << "wrong bytes";
      return;
    }
    if (!media_->powered) return;
    if (status.code() == Code::kCorrupt) {
      auto it = model_.find(op.name);
      if (it == model_.end() || it->second.locator != op.locator) return;
      // A record that is good must not be refused, but for what the disk did on the way.
      EXPECT_TRUE(media_->injected_read_faults > 0 || (sync_failed() && !it->second.durable) ||
                  store_->stats().sync_errors > 0)
          << "refused " << op.name.first << "." << op.name.second;
      model_.erase(it);  // quarantined: no longer promised
      (void)store_->release(op.key, op.generation, op.locator);
      return;
    }
    EXPECT_EQ(status.code(), Code::kErrno) << status.what();
    EXPECT_TRUE(faults_.read_error + faults_.short_io + faults_.read_elsewhere > 0);
  }

  void release(std::map<Name, Entry>::iterator it) {
    EXPECT_TRUE(
        store_->release(key_of(it->first.first), it->first.second, it->second.locator).ok());
    model_.erase(it);
  }

  void start_sync() {
    SyncOp& op = syncs_.emplace_back();
    op.done = [](SyncOp*, Status) {};
    store_->sync(&op);
  }

  // Any name and place that nobody was given is refused.
  void guess() {
    const std::uint64_t key = random_.below(20);
    const Name name{key, random_.below(generations_[key] + 2)};
    const Locator locator = random_.below(64);
    auto it = model_.find(name);
    if (it != model_.end() && it->second.locator == locator) return;
    for (const Write& w : writes_) {
      if (w.name == name) return;  // under way, or known to be there without being acknowledged
    }
    Read op;
    op.done = [](ReadOp*, Status) { FAIL() << "guessed a record"; };
    Buffer buffer(geometry_.page_bytes);
    op.page = buffer.bytes;
    op.key = key_of(name.first);
    op.generation = name.second;
    op.locator = locator;
    const Status status = store_->read(&op);
    EXPECT_TRUE(status.code() == Code::kNotFound || status.code() == Code::kCorrupt)
        << status.what();
  }

  Random random_;
  Totals& totals_;
  const format::Geometry geometry_;
  const std::unique_ptr<SimMedia> media_;
  test::SimFaults faults_;
  StoreOptions options_;
  std::unique_ptr<SimLoop> loop_;
  std::deque<Write> writes_;
  std::deque<Read> reads_;
  std::deque<SyncOp> syncs_;
  std::unique_ptr<Store> store_;
  std::map<Name, Entry> model_;
  std::map<std::uint64_t, std::uint64_t> generations_;
  std::uint64_t now_ns_ = 0;
  bool end_is_host_ = false;
  std::uint64_t failed_syncs_known_ = 0;
  bool ever_opened_ = false;
  bool superblock_hit_ = false;
  bool host_crashed_ = false;  // since records were last written
};

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* text = std::getenv(variable);  // NOLINT(concurrency-mt-unsafe): one thread
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

constexpr std::uint64_t kCasesPerShard = 3000;
constexpr std::uint64_t kShards = 4;

class StoreCrash : public ::testing::TestWithParam<std::uint64_t> {};

TEST_P(StoreCrash, NoWrongBytesAndNoDurableRecordLost) {
  const std::uint64_t cases = number_from("KVMEM_STORE_CASES", kCasesPerShard * kShards) / kShards;
  const std::uint64_t first = GetParam() * 1'000'000 + 1;
  const std::uint64_t only = number_from("KVMEM_STORE_SEED", 0);
  Totals t;
  std::printf("seeds %llu .. %llu\n", static_cast<unsigned long long>(first),
              static_cast<unsigned long long>(first + cases - 1));
  for (std::uint64_t seed = first; seed < first + cases; ++seed) {
    if (only != 0 && only != seed) {
      if (only < first || only >= first + 1'000'000) break;
      seed = only;
    }
    SCOPED_TRACE("KVMEM_STORE_SEED=" + std::to_string(seed));
    Case(seed, t).run();
    if (HasFailure() || only != 0) break;
  }
  const auto print = [](const char* what, std::uint64_t n) {
    std::printf("  %-20s %llu\n", what, static_cast<unsigned long long>(n));
    ::testing::Test::RecordProperty(what, std::to_string(n));
  };
  print("cases", t.cases);
  print("lives", t.lives);
  print("host_crashes", t.host_crashes);
  print("kills", t.kills);
  print("writes", t.writes);
  print("reads", t.reads);
  print("reads_refused", t.refused);
  print("records_recovered", t.found);
  print("durable_checked", t.durable_checked);
  print("others_checked", t.ephemeral_checked);
  print("destroyed_by_disk", t.destroyed_by_disk);
  print("seals", t.seals);
  print("reopens", t.reopens);
  print("failed_syncs", t.failed_syncs);
  print("no_space", t.no_space);
  print("dead_stores", t.dead_stores);
  if (only != 0 || HasFailure()) return;
  // The cases are worth something only if they go where the danger is.
  EXPECT_GT(t.durable_checked, cases);
  EXPECT_GT(t.ephemeral_checked, cases);
  EXPECT_GT(t.refused, 0U);
  EXPECT_GT(t.reopens, 0U);
  EXPECT_GT(t.seals, cases / 4);
  EXPECT_GT(t.failed_syncs, 0U);
  EXPECT_LT(t.dead_stores, cases / 20);
}

INSTANTIATE_TEST_SUITE_P(Shard, StoreCrash, ::testing::Range<std::uint64_t>(0, kShards));

}  // namespace
}  // namespace kvmem::tier
