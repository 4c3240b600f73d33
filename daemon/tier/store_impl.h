// The inside of Store: operations on their way, and the three pieces of housekeeping (opening a
// segment, syncing, sealing), each of which has at most one device operation at a time.
//
// Invariant that keeps writes moving: a queued write means that all headers are in use or a segment
// is being opened; the end of either pumps the queues.
#pragma once

#include <memory>
#include <vector>

#include "tier/store.h"
#include "tier/store_format.h"
#include "tier/store_table.h"

namespace kvmem::tier {

struct FreeMemory {
  void operator()(void* p) const { std::free(p); }
};
using BlockBuffer = std::unique_ptr<void, FreeMemory>;
// Blocks for the device, zeroed; null when there is no memory.
BlockBuffer allocate_blocks(std::size_t blocks);

// Intrusive queue over T::next.
template <class T>
class OpQueue {
 public:
  bool empty() const { return first_ == nullptr; }
  T* front() const { return first_; }
  void push(T* op) {
    op->next = nullptr;
    (first_ == nullptr ? first_ : last_->next) = op;
    last_ = op;
  }
  T* pop() {
    T* op = first_;
    if (op != nullptr) first_ = static_cast<T*>(op->next);
    return op;
  }
  OpQueue take() {
    OpQueue all = *this;
    first_ = nullptr;
    return all;
  }

 private:
  T* first_ = nullptr;
  T* last_ = nullptr;
};

struct Store::Impl {
  static constexpr std::uint64_t kNoEpoch = ~0ULL;
  struct Io : os::BlockIo {
    Impl* impl = nullptr;
  };

  Impl(std::unique_ptr<os::BlockDevice> device_in, os::Executor& executor_in,
       const StoreOptions& options_in)
      : device(std::move(device_in)), executor(executor_in), options(options_in) {}

  // -- start-up (store_open.cc)
  // ---------------------------------------------------------------------
  Status open();
  Status read_superblocks(bool* blank, int* newest);
  Status recover(std::uint64_t segments);
  Status write_superblock(int copy);

  // -- operations (store.cc)
  // ------------------------------------------------------------------------
  Status write(Store* store, WriteOp* op);
  Status read(Store* store, ReadOp* op);
  void pump();
  bool take_slot(WriteOp* op);
  void start_write(WriteOp* op);
  void start_read(ReadOp* op);
  void transfer(StoreOp* op, bool is_write, void* page);
  bool transferred(StoreOp* op, int result, int* error);
  void finish_write(WriteOp* op, Status status);
  void finish_read(ReadOp* op, Status status);
  void take_header(StoreOp* op);
  void give_header(StoreOp* op);
  static void checksum_work(os::Job* job);
  static void checksum_done(os::Job* job);
  static void on_written(os::Completion* self, int result, std::uint32_t flags);
  static void on_read(os::Completion* self, int result, std::uint32_t flags);
  static void verify_work(os::Job* job);
  static void verify_done(os::Job* job);

  // -- housekeeping (store_upkeep.cc)
  // ---------------------------------------------------------------
  bool may_grow() const { return !grow_blocked; }
  bool open_segment(RecordKind kind, bool cheap_only);
  void open_step_header();
  void open_done(Status status);
  void want_sync();
  void start_sync();
  void sync_done(Status status);
  void seal_next();
  static void on_reserved(os::Completion* self, int result, std::uint32_t flags);
  static void on_header(os::Completion* self, int result, std::uint32_t flags);
  static void on_opened(SyncOp* self, Status status);
  static void on_synced(os::Completion* self, int result, std::uint32_t flags);
  static void on_sealed(os::Completion* self, int result, std::uint32_t flags);

  bool idle() const {
    return stats.inflight == 0 && stats.queued == 0 && !opening && !sync_running && !sealing &&
           sync_next.empty() && durable_next.empty();
  }

  // Constant after open().
  std::unique_ptr<os::BlockDevice> device;
  os::Executor& executor;
  const StoreOptions options;
  format::Geometry geometry;
  format::Id id;
  std::uint64_t store_epoch = 0;
  std::uint64_t boot_epoch = kNoEpoch;  // of ephemeral records, those before it are of other boots
  BlockBuffer header_memory;

  StoreTable table;
  StoreStats stats;  // counters, inflight, queued; the other gauges are made by Store::stats()
  std::uint64_t segment_counter = 0;
  std::vector<void*> headers;  // not in use
  OpQueue<StoreOp> reads;
  OpQueue<StoreOp> writes[2];  // by RecordKind

  // Opening.
  bool opening = false;
  RecordKind opening_kind = RecordKind::kEphemeral;
  StoreTable::Candidate candidate;
  Io open_io;
  SyncOp open_sync;
  BlockBuffer open_block;
  bool grow_blocked = false;  // the file could not grow; tried again a second later
  std::uint64_t now_ns = 0;
  std::uint64_t grow_again_ns = 0;

  // Syncing: what the sync under way will satisfy, and what the next one will.
  bool sync_running = false;
  Io sync_io;
  OpQueue<SyncOp> sync_current, sync_next;
  OpQueue<StoreOp> durable_current, durable_next;
  std::uint64_t sync_due_ns = 0;  // 0: none due

  // Sealing.
  bool sealing = false;
  std::uint32_t sealing_segment = 0;
  Io seal_io;
  BlockBuffer seal_block;
};

}  // namespace kvmem::tier
