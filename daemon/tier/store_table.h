// Slots and segments in memory: which record is where, which slot is next. No I/O and no clock; the
// states are those of store.h, and their moves are made by Store, in the order the device allows.
//
// Costs 24 bytes a slot (untouched ones take no memory) and 64 a segment. Every call is O(1) but
// the choice of a sealed or a foreign segment to reuse, which is only made when there is one.
#pragma once

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "tier/store.h"

namespace kvmem::tier {

enum class SlotState : std::uint8_t { kFree, kWriting, kLive, kReleasing, kRetired };

struct Slot {
  Key key;
  std::uint64_t generation : kGenerationBits;
  std::uint64_t state : 3;       // SlotState
  std::uint64_t kind : 1;        // RecordKind
  std::uint64_t unclaimed : 1;   // recovered, and nobody asked for it yet
  std::uint64_t unreadable : 1;  // the device failed a read of it: retired when it is released
  std::uint64_t readers : 10;
};
static_assert(sizeof(Slot) == 24);
inline constexpr unsigned kSlotReadersMax = (1U << 10) - 1;

enum class SegmentState : std::uint8_t {
  kEmpty,  // also: never used
  kOpening,
  kOpen,
  kSealing,
  kSealed,
  kReopening,
  kFailed,
};

struct Segment {
  std::uint64_t epoch = 0;
  // One bit a slot.
  std::uint64_t free = 0;      // state kFree, whether or not the segment lets it be taken
  std::uint64_t unsynced = 0;  // persistent, written, no sync has started since
  std::uint64_t syncing = 0;   // persistent, written before the sync under way started
  std::uint8_t live = 0;       // kLive and kReleasing
  std::uint8_t live_persistent = 0;
  std::uint8_t writing = 0;
  SegmentState state = SegmentState::kEmpty;
  RecordKind kind = RecordKind::kEphemeral;
  // Whether it is in the list of that name; lists are cleaned when they are read.
  std::uint8_t in_available = 0;  // one bit a RecordKind
  bool in_empty = false;
  bool in_dirty = false;
  bool in_full = false;
};
static_assert(sizeof(Segment) <= 64);

class StoreTable {
 public:
  // Segments from `usable` on hold what they hold but take no new records.
  // kNoMemory; kInvalid when locators would not suffice.
  static Result<StoreTable> create(std::uint64_t segments, std::uint64_t usable,
                                   std::uint32_t slots_per_segment);

  // -- while recovering: every segment at most once, then finish_recovery()
  // ------------------------
  void recover_slot(std::uint32_t slot, const Key& key, std::uint64_t generation, RecordKind kind);
  void recover_retired(std::uint32_t slot);
  void recover_segment(std::uint32_t segment, SegmentState state, RecordKind kind,
                       std::uint64_t epoch);
  // Segments before `used` that were not recovered are empty; the rest was never used.
  void finish_recovery(std::uint64_t used);

  // -- records
  // ------------------------------------------------------------------------------------- The slot
  // of that record. kNotFound; kCorrupt when it is quarantined.
  Result<std::uint32_t> find(const Key& key, std::uint64_t generation, Locator locator) const;
  bool durable(std::uint32_t slot) const;
  // A free slot in a segment opened for `kind` or, with `overflow`, for either. free -> writing.
  bool take(RecordKind kind, bool overflow, std::uint32_t* slot);
  void name(std::uint32_t slot, const Key& key, std::uint64_t generation, RecordKind kind);
  void written(std::uint32_t slot);                    // writing -> live
  void write_failed(std::uint32_t slot, bool retire);  // writing -> retired or free
  bool begin_read(std::uint32_t slot);                 // false: too many readers
  void end_read(std::uint32_t slot);
  void read_failed(std::uint32_t slot);  // by the device
  void release(std::uint32_t slot);
  void forget_retired(std::uint32_t slot);  // its owner knows; the name goes
  void retire(std::uint32_t slot);          // live|releasing -> retired

  // -- segments
  // ------------------------------------------------------------------------------------ Free slots
  // that take(kind, false) can give.
  std::uint64_t takable(RecordKind kind) const { return takable_[index(kind)]; }
  struct Candidate {
    std::uint32_t segment = 0;
    bool fresh = false;   // never used: space is to be reserved
    bool reopen = false;  // sealed: its index is to be voided
  };
  // What to open next for `kind`; `cheap_only`: nothing that takes from sealed or other segments.
  bool next_candidate(RecordKind kind, bool may_grow, bool cheap_only, Candidate* out);
  bool has_cheap_candidate(bool may_grow) const {
    return empty_segments_ > 0 || (may_grow && used_ < usable_);
  }
  void begin_open(const Candidate& candidate, RecordKind kind, std::uint64_t epoch);
  void opened(std::uint32_t segment);                         // opening|reopening -> open
  void open_failed(const Candidate& candidate, bool failed);  // -> failed, or as it was
  void fail(std::uint32_t segment);

  // -- syncs
  // ---------------------------------------------------------------------------------------
  bool dirty() const { return !dirty_.empty(); }
  std::uint64_t unsynced() const;  // persistent records that a sync has yet to make durable
  void begin_sync();
  void end_sync();                         // what begin_sync() saw is durable
  void fail_unsynced();                    // segments with records that are not durable fail
  bool next_full(std::uint32_t* segment);  // open and worth sealing -> sealing
  void sealed(std::uint32_t segment);

  const Segment& segment(std::uint32_t i) const { return segments_[i]; }
  const Slot& slot(std::uint32_t i) const { return slots_[i]; }
  std::uint32_t segment_of(std::uint32_t slot) const { return slot / slots_per_segment_; }
  std::uint32_t first_slot(std::uint32_t segment) const { return segment * slots_per_segment_; }
  std::uint32_t slots_per_segment() const { return slots_per_segment_; }
  std::uint64_t segment_count() const { return segments_.size(); }
  std::uint64_t segments_usable() const { return usable_; }
  std::uint64_t segments_used() const { return used_; }
  std::uint64_t live(RecordKind kind) const { return live_[index(kind)]; }
  std::uint64_t retired() const { return retired_; }
  std::uint64_t unclaimed() const { return unclaimed_; }
  std::uint64_t failed() const { return failed_; }
  void claim(std::uint32_t slot);

  void validate() const;

 private:
  static constexpr std::uint32_t kNoSegment = ~0U;
  struct Free {
    void operator()(Slot* p) const { std::free(p); }
  };
  static unsigned index(RecordKind kind) { return static_cast<unsigned>(kind); }
  static SlotState state(const Slot& s) { return static_cast<SlotState>(s.state); }
  std::uint64_t bit(std::uint32_t slot) const { return 1ULL << slot % slots_per_segment_; }
  bool is_usable(std::uint32_t segment) const { return segment < usable_; }

  // Every change of a segment stands between these: they keep the totals below.
  void uncount(const Segment& segment, std::uint32_t i);
  void count(Segment& segment, std::uint32_t i);
  template <class Change>
  void change(std::uint32_t i, Change&& change);
  void set_free(std::uint32_t slot);

  std::uint32_t slots_per_segment_ = 1;
  std::uint64_t all_slots_ = 1;  // one bit a slot
  std::uint64_t usable_ = 0;
  std::uint64_t used_ = 0;  // segments from here on were never opened
  std::unique_ptr<Slot[], Free> slots_;
  std::vector<Segment> segments_;

  // Filled up before another is begun, so that segments get full and can be sealed.
  std::uint32_t current_[2] = {kNoSegment, kNoSegment};
  // Reserved for all segments at creation.
  std::vector<std::uint32_t> available_[2];  // open, with a free slot, and not the current one
  std::vector<std::uint32_t> empty_;
  std::vector<std::uint32_t> dirty_;
  std::vector<std::uint32_t> syncing_;
  std::vector<std::uint32_t> full_;  // may be worth sealing

  std::uint64_t takable_[2] = {};
  std::uint64_t open_empty_[2] = {};   // open segments that hold nothing
  std::uint64_t sealed_reusable_ = 0;  // sealed segments with a free slot
  std::uint64_t empty_segments_ = 0;   // before used_
  std::uint64_t live_[2] = {};
  std::uint64_t retired_ = 0;
  std::uint64_t unclaimed_ = 0;
  std::uint64_t failed_ = 0;
};

}  // namespace kvmem::tier
