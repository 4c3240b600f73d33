// The store's housekeeping: opening segments, syncing, sealing. States: store.h.
#include "base/check.h"
#include "tier/store_impl.h"

namespace kvmem::tier {

// -- opening --------------------------------------------------------------------------------------

// False when there is nothing to open for `kind`. REQUIRES: !opening.
bool Store::Impl::open_segment(RecordKind kind, bool cheap_only) {
  KV_CHECK(!opening);
  if (!table.next_candidate(kind, may_grow(), cheap_only, &candidate)) return false;
  table.begin_open(candidate, kind, store_epoch << 32 | ++segment_counter);
  opening = true;
  opening_kind = kind;
  open_io.impl = this;
  if (candidate.fresh && device->grows()) {
    open_io.run = &Impl::on_reserved;
    open_io.offset = geometry.segment_offset(candidate.segment);
    device->reserve(&open_io, geometry.segment_bytes());
  } else {
    open_step_header();
  }
  return true;
}

void Store::Impl::on_reserved(os::Completion* self, int result, std::uint32_t /*flags*/) {
  Impl& s = *static_cast<Io*>(self)->impl;
  // Without fallocate the writes themselves make the file longer.
  if (result >= 0 || result == -EOPNOTSUPP) {
    s.open_step_header();
    return;
  }
  // Whatever the reason, the file is as long as it gets for now.
  s.grow_blocked = true;
  s.grow_again_ns = s.now_ns + 1'000'000'000;
  s.table.open_failed(s.candidate, false);
  s.opening = false;
  s.pump();
}

// A new segment gets its header; of a sealed one the index is voided. The two are neighbours, so an
// empty segment gets a header and a void index in one write.
void Store::Impl::open_step_header() {
  const std::uint32_t i = candidate.segment;
  auto* header = static_cast<char*>(open_block.get());
  char* index = header + format::kBlockBytes;
  std::memset(index, 0, format::kBlockBytes);
  if (candidate.reopen) {
    open_io.offset = geometry.index_offset(i);
    open_io.parts[0] = {index, format::kBlockBytes};
  } else {
    const Segment& segment = table.segment(i);
    open_io.offset = geometry.segment_offset(i);
    format::begin_block(header, format::Magic::kSegment, id, open_io.offset, segment.epoch);
    format::as<format::SegmentHeader>(header)->kind = static_cast<std::uint64_t>(segment.kind);
    format::finish_block(header);
    open_io.parts[0] = {header, 2 * format::kBlockBytes};
  }
  open_io.part_count = 1;
  open_io.run = &Impl::on_header;
  device->write(&open_io);
}

void Store::Impl::on_header(os::Completion* self, int result, std::uint32_t /*flags*/) {
  Impl& s = *static_cast<Io*>(self)->impl;
  if (result < 0 || static_cast<std::uint64_t>(result) != s.open_io.size_bytes()) {
    ++s.stats.write_errors;
    s.open_done(Status::from_errno("store: segment header", result < 0 ? -result : EIO));
    return;
  }
  s.open_sync.done = &Impl::on_opened;
  s.open_sync.context = &s;
  s.sync_next.push(&s.open_sync);
  s.want_sync();
}

void Store::Impl::on_opened(SyncOp* self, Status status) {
  static_cast<Impl*>(self->context)->open_done(status);
}

void Store::Impl::open_done(Status status) {
  opening = false;
  if (status.ok()) {
    table.opened(candidate.segment);
    if (candidate.reopen) ++stats.reopens;
  } else {
    table.open_failed(candidate, true);
  }
  pump();
}

// -- syncing --------------------------------------------------------------------------------------

// A sync that covers everything written so far: the next one, if one is under way.
void Store::Impl::want_sync() {
  if (!sync_running) start_sync();
}

void Store::Impl::start_sync() {
  sync_running = true;
  sync_due_ns = 0;
  sync_current = sync_next.take();
  durable_current = durable_next.take();
  table.begin_sync();
  sync_io.impl = this;
  sync_io.run = &Impl::on_synced;
  device->sync(&sync_io);
}

void Store::Impl::on_synced(os::Completion* self, int result, std::uint32_t /*flags*/) {
  Impl& s = *static_cast<Io*>(self)->impl;
  ++s.stats.syncs;
  if (result < 0) ++s.stats.sync_errors;
  s.sync_done(result < 0 ? Status::from_errno("store: fdatasync", -result) : Status{});
}

void Store::Impl::sync_done(Status status) {
  OpQueue<SyncOp> synced = sync_current.take();
  OpQueue<StoreOp> durable = durable_current.take();
  OpQueue<SyncOp> synced_too;
  OpQueue<StoreOp> durable_too;
  if (status.ok()) {
    table.end_sync();
  } else {
    // Also what was written while the sync ran: it may have gone down with the same cache. So those
    // who wait for the next sync are told now; it would not cover what they wait for.
    table.fail_unsynced();
    synced_too = sync_next.take();
    durable_too = durable_next.take();
  }
  sync_running = false;
  if (!sync_next.empty() || !durable_next.empty()) start_sync();

  for (auto* queue : {&durable, &durable_too}) {
    while (StoreOp* waiting = queue->pop()) {
      auto* op = static_cast<WriteOp*>(waiting);
      Status outcome = status;
      if (status.ok() && !table.durable(op->slot)) {
        outcome = Status::from_errno("store: an earlier fdatasync", EIO);
      }
      op->done(op, outcome);
    }
  }
  for (auto* queue : {&synced, &synced_too}) {
    while (SyncOp* op = queue->pop()) op->done(op, status);
  }
  seal_next();
}

// -- sealing --------------------------------------------------------------------------------------

void Store::Impl::seal_next() {
  if (sealing || !table.next_full(&sealing_segment)) return;
  sealing = true;
  seal_io.impl = this;
  seal_io.run = &Impl::on_sealed;
  seal_io.offset = geometry.index_offset(sealing_segment);
  format::begin_block(seal_block.get(), format::Magic::kIndex, id, seal_io.offset,
                      table.segment(sealing_segment).epoch);
  auto* index = format::as<format::Index>(seal_block.get());
  for (std::uint32_t i = 0; i < table.slots_per_segment(); ++i) {
    const Slot& slot = table.slot(table.first_slot(sealing_segment) + i);
    if (static_cast<SlotState>(slot.state) != SlotState::kLive) continue;
    index->entries[i] = {slot.key, slot.generation, 1};
  }
  format::finish_block(seal_block.get());
  seal_io.parts[0] = {seal_block.get(), format::kBlockBytes};
  seal_io.part_count = 1;
  device->write(&seal_io);
}

void Store::Impl::on_sealed(os::Completion* self, int result, std::uint32_t /*flags*/) {
  Impl& s = *static_cast<Io*>(self)->impl;
  s.sealing = false;
  if (result == static_cast<int>(format::kBlockBytes)) {
    ++s.stats.seals;
  } else {
    ++s.stats.write_errors;
  }
  // Sealed even if the write failed: the index may be there, and is voided before slots change.
  s.table.sealed(s.sealing_segment);
  s.seal_next();
  s.pump();
}

}  // namespace kvmem::tier
