#include "tier/store_table.h"

#include <new>

#include "base/check.h"

namespace kvmem::tier {

Result<StoreTable> StoreTable::create(std::uint64_t segments, std::uint64_t usable,
                                      std::uint32_t slots_per_segment) {
  KV_CHECK(slots_per_segment >= 1 && slots_per_segment <= 64 && usable <= segments);
  const std::uint64_t slots = segments * slots_per_segment;
  if (slots >= (1ULL << kLocatorBits) - 1) {
    return Status(Code::kInvalid, "store: capacity beyond 2^32 pages; configure less");
  }
  StoreTable table;
  table.slots_per_segment_ = slots_per_segment;
  table.all_slots_ = slots_per_segment == 64 ? ~0ULL : (1ULL << slots_per_segment) - 1;
  table.usable_ = usable;
  // calloc of this size is a fresh mapping: slots that are never touched take no memory.
  table.slots_.reset(static_cast<Slot*>(std::calloc(slots == 0 ? 1 : slots, sizeof(Slot))));
  if (table.slots_ == nullptr) return Status(Code::kNoMemory, "store: slot table");
  try {
    table.segments_.resize(segments);
    for (auto* list : {&table.available_[0], &table.available_[1], &table.empty_, &table.dirty_,
                       &table.syncing_, &table.full_}) {
      list->reserve(segments);
    }
  } catch (const std::bad_alloc&) {
    return Status(Code::kNoMemory, "store: segment table");
  }
  for (Segment& segment : table.segments_) segment.free = table.all_slots_;
  return table;
}

// -- totals ---------------------------------------------------------------------------------------

void StoreTable::uncount(const Segment& segment, std::uint32_t i) {
  if (segment.state == SegmentState::kFailed) --failed_;
  if (!is_usable(i)) return;
  switch (segment.state) {
    case SegmentState::kOpen:
      takable_[index(segment.kind)] -= static_cast<unsigned>(std::popcount(segment.free));
      if (segment.live + segment.writing == 0) --open_empty_[index(segment.kind)];
      break;
    case SegmentState::kSealed:
      if (segment.free != 0) --sealed_reusable_;
      break;
    case SegmentState::kEmpty:
      if (i < used_) --empty_segments_;
      break;
    default:
      break;
  }
}

void StoreTable::count(Segment& segment, std::uint32_t i) {
  if (segment.state == SegmentState::kFailed) ++failed_;
  if (!is_usable(i)) return;
  const unsigned kind = index(segment.kind);
  switch (segment.state) {
    case SegmentState::kOpen:
      takable_[kind] += static_cast<unsigned>(std::popcount(segment.free));
      if (segment.live + segment.writing == 0) ++open_empty_[kind];
      if (segment.free != 0 && (segment.in_available & 1U << kind) == 0 && current_[kind] != i) {
        segment.in_available |= static_cast<std::uint8_t>(1U << kind);
        available_[kind].push_back(i);
      }
      break;
    case SegmentState::kSealed:
      if (segment.free != 0) ++sealed_reusable_;
      break;
    case SegmentState::kEmpty:
      if (i >= used_) break;
      ++empty_segments_;
      if (!segment.in_empty) {
        segment.in_empty = true;
        empty_.push_back(i);
      }
      break;
    default:
      break;
  }
}

template <class Change>
void StoreTable::change(std::uint32_t i, Change&& change) {
  Segment& segment = segments_[i];
  uncount(segment, i);
  change(segment);
  count(segment, i);
}

// -- recovery -------------------------------------------------------------------------------------

void StoreTable::recover_slot(std::uint32_t slot, const Key& key, std::uint64_t generation,
                              RecordKind kind) {
  Segment& segment = segments_[segment_of(slot)];
  KV_CHECK(state(slots_[slot]) == SlotState::kFree);
  name(slot, key, generation, kind);
  slots_[slot].state = static_cast<unsigned>(SlotState::kLive);
  slots_[slot].unclaimed = 1;
  ++unclaimed_;
  segment.free &= ~bit(slot);
  ++segment.live;
  if (kind == RecordKind::kPersistent) ++segment.live_persistent;
  ++live_[index(kind)];
}

void StoreTable::recover_retired(std::uint32_t slot) {
  KV_CHECK(state(slots_[slot]) == SlotState::kFree);
  slots_[slot].state = static_cast<unsigned>(SlotState::kRetired);
  segments_[segment_of(slot)].free &= ~bit(slot);
  ++retired_;
}

void StoreTable::recover_segment(std::uint32_t i, SegmentState state, RecordKind kind,
                                 std::uint64_t epoch) {
  Segment& segment = segments_[i];
  segment.state = state;
  segment.kind = kind;
  segment.epoch = epoch;
}

void StoreTable::finish_recovery(std::uint64_t used) {
  used_ = used;
  // Downwards, so that the lists, which are taken from the end, give the front of the file first.
  for (std::uint64_t i = used; i-- > 0;) {
    Segment& segment = segments_[i];
    const bool held =
        segment.state == SegmentState::kOpen || segment.state == SegmentState::kSealed;
    if (held && segment.live == 0) segment.state = SegmentState::kEmpty;
    count(segment, static_cast<std::uint32_t>(i));
  }
}

// -- records --------------------------------------------------------------------------------------

Result<std::uint32_t> StoreTable::find(const Key& key, std::uint64_t generation,
                                       Locator locator) const {
  const Status none(Code::kNotFound, "store: no such record");
  if (locator == kNoLocator || locator > segments_.size() * slots_per_segment_) return none;
  const auto i = static_cast<std::uint32_t>(locator - 1);
  const Slot& s = slots_[i];
  if (!(s.key == key) || s.generation != generation) return none;
  if (state(s) == SlotState::kLive) return i;
  if (state(s) == SlotState::kRetired) return Status(Code::kCorrupt, "store: record quarantined");
  return none;
}

bool StoreTable::durable(std::uint32_t slot) const {
  const Segment& segment = segments_[segment_of(slot)];
  const Slot& s = slots_[slot];
  return state(s) == SlotState::kLive && s.kind == index(RecordKind::kPersistent) &&
         ((segment.unsynced | segment.syncing) & bit(slot)) == 0;
}

bool StoreTable::take(RecordKind kind, bool overflow, std::uint32_t* slot) {
  for (unsigned k : {index(kind), index(RecordKind::kPersistent)}) {
    const auto takable = [&](std::uint32_t i) {
      const Segment& s = segments_[i];
      return s.state == SegmentState::kOpen && index(s.kind) == k && s.free != 0;
    };
    std::vector<std::uint32_t>& list = available_[k];
    while (current_[k] == kNoSegment || !takable(current_[k])) {
      current_[k] = kNoSegment;
      if (list.empty()) break;
      current_[k] = list.back();
      list.pop_back();
      segments_[current_[k]].in_available &= static_cast<std::uint8_t>(~(1U << k));
    }
    if (current_[k] != kNoSegment) {
      const std::uint32_t i = current_[k];
      change(i, [&](Segment& segment) {
        *slot = first_slot(i) + static_cast<unsigned>(std::countr_zero(segment.free));
        segment.free &= segment.free - 1;
        ++segment.writing;
      });
      slots_[*slot].state = static_cast<unsigned>(SlotState::kWriting);
      return true;
    }
    if (!overflow) break;
  }
  return false;
}

void StoreTable::name(std::uint32_t slot, const Key& key, std::uint64_t generation,
                      RecordKind kind) {
  Slot& s = slots_[slot];
  s.key = key;
  s.generation = generation & ((1ULL << kGenerationBits) - 1);
  s.kind = index(kind) & 1;
}

void StoreTable::written(std::uint32_t slot) {
  KV_CHECK(state(slots_[slot]) == SlotState::kWriting);
  slots_[slot].state = static_cast<unsigned>(SlotState::kLive);
  ++live_[slots_[slot].kind];
  const std::uint32_t i = segment_of(slot);
  change(i, [&](Segment& segment) {
    --segment.writing;
    ++segment.live;
    if (slots_[slot].kind != index(RecordKind::kPersistent)) return;
    ++segment.live_persistent;
    segment.unsynced |= bit(slot);  // in a failed segment for ever: no sync will cover it
    if (segment.state != SegmentState::kFailed && !segment.in_dirty) {
      segment.in_dirty = true;
      dirty_.push_back(i);
    }
  });
}

void StoreTable::write_failed(std::uint32_t slot, bool retire) {
  KV_CHECK(state(slots_[slot]) == SlotState::kWriting);
  slots_[slot] = {};
  if (retire) {
    slots_[slot].state = static_cast<unsigned>(SlotState::kRetired);
    ++retired_;
  }
  change(segment_of(slot), [&](Segment& segment) {
    --segment.writing;
    if (!retire) segment.free |= bit(slot);
  });
}

bool StoreTable::begin_read(std::uint32_t slot) {
  if (slots_[slot].readers == kSlotReadersMax) return false;
  slots_[slot].readers = (slots_[slot].readers + 1) & kSlotReadersMax;
  return true;
}

void StoreTable::end_read(std::uint32_t slot) {
  KV_CHECK(slots_[slot].readers > 0);
  slots_[slot].readers = (slots_[slot].readers - 1) & kSlotReadersMax;
  if (slots_[slot].readers == 0 && state(slots_[slot]) == SlotState::kReleasing) {
    set_free(slot);
  }
}

void StoreTable::claim(std::uint32_t slot) {
  if (slots_[slot].unclaimed != 0) --unclaimed_;
  slots_[slot].unclaimed = 0;
}

void StoreTable::read_failed(std::uint32_t slot) {
  const SlotState now = state(slots_[slot]);
  if (now == SlotState::kLive || now == SlotState::kReleasing) slots_[slot].unreadable = 1;
}

void StoreTable::release(std::uint32_t slot) {
  KV_CHECK(state(slots_[slot]) == SlotState::kLive);
  claim(slot);
  slots_[slot].state = static_cast<unsigned>(SlotState::kReleasing);
  if (slots_[slot].readers == 0) set_free(slot);
}

void StoreTable::set_free(std::uint32_t slot) {
  KV_CHECK(state(slots_[slot]) == SlotState::kReleasing);
  if (slots_[slot].unreadable != 0) {
    retire(slot);
    forget_retired(slot);
    return;
  }
  const unsigned kind = slots_[slot].kind;
  --live_[kind];
  slots_[slot] = {};
  const std::uint32_t i = segment_of(slot);
  change(i, [&](Segment& segment) {
    --segment.live;
    if (kind == index(RecordKind::kPersistent)) --segment.live_persistent;
    segment.free |= bit(slot);
    segment.unsynced &= ~bit(slot);
    segment.syncing &= ~bit(slot);
    if (segment.state == SegmentState::kSealed && segment.live == 0) {
      segment.state = SegmentState::kEmpty;
    }
  });
}

void StoreTable::retire(std::uint32_t slot) {
  KV_CHECK(state(slots_[slot]) == SlotState::kLive || state(slots_[slot]) == SlotState::kReleasing);
  const unsigned kind = slots_[slot].kind;
  claim(slot);
  slots_[slot].state = static_cast<unsigned>(SlotState::kRetired);
  ++retired_;
  --live_[kind];
  change(segment_of(slot), [&](Segment& segment) {
    --segment.live;
    if (kind == index(RecordKind::kPersistent)) --segment.live_persistent;
    segment.unsynced &= ~bit(slot);
    segment.syncing &= ~bit(slot);
    if (segment.state == SegmentState::kSealed && segment.live == 0) {
      segment.state = SegmentState::kEmpty;
    }
  });
}

void StoreTable::forget_retired(std::uint32_t slot) {
  KV_CHECK(state(slots_[slot]) == SlotState::kRetired);
  slots_[slot].key = {};
  slots_[slot].generation = 0;
}

// -- segments -------------------------------------------------------------------------------------

bool StoreTable::next_candidate(RecordKind kind, bool may_grow, bool cheap_only, Candidate* out) {
  *out = {};
  while (!empty_.empty()) {  // first: its extents have been written before
    const std::uint32_t i = empty_.back();
    empty_.pop_back();
    segments_[i].in_empty = false;
    if (segments_[i].state != SegmentState::kEmpty) continue;
    out->segment = i;
    return true;
  }
  if (may_grow && used_ < usable_) {
    out->segment = static_cast<std::uint32_t>(used_);
    out->fresh = true;
    return true;
  }
  if (cheap_only) return false;
  const unsigned other = 1 - index(kind);
  if (sealed_reusable_ > 0) {
    int best = 0;
    for (std::uint32_t i = 0; i < used_ && i < usable_; ++i) {
      const int freed = std::popcount(segments_[i].free);
      if (segments_[i].state != SegmentState::kSealed || freed <= best) continue;
      best = freed;
      out->segment = i;
    }
    KV_CHECK(best > 0);
    out->reopen = true;
    return true;
  }
  if (open_empty_[other] > 0) {
    for (std::uint32_t i = 0; i < used_ && i < usable_; ++i) {
      const Segment& s = segments_[i];
      if (s.state != SegmentState::kOpen || index(s.kind) != other || s.live + s.writing != 0) {
        continue;
      }
      out->segment = i;
      return true;
    }
    KV_CHECK(false);
  }
  return false;
}

void StoreTable::begin_open(const Candidate& candidate, RecordKind kind, std::uint64_t epoch) {
  if (candidate.fresh) {
    KV_CHECK(candidate.segment == used_);
    ++used_;
    ++empty_segments_;  // change() takes it off again
  }
  change(candidate.segment, [&](Segment& segment) {
    if (candidate.reopen) {
      KV_CHECK(segment.state == SegmentState::kSealed);
      segment.state = SegmentState::kReopening;
      return;
    }
    KV_CHECK(segment.live + segment.writing == 0);
    segment.state = SegmentState::kOpening;
    segment.kind = kind;
    segment.epoch = epoch;
  });
}

void StoreTable::opened(std::uint32_t i) {
  change(i, [&](Segment& segment) {
    KV_CHECK(segment.state == SegmentState::kOpening || segment.state == SegmentState::kReopening);
    segment.state = SegmentState::kOpen;
  });
}

void StoreTable::open_failed(const Candidate& candidate, bool failed) {
  if (failed) return fail(candidate.segment);
  KV_CHECK(candidate.fresh && candidate.segment + 1 == used_);
  --used_;
  change(candidate.segment, [&](Segment& segment) { segment.state = SegmentState::kEmpty; });
}

void StoreTable::fail(std::uint32_t i) {
  change(i, [&](Segment& segment) {
    segment.state = SegmentState::kFailed;
    segment.unsynced |= segment.syncing;
    segment.syncing = 0;
  });
}

// -- syncs ----------------------------------------------------------------------------------------

std::uint64_t StoreTable::unsynced() const {
  int slots = 0;
  for (std::uint32_t i : dirty_) slots += std::popcount(segments_[i].unsynced);
  for (std::uint32_t i : syncing_) slots += std::popcount(segments_[i].syncing);
  return static_cast<std::uint64_t>(slots);
}

void StoreTable::begin_sync() {
  KV_CHECK(syncing_.empty());
  syncing_.swap(dirty_);
  for (std::uint32_t i : syncing_) {
    Segment& segment = segments_[i];
    segment.in_dirty = false;
    if (segment.state == SegmentState::kFailed) continue;
    segment.syncing = segment.unsynced;
    segment.unsynced = 0;
  }
}

void StoreTable::end_sync() {
  for (std::uint32_t i : syncing_) {
    Segment& segment = segments_[i];
    segment.syncing = 0;
    if (segment.state == SegmentState::kOpen && segment.free == 0 && !segment.in_full) {
      segment.in_full = true;
      full_.push_back(i);
    }
  }
  syncing_.clear();
}

void StoreTable::fail_unsynced() {
  for (auto* list : {&syncing_, &dirty_}) {
    for (std::uint32_t i : *list) segments_[i].in_dirty = false;
    list->clear();
  }
  for (std::uint32_t i = 0; i < segments_.size(); ++i) {
    const Segment& s = segments_[i];
    if (s.state == SegmentState::kFailed) continue;
    // A write under way may have had a first part done, and lost with the rest.
    const bool writing = s.writing > 0 && s.kind == RecordKind::kPersistent;
    if (writing || (s.unsynced | s.syncing) != 0) fail(i);
  }
}

bool StoreTable::next_full(std::uint32_t* out) {
  while (!full_.empty()) {
    const std::uint32_t i = full_.back();
    full_.pop_back();
    const Segment& s = segments_[i];
    segments_[i].in_full = false;
    if (s.state != SegmentState::kOpen || s.kind != RecordKind::kPersistent || s.free != 0 ||
        s.writing != 0 || (s.unsynced | s.syncing) != 0 || s.live == 0 ||
        s.live != s.live_persistent) {
      continue;
    }
    change(i, [&](Segment& segment) { segment.state = SegmentState::kSealing; });
    *out = i;
    return true;
  }
  return false;
}

void StoreTable::sealed(std::uint32_t i) {
  change(i, [&](Segment& segment) {
    if (segment.state != SegmentState::kSealing) return;
    segment.state = segment.live == 0 ? SegmentState::kEmpty : SegmentState::kSealed;
  });
}

// -- the whole ------------------------------------------------------------------------------------

void StoreTable::validate() const {
  std::uint64_t takable[2] = {};
  std::uint64_t open_empty[2] = {};
  std::uint64_t live[2] = {};
  std::uint64_t sealed_reusable = 0;
  std::uint64_t empty_segments = 0;
  std::uint64_t retired = 0;
  std::uint64_t unclaimed = 0;
  std::uint64_t failed = 0;
  for (std::uint32_t i = 0; i < segments_.size(); ++i) {
    const Segment& segment = segments_[i];
    unsigned held = 0;
    unsigned persistent = 0;
    unsigned writing = 0;
    for (std::uint32_t k = 0; k < slots_per_segment_; ++k) {
      const std::uint32_t number = first_slot(i) + k;
      const Slot& s = slots_[number];
      const bool is_free = state(s) == SlotState::kFree;
      KV_CHECK(is_free == ((segment.free & bit(number)) != 0));
      if (s.unclaimed != 0) {
        KV_CHECK(state(s) == SlotState::kLive);
        ++unclaimed;
      }
      if (state(s) == SlotState::kWriting) ++writing;
      if (state(s) == SlotState::kRetired) ++retired;
      const bool record = state(s) == SlotState::kLive || state(s) == SlotState::kReleasing;
      if (record) {
        ++held;
        ++live[s.kind];
        if (s.kind == index(RecordKind::kPersistent)) ++persistent;
      }
      if (((segment.unsynced | segment.syncing) & bit(number)) != 0) {
        KV_CHECK(record && s.kind == index(RecordKind::kPersistent));
      }
    }
    KV_CHECK(held == segment.live && persistent == segment.live_persistent &&
             writing == segment.writing);
    KV_CHECK((segment.free & ~all_slots_) == 0);
    if (segment.state == SegmentState::kFailed) ++failed;
    if (i >= used_) KV_CHECK(segment.state == SegmentState::kEmpty && held + writing == 0);
    switch (segment.state) {
      case SegmentState::kEmpty:
      case SegmentState::kOpening:
        KV_CHECK(held + writing == 0);
        break;
      case SegmentState::kSealing:
      case SegmentState::kSealed:
      case SegmentState::kReopening:
        KV_CHECK(writing == 0 && (segment.unsynced | segment.syncing) == 0);
        break;
      default:
        break;
    }
    if (!is_usable(i)) continue;
    const unsigned kind = index(segment.kind);
    if (segment.state == SegmentState::kOpen) {
      takable[kind] += static_cast<unsigned>(std::popcount(segment.free));
      if (held + writing == 0) ++open_empty[kind];
      KV_CHECK(segment.free == 0 || (segment.in_available & 1U << kind) != 0 ||
               current_[kind] == i);
    }
    if (segment.state == SegmentState::kSealed) {
      KV_CHECK(held > 0);
      if (segment.free != 0) ++sealed_reusable;
    }
    if (segment.state == SegmentState::kEmpty && i < used_) {
      ++empty_segments;
      KV_CHECK(segment.in_empty);
    }
  }
  for (unsigned k : {0U, 1U}) {
    KV_CHECK(takable[k] == takable_[k] && open_empty[k] == open_empty_[k] && live[k] == live_[k]);
  }
  KV_CHECK(sealed_reusable == sealed_reusable_ && empty_segments == empty_segments_ &&
           retired == retired_ && unclaimed == unclaimed_ && failed == failed_);
}

}  // namespace kvmem::tier
