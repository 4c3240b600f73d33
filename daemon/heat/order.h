// Order: the order in which pages are used, learned from the touches that are seen.
//
// Faults show only the touches of pages that are not mapped; a page that stays resident is used
// unseen. So pages are kept in one ring in the order of their use, and a cursor stands on the page
// touched last. A touch further on moves the cursor there; what lies between was passed:
//   unmapped and passed   not used this time around: evidence against it
//   mapped and passed     presumably used: it keeps its place and its time without a fault
// A touch that does not lie ahead is a jump. What
// follows a jump (a run) is moved behind the place the jump came from as one piece, once it has
// ended: that is how a new order is learned, in one time around, and how the pages of an expert
// stay together wherever they go.
//
// The clock counts pages used or passed, seen or not. A page passed every `interval` and used in a
// share `use` of the passes is next used in
//   (interval - age) + interval * (1 - use) / use
// page uses: the rest of this round, and as many whole rounds as it is skipped on average. For a
// dense model use = 1: the page just used is the farthest away. For experts the second term rules:
// the rarest is the farthest away. A page that is not passed although its interval is over is
// expected later the longer it is not (2 * (age - interval)).
//
// touch() is O(1) amortised over a round, and at most kWalkMax steps. 20 bytes a page.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "heat/page_ids.h"
#include "model/moves.h"
#include "model/page.h"

namespace kvmem::heat {

// What is remembered of a page. The upper fields belong to Order, the lower to its owner.
struct PageHeat {
  PageId next = kNoPage;  // in order of use; kNoPage: never touched
  PageId prev = kNoPage;
  std::uint32_t pass = 0;     // clock when it was last used or passed
  std::uint16_t use = 0;      // of the observed passes, the share with a use, in 1/65535
  std::uint8_t seen : 6 = 0;  // observed passes, up to kSeenMax
  bool lingers : 1 = false;   // the owner's: used again soon after a use
  std::uint8_t interval = 0;  // between passes, logarithmic; 0: came by only once

  std::uint8_t state = 0;
  std::uint8_t hints = 0;
  std::uint8_t chain : 4 = 0;  // used when its predecessor was the last used: 0 never .. 15 always
  model::Reason reason : 4 = model::Reason::kNone;

  // `state`
  static constexpr std::uint8_t kWhereMask = 3;  // the owner's
  static constexpr std::uint8_t kVisible = 4;    // no mapping: the next use will be seen
  static constexpr std::uint8_t kUsed = 8;       // used at its last pass, or presumed to be
  static constexpr std::uint8_t kOwnerBits = 0xf0;

  bool linked() const { return next != kNoPage; }
  bool visible() const { return (state & kVisible) != 0; }
  bool used() const { return (state & kUsed) != 0; }
};
static_assert(sizeof(PageHeat) == 20);

class Order {
 public:
  enum class Step : std::uint8_t {
    kNew,    // first touch of the page
    kNext,   // ahead of the cursor
    kLate,   // passed a moment ago, used only now: threads do not keep step
    kAgain,  // used a moment ago
    kJump,   // elsewhere
  };

  // Threads of an engine work side by side and overtake one another by a few pages: two threads at
  // two places of one tensor see each other's pages one to three touches late.
  static constexpr std::uint32_t kJitterTouches = 8;
  static constexpr std::uint32_t kTouchesKept = 64;  // how far back `passed_since` can look
  // A run this long is no detour any more but where the engine works now.
  static constexpr std::uint32_t kRunTouches = 32;
  static constexpr std::uint32_t kWalkMax = 1U << 16;
  // How improbable a step forward may be: 24 bits are four pages that were used nearly every time
  // so far (5 bits each), or 150 experts of a tenth's use (0.15 bits each).
  static constexpr std::uint32_t kSurpriseMaxBits = 24;
  // And how far it may go where it leaves out more than threads do: the experts of one layer, of
  // sixteen or more. Without this bound any order explains any other, in enough rounds.
  static constexpr std::uint32_t kHopShare = 16;
  static constexpr std::uint8_t kSeenMax = 63;  // beyond it, old passes fade

  Order() { skipped_.fill(kNoPage); }

  // Ids below `pages` may be used.
  void resize(std::size_t pages);
  // Forgets pages [first, first + count), back to a PageHeat{}.
  void forget(PageId first, std::uint32_t count);
  // Takes one page out of the order; the owner's bits stay.
  void unlink(PageId id);
  // As if it had just been used, but without a use: it keeps its place.
  void refresh(PageId id) {
    if (pages_[id].linked()) pages_[id].pass = clock_;
  }
  std::size_t size() const { return pages_.size(); }

  PageHeat& operator[](PageId id) { return pages_[id]; }
  const PageHeat& operator[](PageId id) const { return pages_[id]; }

  Step touch(PageId id);

  std::uint32_t clock() const { return clock_; }
  std::uint64_t touches() const { return touches_; }
  std::uint32_t linked_pages() const { return linked_; }
  PageId cursor() const { return cursor_; }
  // The clock's advance between two passes of a page that comes around; 0 while nothing has.
  double cycle() const { return cycle_; }
  // As cycle(), and before anything came around the most it can be told to be.
  double cycle_or_all() const { return cycle_ > 0 ? cycle_ : linked_ + 1.0; }

  // Share of its passes in which the page is used, mixed with what is usual while it is unknown.
  double use(PageId id) const;
  double chain(PageId id) const { return pages_[id].chain / 15.0; }
  bool interval_known(PageId id) const { return pages_[id].interval != 0; }
  double interval(PageId id) const;
  std::uint32_t age(PageId id) const { return clock_ - pages_[id].pass; }
  double next_use(PageId id) const;
  // Its interval is well over and it was not passed.
  bool overdue(PageId id) const { return age(id) > 1.25 * interval(id); }
  // Out of use for so long, while others were not, that the engine is not expected to come by:
  // another phase, another model. It is neither passed nor missed; when one of them is used again,
  // those that went out of use with it are dormant no more.
  bool dormant(PageId id) const {
    const double since = age(id);
    return since > 2 * interval(id) && since > 2 * cycle_or_all() && since > 1.5 * last_elapsed_;
  }
  // Used or passed within the last `touches` seen touches (at most kTouchesKept).
  bool passed_since(PageId id, std::uint32_t touches) const;

  // The place up to which the way ahead was looked at; the cursor or ahead of it.
  PageId scanned() const { return scan_; }
  void set_scanned(PageId id) { scan_ = id; }
  bool in_run() const { return anchor_ != kNoPage; }

  // The pages left out last, where it were few at a time: what keeps step a little behind comes to
  // them yet.
  const std::array<PageId, kJitterTouches>& skipped() const { return skipped_; }

  // Pages that were mapped away as a sample, nearly always used, and passed unused by the last
  // touch(); what stands around them may be dead as well.
  const std::array<PageId, 8>& surprises() const { return surprises_; }
  std::uint32_t surprise_count() const { return surprise_count_; }

  std::size_t metadata_bytes() const { return pages_.capacity() * sizeof(PageHeat); }
  bool validate() const;

 private:
  // The pages from the cursor to `id`; `left_out`: of them not mapped and not used.
  bool is_ahead(PageId id, std::uint32_t* left_out) const;
  void walk_to(PageId id, bool few_left_out);
  void finish_run();
  void insert_after_cursor(PageId id);
  void observe(PageHeat& page, bool used);
  void undo_skip(PageHeat& page);
  void note_interval(PageHeat& page);
  void arrive(PageId id);

  std::vector<PageHeat> pages_;
  std::uint32_t clock_ = 0;
  std::uint64_t touches_ = 0;
  std::uint32_t linked_ = 0;
  PageId cursor_ = kNoPage;
  PageId scan_ = kNoPage;
  PageId anchor_ = kNoPage;     // where the jump came from, while in a run
  PageId run_first_ = kNoPage;  // the run is run_first_ .. cursor_
  std::uint32_t run_touches_ = 0;
  double cycle_ = 0;
  double last_elapsed_ = 0;  // since its pass before, of the page touched last
  double base_use_ = 0.75;   // of all observed passes lately, the share with a use
  std::array<std::uint32_t, kTouchesKept> touch_clock_{};
  std::array<PageId, kJitterTouches> skipped_;
  std::uint32_t skip_count_ = 0;
  std::array<PageId, 8> surprises_{};
  std::uint32_t surprise_count_ = 0;
};

}  // namespace kvmem::heat
