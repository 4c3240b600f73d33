// What the planner decides and says about pages: advice, moves and their reasons.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "model/page.h"

namespace kvmem::model {

enum class Advice : std::uint8_t {
  kNormal,      // forget earlier advice
  kHot,         // go last
  kCold,        // go first, once frames are short
  kSequential,  // read ahead from the first touch on
  kPin,         // never demote
  kUnpin,
  kPrefetch,  // bring in now, as far as frames are free or colder pages can go
  kEvict,     // demote now, short of frames or not
};

enum class Reason : std::uint8_t {
  kNone,                // never moved
  kDemand,              // fetched because the engine waited for it
  kFresh,               // first touch: zeroes
  kPrefetchOrder,       // fetched ahead: followed the touched page the last time
  kPrefetchRun,         // fetched ahead: the rest of a run whose first page was demanded
  kPrefetchSequential,  // fetched ahead: next in address order in a first scan
  kPrefetchAdvice,      // fetched ahead: asked for
  kEvictFarthest,       // demoted: next use expected farthest away
  kEvictUnused,         // demoted: fetched ahead, passed by and not used
  kEvictCold,           // demoted: sampled and not used for longer than its interval
  kEvictAdvice,         // demoted: asked for
  kEvictPressure,       // demoted: over capacity and nothing better was found
  kSampleDue,           // unmapped to learn whether it is still used
  kSampleSpread,        // unmapped because a neighbour turned out unused
  kPlaceUp,             // from CXL memory to DRAM: used more than what was there, or there was room
  kPlaceDown,           // from DRAM to CXL memory: used less than what came
};

inline constexpr std::size_t kReasonCount = static_cast<std::size_t>(Reason::kPlaceDown) + 1;

// A short word for counters, and a sentence for `explain`.
std::string_view reason_name(Reason reason);
std::string_view reason_text(Reason reason);

struct Move {
  PageRef page;
  Reason reason = Reason::kNone;
};

// A list of moves that never allocates. What does not fit is found again by the next plan.
template <std::size_t kCapacity>
class MoveList {
 public:
  bool full() const { return size_ == kCapacity; }
  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }
  void clear() { size_ = 0; }
  // REQUIRES: !full().
  void push(Move move) { moves_[size_++] = move; }
  const Move& operator[](std::size_t i) const { return moves_[i]; }
  const Move* begin() const { return moves_.data(); }
  const Move* end() const { return moves_.data() + size_; }

 private:
  std::array<Move, kCapacity> moves_{};
  std::size_t size_ = 0;
};

// One plan. 64 demotes or promotes are 128 MiB, more than any disk moves between two plans.
struct Moves {
  MoveList<64> demote;   // most useless first
  MoveList<64> promote;  // soonest needed first
  MoveList<64> sample;   // drop the engine's mapping so that the next touch is seen
  void clear() {
    demote.clear();
    promote.clear();
    sample.clear();
  }
};

// What is known about a page, for people.
struct PageView {
  double heat = 0;                     // 0 cold .. 1 used every time around
  double confidence = 0;               // 0..1: how often it was used when the engine came by
  std::uint64_t age_touches = 0;       // since it was last used or passed, in page touches
  std::uint64_t interval_touches = 0;  // between its uses, in page touches; 0: unknown
  std::uint64_t next_use_touches = 0;  // expected; UINT64_MAX: not expected
  bool sampled = false;                // unmapped now, to see the next touch
  bool pinned = false;
  Advice advice = Advice::kNormal;
  Reason reason = Reason::kNone;  // of the last move
};

}  // namespace kvmem::model
