#include "heat/order.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace kvmem::heat {
namespace {

// Intervals in 8 steps an octave: 9 % apart, and 2^31 fits in a byte. 1 + so that 0 is "unknown".
std::uint8_t pack_interval(std::uint32_t value) {
  value = std::max(value, 1U);
  const unsigned octave = 31U - static_cast<unsigned>(std::countl_zero(value));
  const unsigned eighths = octave >= 3 ? value >> (octave - 3) & 7U : value << (3 - octave) & 7U;
  return static_cast<std::uint8_t>(std::min(1 + octave * 8 + eighths, 255U));
}

// The middle of each step: half of 1/8 up.
constexpr std::array<double, 256> kIntervals = [] {
  std::array<double, 256> table{};
  double octave = 1;
  for (unsigned packed = 1; packed < 256; ++packed) {
    const unsigned steps = packed - 1;
    if (steps > 0 && steps % 8 == 0) octave *= 2;
    table[packed] = octave * (1 + (steps % 8 + 0.5) / 8);
  }
  return table;
}();

// The weight of what is usual among pages, in observed passes.
constexpr double kPriorPasses = 2;

// How improbable it is that a page used in share i/16 of its passes was not used, in 1/16 bits:
// -16 * log2(1 - (i + 0.5) / 17).
constexpr std::array<std::uint8_t, 17> kSurprise = {1,  2,  4,  5,  7,  9,  11, 13, 16,
                                                    19, 22, 26, 31, 36, 44, 56, 81};

}  // namespace

void Order::resize(std::size_t pages) {
  pages_.resize(pages);
  if (pages_.capacity() > 2 * pages + 1024) pages_.shrink_to_fit();
}

void Order::forget(PageId first, std::uint32_t count) {
  for (PageId id = first; id < first + count; ++id) {
    unlink(id);
    pages_[id] = PageHeat{};
  }
}

void Order::unlink(PageId id) {
  PageHeat& page = pages_[id];
  if (!page.linked()) return;
  std::replace(skipped_.begin(), skipped_.end(), id, kNoPage);
  if (anchor_ == id) anchor_ = kNoPage;
  if (anchor_ != kNoPage && run_first_ == id) {
    if (cursor_ == id) {
      cursor_ = anchor_;
      anchor_ = kNoPage;
    } else {
      run_first_ = page.next;
    }
  }
  if (cursor_ == id) cursor_ = page.prev;
  if (scan_ == id) scan_ = cursor_;
  if (page.next == id) {
    cursor_ = scan_ = anchor_ = kNoPage;
  } else {
    pages_[page.prev].next = page.next;
    pages_[page.next].prev = page.prev;
  }
  page.next = page.prev = kNoPage;
  page.interval = 0;
  page.seen = 0;
  page.use = 0;
  page.chain = 0;
  --linked_;
}

double Order::use(PageId id) const {
  const PageHeat& page = pages_[id];
  return (page.use / 65535.0 * page.seen + base_use_ * kPriorPasses) / (page.seen + kPriorPasses);
}

double Order::interval(PageId id) const {
  return interval_known(id) ? kIntervals[pages_[id].interval] : cycle_or_all();
}

double Order::next_use(PageId id) const {
  const double round = interval(id);
  const double since = age(id);
  const double share = std::max(use(id), 1.0 / 256);
  const double this_round = since <= round ? round - since : 2 * (since - round);
  return this_round + round * (1 - share) / share;
}

bool Order::passed_since(PageId id, std::uint32_t touches) const {
  if (!pages_[id].linked()) return false;
  if (touches == 0) return false;
  if (touches_ < touches) return true;
  touches = std::min(touches, kTouchesKept - 1);
  // The clock just before the first of those touches.
  const std::uint32_t then = touch_clock_[(touches_ - touches) % kTouchesKept];
  return static_cast<std::int32_t>(pages_[id].pass - then) > 0;
}

void Order::observe(PageHeat& page, bool used) {
  if (page.seen < kSeenMax) ++page.seen;
  const int target = used ? 65535 : 0;
  page.use = static_cast<std::uint16_t>(page.use + (target - page.use) / page.seen);
  base_use_ += ((used ? 1.0 : 0.0) - base_use_) / 64;
}

void Order::undo_skip(PageHeat& page) {
  const unsigned seen = std::max<unsigned>(page.seen, 1);
  page.use = static_cast<std::uint16_t>(std::min(65535U, page.use + 65535U / seen));
  base_use_ = std::min(1.0, base_use_ + 1.0 / 64);
}

void Order::note_interval(PageHeat& page) {
  const std::uint8_t now = pack_interval(clock_ - page.pass);
  // Half way to the new value, at least one step: settles within two rounds, and one odd round
  // moves it by at most half.
  if (page.interval == 0) {
    page.interval = now;
  } else {
    const int step = now - page.interval;
    page.interval = static_cast<std::uint8_t>(page.interval + (step + (step > 0) - (step < 0)) / 2);
  }
}

bool Order::is_ahead(PageId id, std::uint32_t* left_out) const {
  *left_out = 0;
  std::uint32_t surprise = 0;  // in 1/16 bits
  std::uint32_t steps = 0;
  for (PageId q = pages_[cursor_].next; q != id; q = pages_[q].next) {
    if (q == cursor_ || ++steps > kWalkMax) return false;
    if (!pages_[q].visible() || dormant(q)) continue;
    if (++*left_out > kJitterTouches && steps > linked_ / kHopShare) return false;
    surprise += kSurprise[static_cast<std::size_t>(use(q) * 16)];
    if (surprise > kSurpriseMaxBits * 16) return false;
  }
  return true;
}

void Order::walk_to(PageId id, bool few_left_out) {
  const PageId first = pages_[cursor_].next;
  if (first == id || pages_[first].visible()) {
    // Half way to what happened: two in a row from nothing give 0.75.
    const unsigned chain = pages_[first].chain;
    pages_[first].chain = (first == id ? chain + 16 : chain) / 2U & 15U;
  }
  bool scan_passed = scan_ == cursor_ || scan_ == id;
  for (PageId q = first; q != id; q = pages_[q].next) {
    PageHeat& page = pages_[q];
    if (q == anchor_) anchor_ = kNoPage;
    if (q == scan_) scan_passed = true;
    if (dormant(q)) continue;
    ++clock_;
    note_interval(page);
    page.pass = clock_;
    if (page.visible()) {
      if (page.seen >= 2 && use(q) > 0.75 && surprise_count_ < surprises_.size()) {
        surprises_[surprise_count_++] = q;
      }
      observe(page, false);
      if (few_left_out) skipped_[skip_count_++ % kJitterTouches] = q;
      page.state &= static_cast<std::uint8_t>(~PageHeat::kUsed);
    } else {
      page.state |= PageHeat::kUsed;
    }
  }
  if (id == anchor_) anchor_ = kNoPage;
  cursor_ = id;
  if (scan_passed) scan_ = id;
}

void Order::finish_run() {
  if (!in_run()) return;
  const PageId anchor = anchor_;
  anchor_ = kNoPage;
  if (scan_ == anchor) scan_ = cursor_;
  if (pages_[run_first_].prev == anchor) return;
  const PageId before = pages_[run_first_].prev;
  const PageId after = pages_[cursor_].next;
  if (after == run_first_) return;  // the run is all there is
  pages_[before].next = after;
  pages_[after].prev = before;
  const PageId target = pages_[anchor].next;
  pages_[anchor].next = run_first_;
  pages_[run_first_].prev = anchor;
  pages_[cursor_].next = target;
  pages_[target].prev = cursor_;
}

void Order::insert_after_cursor(PageId id) {
  PageHeat& page = pages_[id];
  if (cursor_ == kNoPage) {
    page.next = page.prev = id;
    scan_ = id;
  } else {
    const bool scan_here = scan_ == cursor_;
    const PageId next = pages_[cursor_].next;
    page.prev = cursor_;
    page.next = next;
    pages_[cursor_].next = id;
    pages_[next].prev = id;
    if (scan_here) scan_ = id;
  }
  cursor_ = id;
  ++linked_;
}

// A use that is neither late nor again.
void Order::arrive(PageId id) {
  PageHeat& page = pages_[id];
  const double elapsed = clock_ + 1.0 - page.pass;
  last_elapsed_ = elapsed;
  ++clock_;
  if (!page.used() && 2 * elapsed < interval(id)) {
    undo_skip(page);  // passed this time around, and used after all
  } else {
    note_interval(page);
    observe(page, true);
  }
  page.pass = clock_;
  page.state |= PageHeat::kUsed;
}

Order::Step Order::touch(PageId id) {
  PageHeat& page = pages_[id];
  surprise_count_ = 0;
  Step step = Step::kNew;
  if (!page.linked()) {
    finish_run();
    insert_after_cursor(id);
    page.pass = ++clock_;
    page.state |= PageHeat::kUsed;
    last_elapsed_ = 0;
  } else if (id == cursor_) {
    step = Step::kAgain;
  } else {
    const bool recent = passed_since(id, kJitterTouches);
    bool ahead = false;
    if (recent && !page.used() &&
        std::find(skipped_.begin(), skipped_.end(), id) != skipped_.end()) {
      step = Step::kLate;
      undo_skip(page);
      page.pass = clock_;
      page.state |= PageHeat::kUsed;
    } else {
      std::uint32_t left_out = 0;
      ahead = is_ahead(id, &left_out);
      if (!ahead && in_run() && !recent) {
        finish_run();
        ahead = is_ahead(id, &left_out);
      }
      if (ahead) {
        step = Step::kNext;
        const double elapsed = clock_ + 1.0 - page.pass;
        walk_to(id, left_out <= kJitterTouches);
        // Towards the rounds seen; the bound keeps the return to an idle model from counting as
        // one.
        if (cycle_ == 0) cycle_ = elapsed;
        cycle_ += (std::min(elapsed, 4 * cycle_) - cycle_) / 32;
        arrive(id);
      } else if (recent) {
        step = Step::kAgain;
      } else {
        step = Step::kJump;
        anchor_ = cursor_;
        run_first_ = id;
        run_touches_ = 0;
        cursor_ = id;
        arrive(id);
      }
    }
  }
  if (in_run() && ++run_touches_ == kRunTouches) scan_ = cursor_;
  ++touches_;
  touch_clock_[touches_ % kTouchesKept] = clock_;
  return step;
}

bool Order::validate() const {
  std::uint32_t linked = 0;
  for (PageId id = 0; id < pages_.size(); ++id) {
    const PageHeat& page = pages_[id];
    if (page.linked() != (page.prev != kNoPage)) return false;
    if (!page.linked()) continue;
    ++linked;
    if (pages_[page.next].prev != id || pages_[page.prev].next != id) return false;
  }
  if (linked != linked_ || (linked_ == 0) != (cursor_ == kNoPage)) return false;
  if (cursor_ == kNoPage) return true;
  std::uint32_t in_ring = 0;
  PageId q = cursor_;
  bool scan_seen = false;
  do {
    scan_seen |= q == scan_;
    q = pages_[q].next;
  } while (++in_ring <= linked_ && q != cursor_);
  return in_ring == linked_ && scan_seen;
}

}  // namespace kvmem::heat
