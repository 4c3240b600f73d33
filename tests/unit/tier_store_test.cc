// The page store's claims, each alone, on a simulated disk.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "tests/unit/sim_disk.h"
#include "tier/store.h"
#include "tier/store_format.h"

namespace kvmem::tier {
namespace {

using test::SimDisk;
using test::SimLoop;
using test::SimMedia;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint32_t kSlots = 4;
constexpr format::Geometry kGeometry{kPage, kSlots};

struct Page {
  Page() : bytes(static_cast<std::uint8_t*>(std::aligned_alloc(4096, kPage))) {}
  ~Page() { std::free(bytes); }
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;
  void fill(std::uint64_t seed) {
    test::Random random(seed);
    for (std::uint64_t i = 0; i < kPage; i += 8) {
      const std::uint64_t v = random.next();
      std::memcpy(bytes + i, &v, 8);
    }
  }
  bool holds(std::uint64_t seed) const {
    Page other;
    other.fill(seed);
    return std::memcmp(bytes, other.bytes, kPage) == 0;
  }
  std::uint8_t* bytes;
};

class StoreTest : public ::testing::Test {
 protected:
  void SetUp() override { reset(0, true); }

  void reset(std::uint64_t size_bytes, bool grows, std::uint64_t seed = 1) {
    store_.reset();
    media_ = std::make_unique<SimMedia>(seed, size_bytes, grows);
    loop_ = std::make_unique<SimLoop>(*media_);
    options_ = {};
    options_.page_bytes = kPage;
    options_.slots_per_segment = kSlots;
    options_.capacity_bytes = kGeometry.segment_offset(4);
    options_.inflight_max = 4;
    options_.boot_id[0] = 1;
  }

  Status open() {
    store_.reset();
    media_->power_on();
    loop_ = std::make_unique<SimLoop>(*media_);
    Result<std::unique_ptr<Store>> store =
        Store::open(std::make_unique<SimDisk>(*media_, *loop_), *loop_, options_);
    if (!store.ok()) return store.status();
    store_ = std::move(*store);
    store_->validate();
    return {};
  }
  void kill() {
    loop_->end_now(false);
    store_.reset();
  }
  void crash() {
    loop_->end_now(true);
    store_.reset();
    options_.boot_id[0]++;
  }
  void settle() {
    while (!loop_->empty()) loop_->step();
    store_->validate();
  }

  struct Written {
    Status status;
    Locator locator = kNoLocator;
  };
  Written write(std::uint64_t key, std::uint64_t generation, RecordKind kind,
                bool until_durable = false) {
    Page page;
    page.fill(key * 1000 + generation);
    struct : WriteOp {
      Status status;
      int calls = 0;
    } op;
    op.key = {key, ~key};
    op.generation = generation;
    op.kind = kind;
    op.until_durable = until_durable;
    op.page = page.bytes;
    op.context = &op;
    using Op = decltype(op);
    op.done = [](WriteOp* self, Status status) {
      auto* w = static_cast<Op*>(self->context);
      w->status = status;
      ++w->calls;
    };
    if (Status status = store_->write(&op); !status.ok()) return {status, kNoLocator};
    settle();
    EXPECT_EQ(op.calls, 1);
    return {op.status, op.locator};
  }
  Written persist(std::uint64_t key, std::uint64_t generation = 1) {
    return write(key, generation, RecordKind::kPersistent, true);
  }
  Written swap(std::uint64_t key, std::uint64_t generation = 1) {
    return write(key, generation, RecordKind::kEphemeral);
  }

  Code read(std::uint64_t key, std::uint64_t generation, Locator locator) {
    Page page;
    struct : ReadOp {
      Status status;
      int calls = 0;
    } op;
    op.key = {key, ~key};
    op.generation = generation;
    op.locator = locator;
    op.page = page.bytes;
    op.context = &op;
    using Op = decltype(op);
    op.done = [](ReadOp* self, Status status) {
      auto* r = static_cast<Op*>(self->context);
      r->status = status;
      ++r->calls;
    };
    if (Status status = store_->read(&op); !status.ok()) return status.code();
    settle();
    EXPECT_EQ(op.calls, 1);
    EXPECT_TRUE(!op.status.ok() || page.holds(key * 1000 + generation)) << "wrong bytes";
    return op.status.code();
  }
  Status release(std::uint64_t key, std::uint64_t generation, Locator locator) {
    return store_->release({key, ~key}, generation, locator);
  }
  bool is_durable(std::uint64_t key, std::uint64_t generation, Locator locator) {
    return store_->is_durable({key, ~key}, generation, locator);
  }
  std::map<std::uint64_t, Record> found() {
    std::map<std::uint64_t, Record> all;
    for (const Record& r : store_->records()) all[r.key.hi] = r;
    return all;
  }
  static std::uint64_t offset_of(Locator locator) { return kGeometry.slot_offset(locator - 1); }

  std::unique_ptr<SimMedia> media_;
  std::unique_ptr<SimLoop> loop_;
  StoreOptions options_;
  std::unique_ptr<Store> store_;
};

using Store = StoreTest;

TEST_F(Store, ReadGivesWhatWasWritten) {
  ASSERT_TRUE(open().ok());
  const Written a = swap(1);
  const Written b = persist(2);
  ASSERT_TRUE(a.status.ok());
  ASSERT_TRUE(b.status.ok());
  EXPECT_NE(a.locator, b.locator);
  EXPECT_EQ(read(1, 1, a.locator), Code::kOk);
  EXPECT_EQ(read(2, 1, b.locator), Code::kOk);
  EXPECT_EQ(store_->stats().reads, 2U);
  EXPECT_TRUE(is_durable(2, 1, b.locator));
  EXPECT_FALSE(is_durable(1, 1, a.locator));
}

TEST_F(Store, AnyForeignNameIsNotFound) {
  ASSERT_TRUE(open().ok());
  const Written a = swap(1, 5);
  for (Locator locator : {Locator{0}, Locator{16}, Locator{17}, Locator{1} << 32, ~Locator{0}}) {
    ASSERT_NE(locator, a.locator);
    EXPECT_EQ(read(1, 5, locator), Code::kNotFound) << locator;
    EXPECT_EQ(release(2, 5, locator).code(), Code::kNotFound) << locator;
  }
  EXPECT_EQ(read(2, 5, a.locator), Code::kNotFound);
  EXPECT_EQ(read(1, 4, a.locator), Code::kNotFound);
  EXPECT_EQ(read(1, ~0ULL, a.locator), Code::kNotFound);
  EXPECT_EQ(release(1, 4, a.locator).code(), Code::kNotFound);
  EXPECT_EQ(read(1, 5, a.locator), Code::kOk);
}

TEST_F(Store, BadArgumentsAreRefusedAtOnce) {
  ASSERT_TRUE(open().ok());
  Page page;
  WriteOp op;
  op.page = page.bytes;
  EXPECT_EQ(store_->write(&op).code(), Code::kInvalid);  // no done
  op.done = [](WriteOp*, Status) { FAIL(); };
  op.page = page.bytes + 8;
  EXPECT_EQ(store_->write(&op).code(), Code::kInvalid);
  op.page = page.bytes;
  op.generation = 1ULL << kGenerationBits;
  EXPECT_EQ(store_->write(&op).code(), Code::kInvalid);
  EXPECT_TRUE(store_->idle());
}

TEST_F(Store, BitFlipIsRefusedAndCounted) {
  // Any bit of the slot: record header, its padding, the page.
  for (std::uint64_t at : {0ULL, 30ULL, 100ULL, 4000ULL, 4096ULL, 6000ULL, 8191ULL}) {
    reset(0, true);
    ASSERT_TRUE(open().ok());
    const Written a = persist(1);
    const Written b = persist(2);
    media_->flip_bit(offset_of(a.locator) + at, 3);
    EXPECT_EQ(read(1, 1, a.locator), Code::kCorrupt) << at;
    EXPECT_EQ(store_->stats().corrupt, 1U);
    EXPECT_EQ(store_->stats().slots_retired, 1U);
    // Quarantined: refused without asking the disk again, even if that would go well now.
    media_->flip_bit(offset_of(a.locator) + at, 3);
    EXPECT_EQ(read(1, 1, a.locator), Code::kCorrupt);
    EXPECT_EQ(read(2, 1, b.locator), Code::kOk);
    EXPECT_TRUE(release(1, 1, a.locator).ok());
    EXPECT_EQ(read(1, 1, a.locator), Code::kNotFound);
    EXPECT_EQ(store_->stats().corrupt, 1U);
  }
}

TEST_F(Store, MisdirectedReadIsRefused) {
  ASSERT_TRUE(open().ok());
  const Written a = swap(1);
  const Written b = swap(2);
  media_->faults.read_elsewhere = 1;
  EXPECT_EQ(read(1, 1, a.locator), Code::kCorrupt);
  media_->faults.read_elsewhere = 0;
  EXPECT_EQ(read(2, 1, b.locator), Code::kOk);
}

TEST_F(Store, ReleasedSlotIsReusedAndItsOldNameIsGone) {
  ASSERT_TRUE(open().ok());
  std::map<std::uint64_t, Locator> at;
  for (std::uint64_t round = 0; round < 20; ++round) {
    for (std::uint64_t key = 1; key <= 16; ++key) {
      const Written w = swap(key, round);
      ASSERT_TRUE(w.status.ok()) << round << " " << key;
      at[key] = w.locator;
    }
    EXPECT_EQ(swap(99, round).status.code(), Code::kNoSpace);
    for (auto [key, locator] : at) {
      ASSERT_TRUE(release(key, round, locator).ok());
      EXPECT_EQ(release(key, round, locator).code(), Code::kNotFound);
      EXPECT_EQ(read(key, round, locator), Code::kNotFound);
    }
  }
  EXPECT_EQ(store_->stats().file_bytes, options_.capacity_bytes);
}

TEST_F(Store, ReleaseDuringReadKeepsTheBytesUntilItEnds) {
  ASSERT_TRUE(open().ok());
  const Written a = swap(1);
  Page page;
  ReadOp op;
  Status outcome(Code::kBusy, "not yet");
  op.key = {1, ~1ULL};
  op.generation = 1;
  op.locator = a.locator;
  op.page = page.bytes;
  op.context = &outcome;
  op.done = [](ReadOp* self, Status status) { *static_cast<Status*>(self->context) = status; };
  ASSERT_TRUE(store_->read(&op).ok());
  ASSERT_TRUE(release(1, 1, a.locator).ok());
  store_->validate();
  EXPECT_EQ(store_->stats().slots_live[0], 1U);  // not reusable yet
  settle();
  EXPECT_TRUE(outcome.ok());
  EXPECT_TRUE(page.holds(1001));
  EXPECT_EQ(store_->stats().slots_live[0], 0U);
}

TEST_F(Store, EphemeralSurvivesKillNotCrash) {
  ASSERT_TRUE(open().ok());
  const Written a = swap(1);
  kill();
  ASSERT_TRUE(open().ok());
  EXPECT_EQ(store_->stats().slots_unclaimed, 1U);
  EXPECT_EQ(read(1, 1, a.locator), Code::kOk);
  crash();
  ASSERT_TRUE(open().ok());
  EXPECT_TRUE(found().empty());
  EXPECT_EQ(read(1, 1, a.locator), Code::kNotFound);
  kill();
  ASSERT_TRUE(open().ok());  // nor does it come back at the second open of the new boot
  EXPECT_TRUE(found().empty());
}

TEST_F(Store, DurableSurvivesCrash) {
  ASSERT_TRUE(open().ok());
  std::map<std::uint64_t, Locator> at;
  for (std::uint64_t key = 1; key <= 6; ++key)
    at[key] = persist(key).locator;  // one segment sealed
  EXPECT_EQ(store_->stats().seals, 1U);
  for (int lives = 0; lives < 3; ++lives) {
    crash();
    ASSERT_TRUE(open().ok());
    EXPECT_EQ(found().size(), 6U);
    for (auto [key, locator] : at) {
      EXPECT_EQ(read(key, 1, locator), Code::kOk);
      EXPECT_TRUE(is_durable(key, 1, locator));
    }
  }
}

TEST_F(Store, PersistentIsDurableAfterTheInterval) {
  ASSERT_TRUE(open().ok());
  const Written a = write(1, 1, RecordKind::kPersistent);
  EXPECT_TRUE(store_->wants_tick());
  store_->tick(1'000);
  EXPECT_TRUE(loop_->empty());
  EXPECT_FALSE(is_durable(1, 1, a.locator));
  EXPECT_EQ(store_->stats().slots_unsynced, 1U);
  store_->tick(1'000 + options_.sync_interval_ns);
  EXPECT_EQ(store_->stats().slots_unsynced, 1U);  // under way
  settle();
  EXPECT_TRUE(is_durable(1, 1, a.locator));
  EXPECT_EQ(store_->stats().slots_unsynced, 0U);
  EXPECT_FALSE(store_->wants_tick());
}

TEST_F(Store, UnclaimedRecordsAreReleasedByKind) {
  ASSERT_TRUE(open().ok());
  const Written a = swap(1);
  swap(2);
  const Written c = persist(3);
  kill();
  ASSERT_TRUE(open().ok());
  EXPECT_TRUE(store_->claim({1, ~1ULL}, 1, a.locator).ok());
  EXPECT_EQ(store_->claim({7, ~7ULL}, 1, a.locator).code(), Code::kNotFound);
  EXPECT_EQ(store_->release_unclaimed(RecordKind::kEphemeral), 1U);
  store_->validate();
  EXPECT_EQ(read(1, 1, a.locator), Code::kOk);
  EXPECT_EQ(read(3, 1, c.locator), Code::kOk);
  EXPECT_EQ(found().size(), 2U);
}

TEST_F(Store, StaleRecordOfAnEarlierLifeOfItsSegmentIsGone) {
  ASSERT_TRUE(open().ok());
  options_.capacity_bytes = kGeometry.segment_offset(1);
  ASSERT_TRUE(open().ok());  // one segment only
  std::map<std::uint64_t, Locator> at;
  for (std::uint64_t key = 1; key <= 4; ++key) at[key] = persist(key).locator;
  for (auto [key, locator] : at) ASSERT_TRUE(release(key, 1, locator).ok());
  const Written fresh = swap(9);  // other kind: the segment is opened anew
  ASSERT_TRUE(fresh.status.ok());
  kill();
  ASSERT_TRUE(open().ok());
  EXPECT_EQ(found().size(), 1U);  // headers of the others are still there, of an older epoch
  EXPECT_EQ(read(9, 1, fresh.locator), Code::kOk);
}

TEST_F(Store, SealedSegmentIsReopenedForAReleasedSlot) {
  options_.capacity_bytes = kGeometry.segment_offset(1);
  ASSERT_TRUE(open().ok());
  std::map<std::uint64_t, Locator> at;
  for (std::uint64_t key = 1; key <= 4; ++key) at[key] = persist(key).locator;
  EXPECT_EQ(store_->stats().seals, 1U);
  ASSERT_TRUE(release(2, 1, at[2]).ok());
  at.erase(2);
  at[5] = persist(5).locator;
  EXPECT_EQ(store_->stats().reopens, 1U);
  EXPECT_EQ(store_->stats().seals, 2U);
  crash();
  ASSERT_TRUE(open().ok());
  EXPECT_EQ(found().size(), 4U);
  for (auto [key, locator] : at) EXPECT_EQ(read(key, 1, locator), Code::kOk);
}

TEST_F(Store, DamagedIndexCostsOnlyAScan) {
  ASSERT_TRUE(open().ok());
  std::map<std::uint64_t, Locator> at;
  for (std::uint64_t key = 1; key <= 4; ++key) at[key] = persist(key).locator;
  ASSERT_EQ(store_->stats().seals, 1U);
  media_->flip_bit(kGeometry.index_offset(0) + 77, 0);
  kill();
  ASSERT_TRUE(open().ok());
  for (auto [key, locator] : at) EXPECT_EQ(read(key, 1, locator), Code::kOk);
}

TEST_F(Store, IndexMisreadOnceIsVoidedBeforeSlotsChange) {
  ASSERT_TRUE(open().ok());
  options_.capacity_bytes = kGeometry.segment_offset(1);
  std::map<std::uint64_t, Locator> at;
  for (std::uint64_t key = 1; key <= 4; ++key) at[key] = persist(key).locator;
  ASSERT_EQ(store_->stats().seals, 1U);
  kill();
  media_->flip_bit(kGeometry.index_offset(0) + 77, 0);
  ASSERT_TRUE(open().ok());
  media_->flip_bit(kGeometry.index_offset(0) + 77, 0);  // it was only misread
  ASSERT_TRUE(release(2, 1, at[2]).ok());
  at.erase(2);
  at[5] = write(5, 1, RecordKind::kPersistent).locator;
  SyncOp op;
  op.done = [](SyncOp*, Status status) { EXPECT_TRUE(status.ok()); };
  store_->sync(&op);
  settle();
  ASSERT_TRUE(is_durable(5, 1, at[5]));
  crash();
  ASSERT_TRUE(open().ok());
  for (auto [key, locator] : at) EXPECT_EQ(read(key, 1, locator), Code::kOk) << key;
}

TEST_F(Store, WriteThatStraddlesAFailedSyncIsNotDurable) {
  int straddled = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    reset(0, true, seed);
    ASSERT_TRUE(open().ok());
    ASSERT_TRUE(persist(1).status.ok());
    Page page;
    page.fill(2001);
    Status outcome(Code::kBusy, "under way");
    WriteOp op;
    op.key = {2, ~2ULL};
    op.generation = 1;
    op.kind = RecordKind::kPersistent;
    op.page = page.bytes;
    op.context = &outcome;
    op.done = [](WriteOp* self, Status status) { *static_cast<Status*>(self->context) = status; };
    ASSERT_TRUE(store_->write(&op).ok());
    media_->faults.short_io = 1;
    loop_->step();
    loop_->step();
    media_->faults = {};
    const bool halfway = outcome.code() == Code::kBusy;
    bool synced = false;
    SyncOp sync;
    sync.context = &synced;
    sync.done = [](SyncOp* self, Status) { *static_cast<bool*>(self->context) = true; };
    media_->faults.sync_error = 1;
    store_->sync(&sync);
    while (!synced && loop_->step()) {
    }
    if (halfway && outcome.code() == Code::kBusy) ++straddled;
    media_->faults = {};
    settle();
    ASSERT_TRUE(persist(3).status.ok());  // a sync that goes well
    const bool durable = op.locator != kNoLocator && is_durable(2, 1, op.locator);
    crash();
    ASSERT_TRUE(open().ok());
    EXPECT_TRUE(!durable || read(2, 1, op.locator) == Code::kOk);
  }
  EXPECT_GT(straddled, 20);
}

TEST_F(Store, OneSuperblockIsEnough) {
  ASSERT_TRUE(open().ok());
  ASSERT_TRUE(open().ok());  // both copies written
  const Written a = persist(1);
  for (std::uint64_t copy : {0, 1}) {
    media_->flip_bit(copy * 4096 + 60, 1);
    ASSERT_TRUE(open().ok()) << copy;  // writes the other one anew
    EXPECT_EQ(read(1, 1, a.locator), Code::kOk);
    ASSERT_TRUE(open().ok());
  }
}

TEST_F(Store, DamagedSuperblocksAreReportedAndNothingIsOverwritten) {
  ASSERT_TRUE(open().ok());
  ASSERT_TRUE(open().ok());
  persist(1);
  store_.reset();
  media_->flip_bit(60, 1);
  media_->flip_bit(4096 + 60, 1);
  const std::vector<std::uint8_t> before = media_->view();
  EXPECT_EQ(open().code(), Code::kCorrupt);
  EXPECT_EQ(media_->view(), before);
}

TEST_F(Store, ForeignFileIsNeverOverwritten) {
  for (bool grows : {true, false}) {
    for (std::uint64_t size : {4096ULL, 1ULL << 20}) {
      reset(size, grows);
      for (std::uint64_t i = 0; i < size; ++i) media_->view()[i] = static_cast<std::uint8_t>(i * 7);
      const std::vector<std::uint8_t> before = media_->view();
      EXPECT_EQ(open().code(), Code::kInvalid);
      EXPECT_EQ(media_->view(), before);
    }
  }
}

TEST_F(Store, OtherGeometryIsRefused) {
  ASSERT_TRUE(open().ok());
  persist(1);
  options_.slots_per_segment = 5;
  EXPECT_EQ(open().code(), Code::kInvalid);
  options_.slots_per_segment = kSlots;
  options_.page_bytes = 8192;
  EXPECT_EQ(open().code(), Code::kInvalid);
  options_.page_bytes = kPage;
  EXPECT_TRUE(open().ok());
  EXPECT_EQ(found().size(), 1U);
}

TEST_F(Store, BlankBlockDeviceBecomesAStore) {
  reset(kGeometry.segment_offset(2) + 5 * 4096, false);
  options_.capacity_bytes = 0;
  ASSERT_TRUE(open().ok());
  EXPECT_EQ(store_->stats().slots_max, 2U * kSlots);
  const Written a = persist(1);
  crash();
  ASSERT_TRUE(open().ok());
  EXPECT_EQ(read(1, 1, a.locator), Code::kOk);
}

TEST_F(Store, SmallerCapacityKeepsRecordsReadable) {
  ASSERT_TRUE(open().ok());
  std::map<std::uint64_t, Locator> at;
  for (std::uint64_t key = 1; key <= 16; ++key) at[key] = swap(key).locator;
  kill();
  options_.capacity_bytes = kGeometry.segment_offset(2);
  ASSERT_TRUE(open().ok());
  EXPECT_EQ(store_->stats().slots_max, 8U);
  for (auto [key, locator] : at) EXPECT_EQ(read(key, 1, locator), Code::kOk);
  for (auto [key, locator] : at) ASSERT_TRUE(release(key, 1, locator).ok());
  store_->validate();
  for (std::uint64_t key = 1; key <= 8; ++key) EXPECT_TRUE(swap(key, 2).status.ok());
  EXPECT_EQ(swap(9, 2).status.code(), Code::kNoSpace);
}

TEST_F(Store, FullDiskIsNoSpaceAndGrowsLater) {
  ASSERT_TRUE(open().ok());
  const Written a = swap(1);
  media_->faults.no_space = 1;
  std::uint64_t refused = 0;
  for (std::uint64_t key = 2; key <= 9; ++key) {
    const Code code = swap(key).status.code();
    EXPECT_EQ(code, Code::kNoSpace);
    ++refused;
  }
  EXPECT_EQ(store_->stats().no_space, refused);
  EXPECT_EQ(store_->stats().slots_retired, 0U);  // full is not broken
  EXPECT_EQ(read(1, 1, a.locator), Code::kOk);
  media_->faults.no_space = 0;
  store_->tick(2'000'000'000);
  for (std::uint64_t key = 2; key <= 16; ++key) EXPECT_TRUE(swap(key).status.ok()) << key;
}

TEST_F(Store, WriteErrorRetiresTheSlotAlone) {
  ASSERT_TRUE(open().ok());
  swap(1);
  media_->faults.write_error = 1;
  const Status failed = swap(2).status;
  EXPECT_EQ(failed.code(), Code::kErrno);
  EXPECT_EQ(failed.detail(), EIO);
  media_->faults.write_error = 0;
  EXPECT_GE(store_->stats().slots_retired, 1U);
  EXPECT_TRUE(swap(2, 2).status.ok());
}

TEST_F(Store, SlotThatTheDeviceFailedToReadIsNotUsedAgain) {
  ASSERT_TRUE(open().ok());
  const Written bad = swap(1);
  media_->faults.read_error = 1;
  EXPECT_EQ(read(1, 1, bad.locator), Code::kErrno);
  media_->faults.read_error = 0;
  EXPECT_EQ(read(1, 1, bad.locator), Code::kOk);  // this time
  EXPECT_EQ(store_->stats().slots_retired, 0U);
  ASSERT_TRUE(release(1, 1, bad.locator).ok());
  EXPECT_EQ(store_->stats().slots_retired, 1U);
  EXPECT_EQ(read(1, 1, bad.locator), Code::kNotFound);
  for (std::uint64_t key = 2; key <= 12; ++key) EXPECT_NE(swap(key).locator, bad.locator) << key;
  store_->validate();
}

TEST_F(Store, FailedSyncFailsItsSegmentAndIsNotRepeated) {
  ASSERT_TRUE(open().ok());
  const Written kept = persist(1);
  const Written lost = write(2, 1, RecordKind::kPersistent);
  const std::uint64_t syncs = store_->stats().syncs;
  media_->faults.sync_error = 1;
  SyncOp op;
  Status outcome;
  op.context = &outcome;
  op.done = [](SyncOp* self, Status status) { *static_cast<Status*>(self->context) = status; };
  store_->sync(&op);
  settle();
  EXPECT_EQ(outcome.code(), Code::kErrno);
  EXPECT_EQ(store_->stats().syncs, syncs + 1);
  EXPECT_EQ(store_->stats().segments_failed, 1U);
  media_->faults.sync_error = 0;
  // A later sync says nothing about what the failed one covered.
  EXPECT_TRUE(persist(3).status.ok());
  EXPECT_FALSE(is_durable(2, 1, lost.locator));
  EXPECT_TRUE(is_durable(1, 1, kept.locator));
  EXPECT_EQ(read(1, 1, kept.locator), Code::kOk);
  crash();
  ASSERT_TRUE(open().ok());
  EXPECT_EQ(read(1, 1, kept.locator), Code::kOk);
}

TEST_F(Store, WriterThatWaitsLearnsOfTheFailedSync) {
  ASSERT_TRUE(open().ok());
  persist(1);
  media_->faults.sync_error = 1;
  const Written w = persist(2);
  EXPECT_EQ(w.status.code(), Code::kErrno);
  ASSERT_NE(w.locator, kNoLocator);
  EXPECT_FALSE(is_durable(2, 1, w.locator));
  EXPECT_TRUE(release(2, 1, w.locator).ok());
}

TEST_F(Store, ShortTransfersAreCompleted) {
  ASSERT_TRUE(open().ok());
  const Written a = swap(1);
  media_->faults.short_io = 2;
  std::uint64_t good = 0;
  for (std::uint64_t i = 0; i < 100; ++i) good += read(1, 1, a.locator) == Code::kOk ? 1 : 0;
  EXPECT_GT(good, 30U);  // one that moves less than a block ends the operation
  EXPECT_EQ(store_->stats().corrupt, 0U);
}

TEST_F(Store, MoreOperationsThanBuffersWaitTheirTurnUpToTheBound) {
  options_.queued_max = 6;
  options_.inflight_max = 2;
  ASSERT_TRUE(open().ok());
  swap(1);
  std::vector<std::unique_ptr<Page>> pages;
  std::vector<WriteOp> ops(12);
  int done = 0;
  unsigned busy = 0;
  for (std::uint64_t i = 0; i < ops.size(); ++i) {
    pages.push_back(std::make_unique<Page>());
    pages.back()->fill((100 + i) * 1000 + 1);
    ops[i].key = {100 + i, ~(100 + i)};
    ops[i].generation = 1;
    ops[i].page = pages.back()->bytes;
    ops[i].context = &done;
    ops[i].done = [](WriteOp* self, Status status) {
      EXPECT_TRUE(status.ok());
      ++*static_cast<int*>(self->context);
    };
    const Status status = store_->write(&ops[i]);
    if (status.code() == Code::kBusy) ++busy;
    store_->validate();
  }
  EXPECT_EQ(busy, 4U);
  EXPECT_EQ(store_->stats().queued, 6U);
  settle();
  EXPECT_EQ(done, 8);
  for (std::uint64_t i = 0; i < 8; ++i) {
    EXPECT_EQ(read(100 + i, 1, ops[i].locator), Code::kOk);
  }
}

TEST_F(Store, EphemeralRecordsUseFreedPersistentSpace) {
  options_.capacity_bytes = kGeometry.segment_offset(2);
  ASSERT_TRUE(open().ok());
  std::map<std::uint64_t, Locator> at;
  for (std::uint64_t key = 1; key <= 8; ++key) at[key] = persist(key).locator;
  EXPECT_EQ(swap(20).status.code(), Code::kNoSpace);
  ASSERT_TRUE(release(3, 1, at[3]).ok());
  ASSERT_TRUE(release(7, 1, at[7]).ok());
  const Written a = swap(20);
  const Written b = swap(21);
  ASSERT_TRUE(a.status.ok());
  ASSERT_TRUE(b.status.ok());
  EXPECT_EQ(swap(22).status.code(), Code::kNoSpace);
  crash();
  ASSERT_TRUE(open().ok());
  EXPECT_EQ(found().size(), 6U);
  EXPECT_EQ(found().count(20), 0U);
}

}  // namespace
}  // namespace kvmem::tier
