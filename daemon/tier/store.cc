#include "tier/store.h"

#include <time.h>

#include "base/check.h"
#include "tier/store_impl.h"

namespace kvmem::tier {

namespace {

std::uint64_t thread_cpu_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(t.tv_nsec);
}

bool is_full(int error) { return error == ENOSPC || error == EDQUOT || error == EFBIG; }

}  // namespace

BlockBuffer allocate_blocks(std::size_t blocks) {
  void* memory = std::aligned_alloc(format::kBlockBytes, blocks * format::kBlockBytes);
  if (memory != nullptr) std::memset(memory, 0, blocks * format::kBlockBytes);
  return BlockBuffer(memory);
}

// -- the public face ------------------------------------------------------------------------------

Store::Store(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Store::~Store() {
  while (!impl_->idle()) {
    if (impl_->device->wait().ok()) continue;
    // The device can no longer tell when it is done with our memory: leave it to it.
    (void)impl_.release();
    return;
  }
}

Result<std::unique_ptr<Store>> Store::open(std::unique_ptr<os::BlockDevice> device,
                                           os::Executor& executor, const StoreOptions& options) {
  auto impl = std::make_unique<Impl>(std::move(device), executor, options);
  KV_TRY(impl->open());
  return std::unique_ptr<Store>(new Store(std::move(impl)));
}

Status Store::write(WriteOp* op) { return impl_->write(this, op); }
Status Store::read(ReadOp* op) { return impl_->read(this, op); }

Status Store::release(const Key& key, std::uint64_t generation, Locator locator) {
  Result<std::uint32_t> slot = impl_->table.find(key, generation, locator);
  if (slot.ok()) {
    impl_->table.release(*slot);
    return {};
  }
  if (slot.status().code() != Code::kCorrupt) return slot.status();
  impl_->table.forget_retired(static_cast<std::uint32_t>(locator - 1));
  return {};
}

bool Store::is_durable(const Key& key, std::uint64_t generation, Locator locator) const {
  Result<std::uint32_t> slot = impl_->table.find(key, generation, locator);
  return slot.ok() && impl_->table.durable(*slot);
}

void Store::sync(SyncOp* op) {
  impl_->sync_next.push(op);
  impl_->want_sync();
}

void Store::tick(std::uint64_t now_ns) {
  Impl& s = *impl_;
  s.now_ns = now_ns;
  if (s.grow_blocked && now_ns >= s.grow_again_ns) s.grow_blocked = false;
  if (!s.table.dirty()) {
    s.sync_due_ns = 0;
  } else if (s.sync_due_ns == 0) {
    s.sync_due_ns = now_ns + s.options.sync_interval_ns;
  } else if (now_ns >= s.sync_due_ns) {
    s.want_sync();
  }
}

bool Store::wants_tick() const { return impl_->table.dirty() || impl_->grow_blocked; }

std::vector<Record> Store::records() const {
  const StoreTable& table = impl_->table;
  std::vector<Record> all;
  all.reserve(table.live(RecordKind::kEphemeral) + table.live(RecordKind::kPersistent));
  const std::uint64_t slots = table.segments_used() * table.slots_per_segment();
  for (std::uint32_t i = 0; i < slots; ++i) {
    const Slot& s = table.slot(i);
    if (static_cast<SlotState>(s.state) != SlotState::kLive) continue;
    all.push_back({s.key, s.generation, i + Locator{1}, static_cast<RecordKind>(s.kind)});
  }
  return all;
}

Status Store::claim(const Key& key, std::uint64_t generation, Locator locator) {
  Result<std::uint32_t> slot = impl_->table.find(key, generation, locator);
  if (!slot.ok()) return slot.status();
  impl_->table.claim(*slot);
  return {};
}

std::uint64_t Store::release_unclaimed(RecordKind kind) {
  StoreTable& table = impl_->table;
  std::uint64_t released = 0;
  const std::uint64_t slots = table.segments_used() * table.slots_per_segment();
  for (std::uint32_t i = 0; i < slots && table.unclaimed() > 0; ++i) {
    const Slot& s = table.slot(i);
    if (s.unclaimed == 0 || static_cast<RecordKind>(s.kind) != kind) continue;
    table.release(i);
    ++released;
  }
  return released;
}

StoreStats Store::stats() const {
  const Impl& s = *impl_;
  StoreStats stats = s.stats;
  stats.slots_max = s.table.segments_usable() * s.table.slots_per_segment();
  for (RecordKind kind : {RecordKind::kEphemeral, RecordKind::kPersistent}) {
    stats.slots_live[static_cast<unsigned>(kind)] = s.table.live(kind);
  }
  stats.slots_retired = s.table.retired();
  stats.slots_unclaimed = s.table.unclaimed();
  stats.slots_unsynced = s.table.unsynced();
  stats.segments_failed = s.table.failed();
  stats.file_bytes = s.geometry.segment_offset(s.table.segments_used());
  return stats;
}

bool Store::idle() const { return impl_->idle(); }

void Store::validate() const {
  const Impl& s = *impl_;
  s.table.validate();
  KV_CHECK(s.stats.inflight + s.headers.size() == s.options.inflight_max);
  for (unsigned kind : {0U, 1U}) {
    KV_CHECK(s.writes[kind].empty() || s.headers.empty() || s.opening);
  }
  KV_CHECK(s.reads.empty() || s.headers.empty());
}

// -- writing --------------------------------------------------------------------------------------

void Store::Impl::take_header(StoreOp* op) {
  op->header = headers.back();
  headers.pop_back();
  op->moved_bytes = 0;
  op->asked_again = false;
  ++stats.inflight;
}

void Store::Impl::give_header(StoreOp* op) {
  headers.push_back(op->header);
  op->header = nullptr;
  --stats.inflight;
}

Status Store::Impl::write(Store* store, WriteOp* op) {
  if (op->done == nullptr || op->page == nullptr || op->generation >> kGenerationBits != 0 ||
      !is_aligned(reinterpret_cast<std::uintptr_t>(op->page), kOsPageBytes)) {
    return {Code::kInvalid, "store: write without done, aligned page or small enough generation"};
  }
  op->store = store;
  op->locator = kNoLocator;
  OpQueue<StoreOp>& queue = writes[static_cast<unsigned>(op->kind)];
  if (!headers.empty() && queue.empty()) {
    if (take_slot(op)) {
      start_write(op);
      return {};
    }
    if (!opening && !open_segment(op->kind, false)) {
      ++stats.no_space;
      return {Code::kNoSpace, "store: full"};
    }
  }
  if (stats.queued >= options.queued_max) return {Code::kBusy, "store: too many operations queued"};
  ++stats.queued;
  queue.push(op);
  return {};
}

bool Store::Impl::take_slot(WriteOp* op) {
  // An ephemeral record goes among persistent ones when a segment of its own cannot be had without
  // taking from those.
  const bool own_coming = opening && opening_kind == op->kind && !candidate.reopen;
  const bool overflow =
      op->kind == RecordKind::kEphemeral && !own_coming && !table.has_cheap_candidate(may_grow());
  if (!table.take(op->kind, overflow, &op->slot)) return false;
  table.name(op->slot, op->key, op->generation, op->kind);
  return true;
}

void Store::Impl::start_write(WriteOp* op) {
  take_header(op);
  op->epoch = table.segment(table.segment_of(op->slot)).epoch;
  op->work = &Impl::checksum_work;
  static_cast<os::Job*>(op)->done = &Impl::checksum_done;  // WriteOp::done is the caller's
  executor.execute(op);
  // The next segment is made ready before this one is full.
  if (!opening && table.takable(op->kind) < table.slots_per_segment() / 2) {
    (void)open_segment(op->kind, true);
  }
}

void Store::Impl::checksum_work(os::Job* job) {
  auto* op = static_cast<WriteOp*>(job);
  const Impl& s = *op->store->impl_;
  const std::uint64_t begin_ns = thread_cpu_ns();
  format::begin_block(op->header, format::Magic::kRecord, s.id, s.geometry.slot_offset(op->slot),
                      op->epoch);
  auto* header = format::as<format::RecordHeader>(op->header);
  header->key = op->key;
  header->generation = op->generation;
  header->kind = static_cast<std::uint16_t>(op->kind);
  header->codec = format::Codec::kRaw;
  header->store_epoch = s.store_epoch;
  header->raw_bytes = s.geometry.page_bytes;
  header->stored_bytes = s.geometry.page_bytes;
  header->checksum = format::checksum_page(op->page, s.geometry.page_bytes);
  format::finish_block(op->header);
  op->checksum_ns = thread_cpu_ns() - begin_ns;
}

void Store::Impl::checksum_done(os::Job* job) {
  auto* op = static_cast<WriteOp*>(job);
  Impl& s = *op->store->impl_;
  s.stats.checksum_ns += op->checksum_ns;
  op->io.op = op;
  op->io.run = &Impl::on_written;
  s.transfer(op, true, const_cast<void*>(op->page));
}

// Starts, or goes on with, moving header and page.
void Store::Impl::transfer(StoreOp* op, bool is_write, void* page) {
  os::BlockIo& io = op->io;
  io.offset = geometry.slot_offset(op->slot) + op->moved_bytes;
  if (op->moved_bytes < format::kBlockBytes) {
    io.parts[0] = {op->header, format::kBlockBytes};
    io.parts[1] = {page, geometry.page_bytes};
    io.part_count = 2;
  } else {
    const std::uint64_t done = op->moved_bytes - format::kBlockBytes;
    io.parts[0] = {static_cast<char*>(page) + done, geometry.page_bytes - done};
    io.part_count = 1;
  }
  if (is_write) {
    device->write(&io);
  } else {
    device->read(&io);
  }
}

// True when there is no more to do: `error` is then 0 or an errno.
bool Store::Impl::transferred(StoreOp* op, int result, int* error) {
  *error = result < 0 ? -result : 0;
  if (result < 0) return true;
  // A short transfer goes on from the last whole block; one that gains none has failed.
  const std::uint64_t gained = align_down(static_cast<std::uint64_t>(result), format::kBlockBytes);
  op->moved_bytes += gained;
  if (op->moved_bytes >= geometry.slot_bytes()) return true;
  if (gained == 0) *error = EIO;
  return gained == 0;
}

void Store::Impl::on_written(os::Completion* self, int result, std::uint32_t /*flags*/) {
  auto* op = static_cast<WriteOp*>(static_cast<StoreOp::Io*>(self)->op);
  Impl& s = *op->store->impl_;
  int error = 0;
  if (!s.transferred(op, result, &error)) {
    s.transfer(op, true, const_cast<void*>(op->page));
    return;
  }
  if (error != 0) {
    // Full is not the slot's fault; any other failure is.
    s.table.write_failed(op->slot, !is_full(error));
    if (is_full(error)) {
      ++s.stats.no_space;
      s.finish_write(op, {Code::kNoSpace, "store: device full"});
    } else {
      ++s.stats.write_errors;
      s.finish_write(op, Status::from_errno("store: write", error));
    }
    return;
  }
  s.table.written(op->slot);
  ++s.stats.writes;
  s.stats.written_bytes += s.geometry.page_bytes;
  op->locator = op->slot + Locator{1};
  if (op->kind == RecordKind::kPersistent && op->until_durable) {
    s.give_header(op);
    s.durable_next.push(op);
    s.want_sync();
    s.pump();
    return;
  }
  s.finish_write(op, {});
}

void Store::Impl::finish_write(WriteOp* op, Status status) {
  if (op->header != nullptr) give_header(op);
  op->done(op, status);
  pump();
}

// -- reading --------------------------------------------------------------------------------------

Status Store::Impl::read(Store* store, ReadOp* op) {
  if (op->done == nullptr || op->page == nullptr ||
      !is_aligned(reinterpret_cast<std::uintptr_t>(op->page), kOsPageBytes)) {
    return {Code::kInvalid, "store: read without done or aligned page"};
  }
  Result<std::uint32_t> slot = table.find(op->key, op->generation, op->locator);
  if (!slot.ok()) return slot.status();
  const bool queue = headers.empty() || !reads.empty();
  if ((queue && stats.queued >= options.queued_max) || !table.begin_read(*slot)) {
    return {Code::kBusy, "store: too many operations queued"};
  }
  op->store = store;
  op->slot = *slot;
  if (queue) {
    ++stats.queued;
    reads.push(op);
  } else {
    start_read(op);
  }
  return {};
}

void Store::Impl::start_read(ReadOp* op) {
  take_header(op);
  op->epoch = table.segment(table.segment_of(op->slot)).epoch;
  op->io.op = op;
  op->io.run = &Impl::on_read;
  transfer(op, false, op->page);
}

void Store::Impl::on_read(os::Completion* self, int result, std::uint32_t /*flags*/) {
  auto* op = static_cast<ReadOp*>(static_cast<StoreOp::Io*>(self)->op);
  Impl& s = *op->store->impl_;
  int error = 0;
  if (!s.transferred(op, result, &error)) {
    s.transfer(op, false, op->page);
    return;
  }
  if (error != 0) {
    ++s.stats.read_errors;
    s.table.read_failed(op->slot);
    s.finish_read(op, Status::from_errno("store: read", error));
    return;
  }
  op->work = &Impl::verify_work;
  static_cast<os::Job*>(op)->done = &Impl::verify_done;
  s.executor.execute(op);
}

void Store::Impl::verify_work(os::Job* job) {
  auto* op = static_cast<ReadOp*>(job);
  const Impl& s = *op->store->impl_;
  const std::uint64_t begin_ns = thread_cpu_ns();
  const auto* header = format::as<format::RecordHeader>(op->header);
  op->verified =
      format::valid(op->header, format::Magic::kRecord, s.geometry.slot_offset(op->slot)) &&
      header->head.store == s.id && header->head.epoch == op->epoch && header->key == op->key &&
      header->generation == op->generation && header->codec == format::Codec::kRaw &&
      header->raw_bytes == s.geometry.page_bytes && header->stored_bytes == s.geometry.page_bytes &&
      header->checksum == format::checksum_page(op->page, s.geometry.page_bytes);
  op->checksum_ns = thread_cpu_ns() - begin_ns;
}

void Store::Impl::verify_done(os::Job* job) {
  auto* op = static_cast<ReadOp*>(job);
  Impl& s = *op->store->impl_;
  s.stats.checksum_ns += op->checksum_ns;
  if (op->verified) {
    ++s.stats.reads;
    s.stats.read_bytes += s.geometry.page_bytes;
    s.finish_read(op, {});
    return;
  }
  if (!op->asked_again) {
    ++s.stats.rereads;
    op->asked_again = true;
    op->moved_bytes = 0;
    s.transfer(op, false, op->page);
    return;
  }
  ++s.stats.corrupt;
  const auto state = static_cast<SlotState>(s.table.slot(op->slot).state);
  if (state != SlotState::kRetired) s.table.retire(op->slot);  // else by another read of it
  s.finish_read(op, {Code::kCorrupt, "store: record does not verify"});
}

void Store::Impl::finish_read(ReadOp* op, Status status) {
  table.end_read(op->slot);
  give_header(op);
  op->done(op, status);
  pump();
}

// Starts what is queued as far as there are headers and slots; reads first, somebody waits for
// them. REQUIRES: not called from a public call, since it may end operations.
void Store::Impl::pump() {
  while (!headers.empty() && !reads.empty()) {
    --stats.queued;
    start_read(static_cast<ReadOp*>(reads.pop()));
  }
  for (unsigned kind : {0U, 1U}) {
    while (!headers.empty() && !writes[kind].empty()) {
      auto* op = static_cast<WriteOp*>(writes[kind].front());
      const bool has_slot = take_slot(op);
      if (!has_slot && (opening || open_segment(op->kind, false))) break;
      writes[kind].pop();
      --stats.queued;
      if (has_slot) {
        start_write(op);
        continue;
      }
      ++stats.no_space;
      op->done(op, {Code::kNoSpace, "store: full"});
    }
  }
}

}  // namespace kvmem::tier
