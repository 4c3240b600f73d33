// Store: pages on NVMe, in one file or block device. Never wrong: a read gives the bytes that were
// written under this key and generation, or an error.
//
// Calls belong to the loop's thread and never block; checksums run on the executor. Operations are
// caller-owned and nothing is allocated for one. A call that returns an error has refused the
// operation and `done` will not run; else `done` runs exactly once, later, on the loop's thread.
//
// THE CALLER'S PART. A (key, generation) names one content for ever: whoever writes again, be it
// after a failed write, takes a new generation. Locators and generations may come from an
// untrusted table (an engine's, after a restart): any value is safe, and only the owner of a key
// reaches its records. A record is released by its owner, once.
//
// TWO KINDS. An ephemeral record (a swapped page) is good from `done` until the host goes down: it
// survives the death of this process, since a completed write is the kernel's and the device's.
// Nothing is synced for it. A persistent record (a block) is readable from `done` and survives the
// host's crash once it is durable: see WriteOp::until_durable, is_durable(), sync().
//
// LAYOUT. superblock A, superblock B, then segments of
//   header 4 KiB | index 4 KiB | slots of {record header 4 KiB, page}
// A slot is one writev and one readv. Segments are created, and space reserved, when first needed.
// Reserved, not zeroed: the first write into an unwritten extent is slower (measured at depth
// 8, 3.0 against 5.2 GB/s), but zeroing is that same first write, so it would double the work of a
// busy disk to halve the cost of some of it. Segments that were used before are used again first.
// 32 slots of 2052 KiB and 8 KiB make 64.1 MiB; in memory 24 bytes a slot and 64 a segment, so a
// full 1 TiB costs 13 MB.
//
// SLOTS ARE REUSED IN PLACE. Random 2 MiB writes are as fast as sequential ones, so nothing is
// ever moved to make room. It is safe because a record says who it is: store, place (locator),
// segment epoch, key, generation, and checksums of all that and of the page. A write that was
// dropped, torn or misdirected leaves a slot in which the expected name does not verify.
//   slot:    free -> writing       a write took it
//            writing -> live       written
//            live -> free          released (waits for reads in flight)
//            live|writing -> retired   did not verify, or the device failed it; not used again
//                                  before the next open. Where the device failed a read that is
//                                  when the record is released: it may be had the next time
//
// SEGMENT EPOCHS. Opening an empty segment writes a header with a fresh epoch and syncs it before
// the first record, so whatever the segment held in an earlier life fails the epoch check. Epochs
// rise for ever: (epoch of this open of the store) << 32 | counter.
//   segment: empty -> opening      header written, synced; space reserved if new
//            opening -> open       synced: slots can be taken
//            open -> sealing       every slot holds a durable persistent record; index written
//            sealing -> sealed     index written. Recovery reads it instead of 32 headers; what
//                                  recovery finds of persistent segments is sealed, index or not
//            sealed -> reopening   wanted for a released slot: index zeroed, synced
//            reopening -> open     synced: no valid index describes slots that will change
//            open|sealed -> empty  nothing live, and space wanted (sealed: at once)
//            any -> failed         a sync failed that covered it, or its header could not be
//                                  written: nothing more is written here before the next open;
//                                  records already there are read as long as they verify
// A damaged index only costs a scan of the headers; a damaged segment header loses nothing durable
// either, because headers are written into empty segments alone.
//
// SYNC. One fdatasync for all that was written before it: when a segment is opened or reopened,
// when sync() or a write that waits asks, else `sync_interval_ns` after the first unsynced
// persistent write. One that fails is not repeated: every segment with unsynced persistent records,
// or with such writes under way, is failed; those records are not durable, and their waiters are
// told.
//
// READS. What does not verify is read once more: an error on the way is not one on the disk. If
// that does not verify either, the slot is retired and the read refused. Recovery reads as
// carefully, since a header it cannot make out is a slot to be written to.
//
// ERRORS. kNoSpace: full (the file cannot grow, no slot is free). kCorrupt: the record did not
// verify; it is quarantined and counted and every later read is refused. kNotFound: no such record
// at that locator. kBusy: too many queued. kErrno: the device's. kInvalid: a bad argument.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/page.h"
#include "base/status.h"
#include "os/block_device.h"
#include "os/workers.h"

namespace kvmem::tier {

struct Key {
  std::uint64_t hi = 0;
  std::uint64_t lo = 0;
  bool operator==(const Key&) const = default;
};

enum class RecordKind : std::uint8_t { kEphemeral = 0, kPersistent = 1 };

// The place of a record: 1 .. 2^32 - 1. Zero names none.
using Locator = std::uint64_t;
inline constexpr Locator kNoLocator = 0;
inline constexpr unsigned kLocatorBits = 32;
inline constexpr unsigned kGenerationBits = 48;

struct StoreOptions {
  // Geometry: fixed when the store is created, checked when it is opened.
  std::uint64_t page_bytes = kPageBytes;  // a multiple of kOsPageBytes
  std::uint32_t slots_per_segment = 32;   // 1 .. 64
  // May change from open to open. Records beyond a smaller capacity stay readable.
  std::uint64_t capacity_bytes = 0;  // upper limit of the file's size; 0: as large as it is now
  std::uint32_t inflight_max = 64;   // reads and writes at the device; the ring holds them
  std::uint32_t queued_max = 1024;   // operations waiting for one of those; beyond is kBusy
  std::uint64_t sync_interval_ns = 20'000'000;
  // Which boot of the host this is: ephemeral records of another boot are dropped. Zero: unknown,
  // so none are kept.
  std::uint8_t boot_id[16] = {};
};

class Store;

// What Store keeps in an operation while it has it.
struct StoreOp : os::Job {
  struct Io : os::BlockIo {
    StoreOp* op = nullptr;
  };
  Io io;
  Store* store = nullptr;
  StoreOp* next = nullptr;
  void* header = nullptr;
  std::uint64_t moved_bytes = 0;
  std::uint64_t epoch = 0;
  std::uint64_t checksum_ns = 0;
  std::uint32_t slot = 0;
  bool verified = false;
  bool asked_again = false;
};

struct WriteOp : private StoreOp {
  void (*done)(WriteOp* self, Status status) = nullptr;
  Key key;
  std::uint64_t generation = 0;  // < 2^kGenerationBits
  RecordKind kind = RecordKind::kEphemeral;
  // Persistent only: `done` runs when the record is durable, not when it is written. If then the
  // sync failed, `locator` is set nevertheless: the record is there, not durable, to be released.
  bool until_durable = false;
  const void* page = nullptr;    // page_bytes, kOsPageBytes-aligned, unchanged until done
  Locator locator = kNoLocator;  // out
  void* context = nullptr;       // the caller's

 private:
  friend class Store;
};

// On error `page` holds undefined bytes, which are nobody's data to use.
struct ReadOp : private StoreOp {
  void (*done)(ReadOp* self, Status status) = nullptr;
  Key key;
  std::uint64_t generation = 0;
  Locator locator = kNoLocator;
  void* page = nullptr;  // page_bytes, kOsPageBytes-aligned
  void* context = nullptr;

 private:
  friend class Store;
};

struct SyncOp {
  void (*done)(SyncOp* self, Status status) = nullptr;
  void* context = nullptr;
  SyncOp* next = nullptr;  // Store only
};

struct Record {
  Key key;
  std::uint64_t generation = 0;
  Locator locator = kNoLocator;
  RecordKind kind = RecordKind::kEphemeral;
};

struct StoreStats {
  // Gauges.
  std::uint64_t slots_max = 0;       // at capacity
  std::uint64_t slots_live[2] = {};  // by RecordKind
  std::uint64_t slots_retired = 0;
  std::uint64_t slots_unclaimed = 0;  // recovered and neither claimed nor released
  // Persistent, and not durable before the next sync has ended. Those in failed segments never are.
  std::uint64_t slots_unsynced = 0;
  std::uint64_t segments_failed = 0;
  std::uint64_t file_bytes = 0;
  std::uint64_t inflight = 0;
  std::uint64_t queued = 0;
  // Counters since open.
  std::uint64_t reads = 0, read_bytes = 0, writes = 0, written_bytes = 0;
  std::uint64_t corrupt = 0;  // reads refused because the record did not verify, twice
  std::uint64_t rereads = 0;  // records that were read again because they did not verify
  std::uint64_t read_errors = 0, write_errors = 0;
  std::uint64_t no_space = 0;
  std::uint64_t syncs = 0, sync_errors = 0;
  std::uint64_t seals = 0, reopens = 0;
  std::uint64_t recovered[2] = {};  // by RecordKind
  std::uint64_t checksum_ns = 0;    // spent by the executor on checksums
};

class Store {
 public:
  // Opens what is on the device or, if that is empty, creates a store there. Blocks: reads one
  // block per segment in use and one per slot of unsealed segments.
  // kInvalid: another geometry, or content that is no kvmem store (nothing is overwritten).
  // kCorrupt: both superblocks of what was a store are damaged. kErrno: the device's.
  static Result<std::unique_ptr<Store>> open(std::unique_ptr<os::BlockDevice> device,
                                             os::Executor& executor, const StoreOptions& options);
  // Waits for what is in flight; the `done` of those operations runs. Does not sync.
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // kInvalid, kNoSpace, kBusy.
  Status write(WriteOp* op);
  // kInvalid, kNotFound, kCorrupt (quarantined before), kBusy.
  Status read(ReadOp* op);
  // The record is gone for reads from now on; its slot is free once reads in flight have ended.
  // After a crash it may be found again by open(), until its slot has been reused. kNotFound.
  Status release(const Key& key, std::uint64_t generation, Locator locator);
  // True when the record exists and survives a crash of the host.
  bool is_durable(const Key& key, std::uint64_t generation, Locator locator) const;
  // `done` when everything written before now is durable, or with the error of the sync.
  void sync(SyncOp* op);
  // Starts the sync that is due. Call at least every sync_interval_ns while wants_tick().
  void tick(std::uint64_t now_ns);
  bool wants_tick() const;

  // After open(): what was found, headers verified, pages not yet (a read does). A key may be there
  // more than once: superseded or released records can come back, a newer one may turn out corrupt.
  std::vector<Record> records() const;
  // Takes over a recovered record: release_unclaimed() will spare it. kNotFound if it is not there.
  Status claim(const Key& key, std::uint64_t generation, Locator locator);
  // Releases recovered records of a kind that nobody claimed. Returns how many.
  std::uint64_t release_unclaimed(RecordKind kind);

  StoreStats stats() const;
  // No operation, sync, or housekeeping is under way.
  bool idle() const;
  // Checks the whole of the tables; stops the process if they contradict each other.
  void validate() const;

 private:
  struct Impl;
  explicit Store(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvmem::tier
