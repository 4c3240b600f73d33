#include "loop/planner.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "base/check.h"
#include "heat/order.h"
#include "heat/page_ids.h"
#include "heat/random.h"
#include "policy/sample_budget.h"
#include "policy/victim.h"
#include "policy/window.h"

namespace kvmem::loop {
namespace {

using heat::kNoPage;
using heat::Order;
using heat::PageHeat;
using heat::PageId;
using model::Advice;
using model::Reason;
using model::Refetch;
using model::Touch;

enum class Where : std::uint8_t { kAbsent, kFilling, kResident, kLeaving };

// PageHeat::state, the owner's bits.
constexpr std::uint8_t kAhead = 0x10;    // fetched or being fetched ahead, in ahead_
constexpr std::uint8_t kListed = 0x20;   // in resident_
constexpr std::uint8_t kArmed = 0x40;    // mapping dropped as a sample
constexpr std::uint8_t kWaiting = 0x80;  // the engine waits for it and no fill has started
// PageHeat::hints: advice in bits 0-1, refetch in bits 3-4.
constexpr std::uint8_t kAdviceMask = 0x03;
constexpr std::uint8_t kPinned = 0x04;
constexpr unsigned kRefetchShift = 3;
constexpr std::uint8_t kRefetchMask = 3U << kRefetchShift;
constexpr std::uint8_t kBytes = 0x20;   // absent: there is something to read
constexpr std::uint8_t kUnused = 0x40;  // fetched ahead or sampled, and found unused
constexpr std::uint8_t kPaid = 0x80;    // the sample was paid for when it was taken

constexpr std::size_t kRecentRing = 128;  // pages touched last, as candidates
constexpr std::size_t kAheadMax = 64;     // 2 * the largest depth a ring of 64 reads could have
constexpr std::size_t kArmedMax = policy::SampleBudget::kOpenMax;
constexpr std::size_t kRangesMax = 16;  // advice waiting to be carried out; the oldest is dropped
constexpr std::uint32_t kScanSteps = 512;  // looked at per plan, ahead or in a range of advice
constexpr double kNear = 64;               // pages that are always near enough to be looked at
constexpr std::size_t kPoolMax = 256;      // victims compared per plan
// One of 24 residents drawn at random is among the best tenth with probability 1 - 0.9^24 = 0.92.
constexpr std::size_t kDraws = 24;
constexpr int kLeastSeenDraws = 8;
constexpr std::size_t kLingerDemotes = 64;  // after so many, on average, the habit is forgotten
constexpr std::uint32_t kCrowd = 8;         // neighbours looked at on either side
constexpr std::uint32_t kRunMax = 8;        // pages fetched for one demanded page: 16 MiB
constexpr double kHitShareMin = 0.4;        // below it, order is not worth following
constexpr std::uint64_t kTryEvery = 32;     // touches: at most 3 % more reads
constexpr double kAheadShareMax = 0.9;      // and while half of that is in vain
constexpr double kAheadShare = 0.5;         // fetched ahead when used more often than not
constexpr std::size_t kScansMax = 4;        // sequential first scans followed at once

std::uint8_t& set(std::uint8_t& bits, std::uint8_t mask, bool on) {
  bits = static_cast<std::uint8_t>(on ? bits | mask : bits & ~mask);
  return bits;
}
bool has(std::uint8_t bits, std::uint8_t mask) { return (bits & mask) != 0; }

Where where(const PageHeat& page) { return static_cast<Where>(page.state & PageHeat::kWhereMask); }
Advice advice(const PageHeat& page) { return static_cast<Advice>(page.hints & kAdviceMask); }
Refetch refetch(const PageHeat& page) {
  return static_cast<Refetch>((page.hints & kRefetchMask) >> kRefetchShift);
}

bool is_evict(Reason reason) {
  return reason >= Reason::kEvictFarthest && reason <= Reason::kEvictPressure;
}
bool is_prefetch(Reason reason) {
  return reason >= Reason::kPrefetchOrder && reason <= Reason::kPrefetchAdvice;
}

}  // namespace

struct Planner::Impl {
  explicit Impl(const PlannerOptions& from)
      : options(from), budget(from.sample_permille), random(from.seed) {
    options.inflight_fills_max =
        std::clamp<std::uint32_t>(options.inflight_fills_max, 1, kAheadMax / 2);
    window.ahead = options.inflight_fills_max;
  }

  struct AheadEntry {
    PageId id;
    std::uint32_t clock;    // at the start of the fetch
    std::uint64_t touches;  // likewise
  };
  struct Scan {  // a first scan in address order
    PageId last = kNoPage;
    std::uint32_t depth = 0;
    std::uint64_t touches = 0;
  };
  struct Range {
    model::PageRef first;
    std::uint32_t count;
  };
  struct Sample {
    PageId id;
    std::uint32_t clock;
  };
  struct Candidate {
    double score;
    PageId id;
    Reason reason;
  };

  PlannerOptions options;
  heat::PageIds ids;
  Order order;
  std::vector<bool> slot_has_bytes;
  policy::Recent recent;
  policy::SampleBudget budget;
  policy::Window window;
  heat::Random random;
  PlannerStats stats;

  std::vector<PageId> resident;  // each page at most once; pages that left are dropped when met
  std::uint64_t resident_count = 0;
  std::uint64_t waiting = 0;  // pages with kWaiting
  std::array<PageId, kRecentRing> touched_ring{};
  std::uint64_t touched_count = 0;
  std::vector<AheadEntry> ahead;
  std::array<Scan, kScansMax> scans{};
  std::vector<Range> prefetch_ranges, evict_ranges;
  bool first_scan = false;    // the last touch was of a page never touched before
  PageId demanded = kNoPage;  // whose run is to be fetched
  std::uint64_t demanded_at = 0;

  // Samples in order of arming: up to `probation` they have survived it, from there on not yet.
  std::vector<Sample> samples;
  std::size_t probation = 0;
  std::uint32_t unanswered = 0;  // samples proposed since one was armed

  double demand_share = 0;
  double hit_share = 1;  // of the pages fetched ahead lately, those that were used
  double reads_per_round = 0;
  std::uint64_t reads = 0;
  std::uint64_t reads_mark = 0;
  std::uint32_t clock_mark = 0;
  std::uint64_t pressed_until = 0;  // in touches
  std::uint64_t sampled_at = 0;

  PageId find(model::PageRef page) const { return ids.id(page); }

  void set_where(PageHeat& page, Where to) {
    if (where(page) == Where::kResident) --resident_count;
    page.state = static_cast<std::uint8_t>((page.state & ~PageHeat::kWhereMask) |
                                           static_cast<std::uint8_t>(to));
    if (to == Where::kResident) ++resident_count;
  }
  void set_refetch(PageHeat& page, Refetch to) {
    page.hints = static_cast<std::uint8_t>((page.hints & ~kRefetchMask) | static_cast<unsigned>(to)
                                                                              << kRefetchShift);
  }
  void stop_waiting(PageHeat& page) {
    if (!has(page.state, kWaiting)) return;
    set(page.state, kWaiting, false);
    --waiting;
  }
  void drop_ahead(PageId id) {
    if (!has(order[id].state, kAhead)) return;
    set(order[id].state, kAhead, false);
    std::erase_if(ahead, [id](const AheadEntry& entry) { return entry.id == id; });
  }
  // Some pages are used twice in a round, a few touches apart: one page's habit, which is not to
  // cost a frame for every page.
  bool in_use(PageId id) const {
    return order.passed_since(id, order[id].lingers ? policy::Recent::kMax : recent.pages());
  }
  void list(PageId id) {
    PageHeat& page = order[id];
    if (has(page.state, kListed)) return;
    if (resident.size() > 2 * resident_count + 1024) {
      std::erase_if(resident, [this](PageId other) {
        if (where(order[other]) == Where::kResident) return false;
        set(order[other].state, kListed, false);
        return true;
      });
    }
    set(page.state, kListed, true);
    resident.push_back(id);
  }

  // Back to absent, whatever it was.
  void reset_page(PageId id, bool has_bytes) {
    PageHeat& page = order[id];
    stop_waiting(page);
    drop_ahead(id);
    set_where(page, Where::kAbsent);
    set(page.state, kArmed, false);
    set(page.state, PageHeat::kVisible, true);
    set(page.hints, kUnused, false);
    set(page.hints, kBytes, has_bytes);
    set_refetch(page, Refetch::kFree);
  }

  void touched(PageId id, Touch touch);
  void follow_scan(PageId id);
  void expire_ahead();
  void count_round();
  void age_samples();

  bool fetchable(PageId id) const {
    const PageHeat& page = order[id];
    return where(page) == Where::kAbsent && has(page.hints, kBytes) && !has(page.state, kWaiting);
  }
  void want(PageId id, Reason reason);
  void want_advised(std::size_t limit);
  void want_run(std::size_t limit);
  void want_scans(std::size_t limit);
  void want_skipped(std::size_t limit);
  void want_order(std::size_t limit);

  bool sampling_works() const { return unanswered < 4 * policy::SampleBudget::kOpenMin; }
  PageId draw();
  PageId draw_least_seen();
  double crowd(PageId id) const;
  void consider(PageId id, bool seen_used, bool desperate);
  void pick_victims(std::size_t count, bool pressure, model::Moves& out);
  void evict_advised(model::Moves& out);
  void pick_samples(model::Moves& out);

  struct Want {
    PageId id;
    Reason reason;
  };
  // Scratch of one plan.
  std::vector<Candidate> pool;
  std::vector<Want> wants;
};

Planner::Planner(const PlannerOptions& options) : impl_(std::make_unique<Impl>(options)) {}
Planner::~Planner() = default;
Planner::Planner(Planner&&) noexcept = default;
Planner& Planner::operator=(Planner&&) noexcept = default;

void Planner::set_capacity(std::uint64_t pages) { impl_->options.capacity_pages = pages; }

void Planner::region_added(model::RegionSlot slot, std::uint32_t page_count, bool has_bytes) {
  Impl& p = *impl_;
  region_removed(slot);
  const PageId first = p.ids.add(slot, page_count);
  if (first == kNoPage) return;
  if (p.order.size() < p.ids.end()) p.order.resize(p.ids.end());
  if (p.slot_has_bytes.size() <= slot) p.slot_has_bytes.resize(slot + std::size_t{1});
  p.slot_has_bytes[slot] = has_bytes;
  for (PageId id = first; id < first + page_count; ++id) p.reset_page(id, has_bytes);
}

void Planner::region_removed(model::RegionSlot slot) {
  Impl& p = *impl_;
  if (!p.ids.has(slot)) return;
  const PageId first = p.ids.first(slot);
  const std::uint32_t count = p.ids.page_count(slot);
  for (PageId id = first; id < first + count; ++id) {
    p.reset_page(id, false);
    // An entry in resident_ stays until it is met, so the bit must as well.
    const bool listed = has(p.order[id].state, kListed);
    p.order.forget(id, 1);
    set(p.order[id].state, kListed, listed);
  }
  for (Impl::Scan& scan : p.scans) {
    if (scan.last - first < count) scan = {};
  }
  if (p.demanded - first < count) p.demanded = kNoPage;
  const auto of_slot = [slot](const Impl::Range& range) { return range.first.region == slot; };
  std::erase_if(p.prefetch_ranges, of_slot);
  std::erase_if(p.evict_ranges, of_slot);
  p.ids.remove(slot);
}

void Planner::advise(model::PageRef first, std::uint32_t page_count, Advice advice) {
  Impl& p = *impl_;
  const PageId base = p.find(first);
  if (base == kNoPage) return;
  page_count = std::min(page_count, p.ids.page_count(first.region) - first.page);
  const auto enqueue = [&](std::vector<Impl::Range>& ranges) {
    if (ranges.size() == kRangesMax) ranges.erase(ranges.begin());
    ranges.push_back({first, page_count});
  };
  switch (advice) {
    case Advice::kPrefetch:
      enqueue(p.prefetch_ranges);
      return;
    case Advice::kEvict:
      enqueue(p.evict_ranges);
      return;
    default:
      break;
  }
  for (PageId id = base; id < base + page_count; ++id) {
    std::uint8_t& hints = p.order[id].hints;
    if (advice == Advice::kPin || advice == Advice::kUnpin) {
      set(hints, kPinned, advice == Advice::kPin);
    } else {
      hints = static_cast<std::uint8_t>((hints & ~kAdviceMask) | static_cast<unsigned>(advice));
    }
  }
}

void Planner::touched(model::PageRef page, Touch touch) {
  if (const PageId id = impl_->find(page); id != kNoPage) impl_->touched(id, touch);
}

void Planner::Impl::touched(PageId id, Touch touch) {
  PageHeat& page = order[id];
  // A second thread waits for what the first has asked for.
  if (has(page.state, kWaiting)) touch = Touch::kInFlight;
  ++stats.touches;
  recent.touched();
  budget.touched();
  const bool needs_frame = touch == Touch::kDemand || touch == Touch::kFresh;
  if (touch == Touch::kDemand) {
    ++stats.demand;
    if (page.used() && order.passed_since(id, 2 * policy::Recent::kMax)) {
      ++stats.demoted_early;
      recent.demoted_early();
      page.lingers = true;
    }
  }
  if (touch == Touch::kInFlight) ++stats.in_flight;
  if (needs_frame && where(page) == Where::kAbsent) {
    set(page.state, kWaiting, true);
    ++waiting;
  }
  const bool was_ahead = has(page.state, kAhead);
  if (was_ahead) {
    ++stats.ahead_used;
    drop_ahead(id);
    hit_share += (1 - hit_share) / 32;
  }
  if (needs_frame || was_ahead) demand_share += ((needs_frame ? 1.0 : 0.0) - demand_share) / 32;
  hit_share += (1 - hit_share) / 4096;  // forgive in time: a new order deserves a new try
  if (has(page.state, kArmed)) {
    set(page.state, kArmed, false);
    ++stats.samples_hit;
    budget.hit(has(page.hints, kPaid));
    set(page.hints, kPaid, false);
  }
  set(page.hints, kUnused, false);

  const Order::Step step = order.touch(id);
  // From here on the engine has it mapped, or will once it is filled.
  if (where(page) == Where::kResident || where(page) == Where::kLeaving) {
    set(page.state, PageHeat::kVisible, false);
  }
  touched_ring[touched_count++ % kRecentRing] = id;
  if (touch == Touch::kDemand || step == Order::Step::kJump) {
    demanded = id;
    demanded_at = order.touches();
  }
  first_scan = step == Order::Step::kNew;
  if (first_scan) follow_scan(id);
}

void Planner::Impl::follow_scan(PageId id) {
  Scan* oldest = &scans[0];
  for (Scan& scan : scans) {
    // One page may be skipped: two threads share the scan.
    if (scan.last != kNoPage && id - scan.last - 1 < 2) {
      scan.last = id;
      scan.depth = std::max(2U, std::min(2 * scan.depth, window.ahead));
      scan.touches = order.touches();
      return;
    }
    if (scan.touches < oldest->touches) oldest = &scan;
  }
  *oldest = {id, advice(order[id]) == Advice::kSequential ? window.ahead : 0U, order.touches()};
}

void Planner::fill_started(model::PageRef ref, bool ahead) {
  Impl& p = *impl_;
  const PageId id = p.find(ref);
  if (id == kNoPage) return;
  PageHeat& page = p.order[id];
  if (where(page) != Where::kAbsent) return;
  if (has(page.state, kWaiting)) ahead = false;
  p.stop_waiting(page);
  p.set_where(page, Where::kFilling);
  ++p.reads;
  p.budget.read();
  if (!ahead) {
    page.reason = Reason::kDemand;
  } else {
    if (!is_prefetch(page.reason)) page.reason = Reason::kPrefetchAdvice;
    set(page.state, kAhead, true);
    if (p.ahead.size() < kAheadMax) {
      p.ahead.push_back({id, p.order.clock(), p.order.touches()});
    }
  }
  ++p.stats.moves[static_cast<std::size_t>(page.reason)];
}

void Planner::filled(model::PageRef ref, Refetch refetch) {
  Impl& p = *impl_;
  const PageId id = p.find(ref);
  if (id == kNoPage) return;
  PageHeat& page = p.order[id];
  if (where(page) == Where::kAbsent) {
    // Fresh, or found resident after a restart.
    if (has(page.state, kWaiting)) {
      page.reason = Reason::kFresh;
      ++p.stats.moves[static_cast<std::size_t>(page.reason)];
    }
    p.stop_waiting(page);
  }
  p.set_where(page, Where::kResident);
  p.set_refetch(page, refetch);
  // What was fetched ahead and not touched meanwhile is mapped at its first touch.
  set(page.state, PageHeat::kVisible, has(page.state, kAhead));
  p.list(id);
}

void Planner::fill_failed(model::PageRef ref) {
  Impl& p = *impl_;
  const PageId id = p.find(ref);
  if (id == kNoPage) return;
  PageHeat& page = p.order[id];
  p.stop_waiting(page);
  p.drop_ahead(id);
  if (where(page) == Where::kFilling) {
    p.set_where(page, Where::kAbsent);
    set(page.state, PageHeat::kVisible, true);
  } else if (where(page) == Where::kAbsent) {
    set(page.hints, kBytes, false);  // proposed, and cannot be fetched
  }
}

void Planner::write_noticed(model::PageRef page) {
  const PageId id = impl_->find(page);
  if (id != kNoPage) impl_->set_refetch(impl_->order[id], Refetch::kWrite);
}

void Planner::demote_started(model::PageRef ref) {
  Impl& p = *impl_;
  const PageId id = p.find(ref);
  if (id == kNoPage) return;
  PageHeat& page = p.order[id];
  if (where(page) != Where::kResident) return;
  if (!is_evict(page.reason)) page.reason = Reason::kEvictAdvice;
  if (page.reason == Reason::kEvictUnused) ++p.stats.ahead_unused;
  if (page.reason == Reason::kEvictCold) ++p.stats.samples_cold;
  ++p.stats.moves[static_cast<std::size_t>(page.reason)];
  p.drop_ahead(id);
  p.set_where(page, Where::kLeaving);
  if (page.lingers && p.random.below(kLingerDemotes) == 0) page.lingers = false;
}

void Planner::demoted(model::PageRef ref) {
  Impl& p = *impl_;
  const PageId id = p.find(ref);
  if (id == kNoPage) return;
  PageHeat& page = p.order[id];
  const bool zeroes = where(page) == Where::kLeaving && refetch(page) == Refetch::kFree;
  p.drop_ahead(id);
  p.set_where(page, Where::kAbsent);
  set(page.state, kArmed, false);
  set(page.state, PageHeat::kVisible, true);
  set(page.hints, kUnused, false);
  set(page.hints, kBytes, !zeroes);
}

void Planner::demote_failed(model::PageRef ref) {
  Impl& p = *impl_;
  const PageId id = p.find(ref);
  if (id == kNoPage) return;
  PageHeat& page = p.order[id];
  if (where(page) == Where::kLeaving) {
    p.set_where(page, Where::kResident);
    p.list(id);
  } else if (where(page) == Where::kResident) {
    p.order.refresh(id);  // proposed, and cannot go: let it be for a while
  }
}

void Planner::discarded(model::PageRef ref) {
  Impl& p = *impl_;
  const PageId id = p.find(ref);
  if (id != kNoPage) p.reset_page(id, p.slot_has_bytes[ref.region]);
}

void Planner::sample_armed(model::PageRef ref) {
  Impl& p = *impl_;
  p.unanswered = 0;
  const PageId id = p.find(ref);
  if (id == kNoPage) return;
  PageHeat& page = p.order[id];
  if (where(page) != Where::kResident || page.visible() || p.samples.size() >= kArmedMax) return;
  ++p.stats.moves[static_cast<std::size_t>(
      page.reason == Reason::kSampleSpread ? Reason::kSampleSpread : Reason::kSampleDue)];
  set(page.state, kArmed, true);
  set(page.state, PageHeat::kVisible, true);
  p.samples.push_back({id, p.order.clock()});
}

// Pages fetched ahead that the engine went past, or that have waited far longer than it takes to
// use what is fetched ahead of them, no longer count as "ahead".
void Planner::Impl::expire_ahead() {
  const std::uint64_t patience = 8 * window.ahead + 32;
  std::erase_if(ahead, [&](const AheadEntry& entry) {
    PageHeat& page = order[entry.id];
    if (!has(page.state, kAhead)) return true;
    if (where(page) != Where::kResident) return false;
    const bool went_past = page.linked() && !page.used() &&
                           static_cast<std::int32_t>(page.pass - entry.clock) > 0 &&
                           !order.passed_since(entry.id, Order::kJitterTouches);
    if (!went_past && order.touches() - entry.touches < patience) return false;
    set(page.state, kAhead, false);
    set(page.hints, kUnused, true);
    hit_share -= hit_share / 32;
    return true;
  });
}

void Planner::Impl::count_round() {
  const double cycle = order.cycle();
  if (cycle == 0 || order.clock() - clock_mark < cycle) return;
  const auto fresh = static_cast<double>(reads - reads_mark);
  reads_per_round = reads_per_round == 0 ? fresh : (reads_per_round + fresh) / 2;
  reads_mark = reads;
  clock_mark = order.clock();
}

void Planner::Impl::age_samples() {
  const double cycle = order.cycle_or_all();
  // An eighth of a round: eight doublings of the number of samples fit in one round.
  for (; probation < samples.size(); ++probation) {
    const Sample& sample = samples[probation];
    if (!has(order[sample.id].state, kArmed)) continue;
    if (order.clock() - sample.clock < cycle / 8) break;
    if (order.overdue(sample.id)) budget.survived();
  }
  std::size_t done = 0;
  for (; done < probation; ++done) {
    const Sample& sample = samples[done];
    if (!has(order[sample.id].state, kArmed)) continue;
    if (order.clock() - sample.clock < (budget.sure() ? cycle / 8 : cycle)) break;
    PageHeat& page = order[sample.id];
    if (order.overdue(sample.id)) {
      set(page.hints, kUnused, true);
    } else if (has(page.hints, kPaid)) {
      set(page.hints, kPaid, false);  // rarely used: pays when it is touched, if ever
      budget.give_back();
    }
  }
  // Amortised: a shift only when half is done.
  if (2 * done >= samples.size() && done > 0) {
    samples.erase(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(done));
    probation -= done;
  }
}

void Planner::Impl::want(PageId id, Reason reason) {
  for (const Want& other : wants) {
    if (other.id == id) return;
  }
  wants.push_back({id, reason});
}

void Planner::Impl::want_advised(std::size_t limit) {
  std::uint32_t steps = 0;
  while (!prefetch_ranges.empty() && wants.size() < limit) {
    Range& range = prefetch_ranges.front();
    while (range.count > 0 && wants.size() < limit && steps++ < kScanSteps) {
      const PageId id = ids.id(range.first);
      if (fetchable(id)) {
        want(id, Reason::kPrefetchAdvice);
        return;  // one at a time; stays in the range until it is being fetched
      }
      ++range.first.page;
      --range.count;
    }
    if (range.count > 0) return;
    prefetch_ranges.erase(prefetch_ranges.begin());
  }
}

// The rest of a run (of an expert) whose first page was waited for: as long as each page nearly
// always followed the one before it.
void Planner::Impl::want_run(std::size_t limit) {
  if (demanded == kNoPage || !order[demanded].linked()) return;
  if (order.touches() - demanded_at > kRunMax) return;  // it is over
  double share = 1;
  PageId id = demanded;
  for (std::uint32_t i = 0; i < kRunMax && wants.size() < limit; ++i) {
    id = order[id].next;
    share *= order.chain(id);
    if (id == demanded || share < kAheadShare) return;
    if (fetchable(id) && !order.passed_since(id, 2 * kRunMax)) want(id, Reason::kPrefetchRun);
  }
}

void Planner::Impl::want_scans(std::size_t limit) {
  for (const Scan& scan : scans) {
    if (scan.last == kNoPage || scan.depth == 0) continue;
    if (order.touches() - scan.touches > Order::kTouchesKept) continue;
    const model::PageRef last = ids.page(scan.last);
    const std::uint32_t end = ids.page_count(last.region);
    for (std::uint32_t i = 1; i <= scan.depth && last.page + i < end; ++i) {
      if (wants.size() >= limit) return;
      const PageId id = scan.last + i;
      if (!order[id].linked() && fetchable(id)) want(id, Reason::kPrefetchSequential);
    }
  }
}

// Pages left out a moment ago: another thread, a little behind, comes to them next.
void Planner::Impl::want_skipped(std::size_t limit) {
  for (const PageId id : order.skipped()) {
    if (wants.size() >= limit) return;
    if (id == kNoPage || !fetchable(id) || order[id].used() || order.use(id) < 0.75) continue;
    if (order.passed_since(id, Order::kJitterTouches)) want(id, Reason::kPrefetchOrder);
  }
}

// Along the learned order, from where it was looked at last.
void Planner::Impl::want_order(std::size_t limit) {
  if (order.cursor() == kNoPage || wants.size() >= limit) return;
  // The more of what was fetched ahead was in vain, the surer the next must be.
  const double share =
      kAheadShare + (kAheadShareMax - kAheadShare) * std::min(1.0, 2 * (1 - hit_share));
  PageId looked_at = order.scanned();
  bool keep = true;  // no page that is wanted lies behind looked_at
  PageId id = looked_at;
  for (std::uint32_t step = 0; step < kScanSteps; ++step) {
    id = order[id].next;
    if (id == order.cursor()) break;
    // No farther than a quarter round: what is looked at and left is not looked at again before
    // the cursor has been there, and may be gone by then.
    if (order.dormant(id)) {
      if (keep) looked_at = id;
      continue;
    }
    if (order.interval(id) - order.age(id) > order.cycle_or_all() / 4 + kNear) break;
    if (fetchable(id) && order.use(id) >= share) {
      keep = false;
      want(id, Reason::kPrefetchOrder);
      if (wants.size() >= limit) break;
    }
    if (keep) looked_at = id;
  }
  order.set_scanned(looked_at);
}

PageId Planner::Impl::draw() {
  while (!resident.empty()) {
    const std::size_t i = random.below(resident.size());
    const PageId id = resident[i];
    if (where(order[id]) == Where::kResident) return id;
    set(order[id].state, kListed, false);
    resident[i] = resident.back();
    resident.pop_back();
  }
  return kNoPage;
}

// Of a few residents, the one whose passes were observed least often: a page that was touched once,
// while the engine loaded, should not have to wait for its turn among those seen in every round.
PageId Planner::Impl::draw_least_seen() {
  PageId least = draw();
  for (int i = 1; i < kLeastSeenDraws && least != kNoPage; ++i) {
    if (const PageId id = draw(); order[id].seen < order[least].seen) least = id;
  }
  return least;
}

// How many of the pages used before and after this one are resident without a gap, 0..1.
double Planner::Impl::crowd(PageId id) const {
  std::uint32_t neighbours = 0;
  PageId before = id;
  PageId after = id;
  for (std::uint32_t i = 0; i < kCrowd; ++i) {
    before = order[before].prev;
    if (where(order[before]) != Where::kResident) break;
    ++neighbours;
  }
  for (std::uint32_t i = 0; i < kCrowd; ++i) {
    after = order[after].next;
    if (where(order[after]) != Where::kResident) break;
    ++neighbours;
  }
  return neighbours / (2.0 * kCrowd);
}

// `seen_used`: its last use was seen and not presumed. `desperate`: anything that may go at all.
void Planner::Impl::consider(PageId id, bool seen_used, bool desperate) {
  const PageHeat& page = order[id];
  if (pool.size() >= kPoolMax || where(page) != Where::kResident || has(page.hints, kPinned)) {
    return;
  }
  const bool unused = has(page.hints, kUnused);
  Reason reason = Reason::kEvictFarthest;
  if (desperate) {
    reason = Reason::kEvictPressure;
  } else {
    if (has(page.state, kAhead) || in_use(id)) return;
    // Overdue and mapped: dead, or used where no fault shows it; a sample tells. Overdue and not
    // mapped: its use would have been seen, so it is dead, on probation or not.
    const bool overdue = page.linked() && order.overdue(id);
    if (!unused && !page.visible() && overdue && sampling_works()) return;
    if (unused || (overdue && has(page.state, kArmed)))
      reason = has(page.state, kArmed) ? Reason::kEvictCold : Reason::kEvictUnused;
  }
  policy::Victim victim;
  // In a first scan by chance: nothing of it is expected back before it ends, and what stays is
  // spread evenly over it, so that fetching the rest can overlap with using what stayed.
  const bool by_chance = first_scan && !order.interval_known(id);
  victim.next_use = by_chance ? order.cycle_or_all() * (0.5 + random.unit()) : order.next_use(id);
  victim.refetch = refetch(page);
  victim.advice = advice(page);
  victim.presumed = order.interval_known(id) && !page.visible() && !seen_used;
  if (order.interval_known(id) && order.use(id) >= kAheadShare) victim.crowd = crowd(id);
  victim.unused = unused;
  pool.push_back({policy::victim_score(victim), id, reason});
}

void Planner::Impl::pick_victims(std::size_t count, bool pressure, model::Moves& out) {
  for (const bool desperate : {false, true}) {
    if (desperate && (!pressure || !out.demote.empty())) break;
    pool.clear();
    // What was used last, behind the pages that must stay.
    const std::uint64_t back = std::min<std::uint64_t>(touched_count, kRecentRing);
    for (std::uint64_t i = 0; i < back && pool.size() < kDraws + 2 * count; ++i) {
      consider(touched_ring[(touched_count - 1 - i) % kRecentRing], true, desperate);
    }
    for (std::size_t i = 0; i < kDraws + 2 * count; ++i) {
      const PageId id = draw();
      if (id == kNoPage) break;
      consider(id, false, desperate);
    }
    std::sort(pool.begin(), pool.end(), [](const Candidate& a, const Candidate& b) {
      return a.score != b.score ? a.score > b.score : a.id < b.id;
    });
    for (const Candidate& candidate : pool) {
      if (out.demote.size() >= count || out.demote.full()) break;
      const model::PageRef ref = ids.page(candidate.id);
      const bool listed = std::any_of(out.demote.begin(), out.demote.end(),
                                      [&](const model::Move& move) { return move.page == ref; });
      if (listed) continue;
      order[candidate.id].reason = candidate.reason;
      out.demote.push({ref, candidate.reason});
    }
  }
}

void Planner::Impl::evict_advised(model::Moves& out) {
  std::uint32_t steps = 0;
  while (!evict_ranges.empty()) {
    Range& range = evict_ranges.front();
    for (; range.count > 0; ++range.first.page, --range.count) {
      if (out.demote.full() || steps++ == kScanSteps) return;
      PageHeat& page = order[ids.id(range.first)];
      if (where(page) != Where::kResident || has(page.hints, kPinned)) continue;
      page.reason = Reason::kEvictAdvice;
      out.demote.push({range.first, Reason::kEvictAdvice});
    }
    evict_ranges.erase(evict_ranges.begin());
  }
}

void Planner::Impl::pick_samples(model::Moves& out) {
  if (order.touches() == sampled_at) return;
  sampled_at = order.touches();
  const auto open = static_cast<std::uint32_t>(samples.size() - probation);
  std::uint32_t allowed = budget.allowance(open);
  const auto sample = [&](PageId id, Reason reason) {
    PageHeat& page = order[id];
    if (out.sample.full() || where(page) != Where::kResident || page.visible() ||
        has(page.hints, kPinned) || in_use(id)) {
      return false;
    }
    page.reason = reason;
    out.sample.push({ids.page(id), reason});
    ++unanswered;
    return true;
  };
  // Around a page that seemed alive and is not.
  for (std::uint32_t i = 0; i < order.surprise_count(); ++i) {
    PageId before = order.surprises()[i];
    PageId after = before;
    for (int k = 0; k < 4 && allowed > 0; ++k) {
      if (!order[before].linked() || !order[after].linked()) break;
      before = order[before].prev;
      after = order[after].next;
      if (sample(before, Reason::kSampleSpread)) --allowed;
      if (allowed > 0 && sample(after, Reason::kSampleSpread)) --allowed;
    }
  }
  // Twice as many draws as there may be samples: half of them dead keeps the number doubling. Every
  // second one is among those hardly ever seen.
  for (std::uint32_t i = 0; i < std::min(2 * allowed, 64U); ++i) {
    const PageId id = i % 2 == 0 ? draw() : draw_least_seen();
    if (id == kNoPage) break;
    if (order.overdue(id)) {
      sample(id, Reason::kSampleDue);
    } else if (budget.take()) {
      const bool taken = sample(id, Reason::kSampleDue);
      set(order[id].hints, kPaid, taken);
      if (!taken) budget.give_back();
    }
  }
}

void Planner::plan(std::uint64_t free_pages, std::uint64_t over_pages,
                   std::uint32_t fills_in_flight, std::uint32_t demotes_in_flight,
                   model::Moves& out) {
  Impl& p = *impl_;
  out.clear();
  p.expire_ahead();
  p.count_round();
  p.age_samples();
  p.window = policy::window_size({.reads_per_round = p.reads_per_round,
                                  .demand_share = p.demand_share,
                                  .inflight_max = p.options.inflight_fills_max,
                                  .recent = p.recent.pages(),
                                  .capacity_pages = p.options.capacity_pages});

  // What to fetch ahead.
  p.wants.clear();
  const std::uint32_t slots = p.options.inflight_fills_max > fills_in_flight
                                  ? p.options.inflight_fills_max - fills_in_flight
                                  : 0;
  const std::size_t room = p.window.ahead > p.ahead.size() ? p.window.ahead - p.ahead.size() : 0;
  const std::size_t limit = std::min<std::size_t>(room, slots);
  p.want_advised(std::min<std::size_t>(slots, 1));
  // Where nothing follows anything: one page now and then, to notice when that changes.
  const bool trying = p.hit_share < kHitShareMin;
  if (limit > 0) {
    p.want_scans(limit);
    if (!trying) {
      p.want_skipped(limit);
      p.want_run(limit);
      p.want_order(limit);
    } else if (p.ahead.empty() && p.order.touches() % kTryEvery == 0) {
      p.want_order(1);
    }
  }

  // Frames. Only once they have run short is any kept free: what fits is left alone.
  const std::uint64_t wanted = p.waiting + p.wants.size();
  const std::uint64_t touches = p.order.touches();
  if (wanted > free_pages || over_pages > 0) {
    p.pressed_until = touches + 64 + p.options.capacity_pages;
  }
  const bool pressed = touches < p.pressed_until;
  const std::uint64_t reserve = pressed ? p.window.reserve : 0;
  for (const Impl::Want& want : p.wants) {
    if (p.waiting + reserve + out.promote.size() >= free_pages || out.promote.full()) break;
    p.order[want.id].reason = want.reason;
    out.promote.push({p.ids.page(want.id), want.reason});
  }
  p.evict_advised(out);
  const std::uint64_t need = wanted + reserve + over_pages;
  const std::uint64_t have = free_pages + demotes_in_flight + out.demote.size();
  if (need > have) {
    p.pick_victims(std::min<std::uint64_t>(need - have, 64), p.waiting > 0 || over_pages > 0, out);
  }
  if (pressed) p.pick_samples(out);
}

model::PageView Planner::view(model::PageRef ref) const {
  const Impl& p = *impl_;
  model::PageView view;
  const PageId id = p.find(ref);
  if (id == kNoPage) return view;
  const PageHeat& page = p.order[id];
  view.sampled = has(page.state, kArmed);
  view.pinned = has(page.hints, kPinned);
  view.advice = advice(page);
  view.reason = page.reason;
  view.next_use_touches = UINT64_MAX;
  if (!page.linked()) return view;
  view.confidence = p.order.use(id);
  view.heat = heat(ref);
  view.age_touches = p.order.age(id);
  if (p.order.interval_known(id)) {
    view.interval_touches = static_cast<std::uint64_t>(p.order.interval(id));
  }
  view.next_use_touches = static_cast<std::uint64_t>(p.order.next_use(id));
  return view;
}

double Planner::heat(model::PageRef ref) const {
  const Impl& p = *impl_;
  const PageId id = p.find(ref);
  if (id == kNoPage || !p.order[id].linked()) return 0;
  // Full while it comes around in time, then falling with the age.
  return p.order.use(id) *
         std::min(1.0, p.order.interval(id) / std::max<double>(p.order.age(id), 1));
}

const PlannerStats& Planner::stats() const {
  Impl& p = *impl_;
  p.stats.cycle_touches = static_cast<std::uint64_t>(p.order.cycle());
  p.stats.keep_recent = p.recent.pages();
  p.stats.ahead_target = p.window.ahead;
  p.stats.reserve = p.window.reserve;
  return p.stats;
}

std::uint64_t Planner::metadata_bytes() const {
  const Impl& p = *impl_;
  return p.order.metadata_bytes() + p.resident.capacity() * sizeof(PageId) +
         p.samples.capacity() * sizeof(Impl::Sample);
}

bool Planner::validate() const {
  const Impl& p = *impl_;
  if (!p.order.validate() || p.ahead.size() > kAheadMax) return false;
  std::uint64_t resident = 0;
  std::uint64_t waiting = 0;
  for (PageId id = 0; id < p.order.size(); ++id) {
    const PageHeat& page = p.order[id];
    if (where(page) == Where::kResident) {
      ++resident;
      if (!has(page.state, kListed)) return false;
    }
    if (has(page.state, kWaiting)) {
      ++waiting;
      if (where(page) != Where::kAbsent) return false;
    }
  }
  return resident == p.resident_count && waiting == p.waiting &&
         p.resident.size() <= p.order.size();
}

}  // namespace kvmem::loop
