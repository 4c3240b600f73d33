#include "loop/placer.h"

#include <algorithm>
#include <array>
#include <deque>

#include "heat/frequency.h"
#include "heat/page_ids.h"
#include "heat/random.h"
#include "policy/place_pace.h"

namespace kvmem::loop {
namespace {

using heat::kNoPage;
using heat::PageId;
using model::Advice;
using model::Memory;

// What is remembered of a page: 16 bytes with how often it is used, where there is CXL memory.
struct Place {
  std::uint32_t look = 0;  // since when it is looked at, in ticks; 0: it is not
  std::uint32_t told = 0;  // for how many of them Frequency knows that it was not used
  std::uint8_t state = 0;
  std::uint8_t watch = 0;  // it has moved lately: the first use since tells what that was worth
};

constexpr std::uint8_t kHasFrame = 1;
constexpr std::uint8_t kInCxl = 2;
constexpr std::uint8_t kListedDram = 4;
constexpr std::uint8_t kListedCxl = 8;
constexpr std::uint8_t kMoving = 16;
constexpr std::uint8_t kKeepUp = 32;    // advice: hot, pinned
constexpr std::uint8_t kKeepDown = 64;  // advice: cold
constexpr std::uint8_t kPinned = 128;

constexpr std::uint8_t kMovedUp = 1;
constexpr std::uint8_t kMovedDown = 2;

constexpr double kSwapRatio = 2;        // of the rates, for two pages to change places
constexpr std::size_t kUpDraws = 32;    // candidates in CXL memory, besides those just used
constexpr std::size_t kDownDraws = 64;  // in DRAM
constexpr std::size_t kSwapsMax = 16;   // a plan
constexpr std::size_t kHotMax = 64;
constexpr std::size_t kLooksMax = 256;  // a plan
constexpr double kLooksSaved = 256;
constexpr std::uint64_t kRefundNs = 200'000'000;    // unused for so long: the look costs nothing
constexpr std::uint64_t kAgainNs = 5'000'000'000;   // an order to the engine may be lost
constexpr std::uint32_t kAgainFromTicks = 100'000;  // 1 s
constexpr std::uint64_t kWatchNs = 2'000'000'000;   // not used for so long: that is the answer
constexpr std::size_t kWatchedMax = 512;
// Twenty looks in it tell rates apart that differ by half (tests/bench/run.sh heat --sampling).
constexpr std::uint64_t kHalfLifeNs = 8'000'000'000;
constexpr std::uint64_t kLeastWaitNs = 50'000;  // an order and a fault take that long

// 10 us; they come around after twelve hours, when no look is older than some minutes.
constexpr std::uint64_t kTickLengthNs = 10'000;

std::uint32_t to_ticks(std::uint64_t ns) {
  return std::max<std::uint32_t>(static_cast<std::uint32_t>(ns / kTickLengthNs), 1);
}
bool has(std::uint8_t bits, std::uint8_t mask) { return (bits & mask) != 0; }
void set(std::uint8_t& bits, std::uint8_t mask, bool on) {
  bits = static_cast<std::uint8_t>(on ? bits | mask : bits & ~mask);
}

}  // namespace

struct Placer::Impl {
  explicit Impl(const PlacerOptions& from)
      : options(from),
        pace(from.places_per_s),
        random(from.seed),
        frequency(kHalfLifeNs, from.seed) {}

  struct Timed {
    PageId id;
    std::uint32_t since;
  };
  struct Rated {
    double rate;
    PageId id;
  };

  PlacerOptions options;
  policy::PlacePace pace;
  heat::Random random;
  heat::PageIds ids;
  heat::Frequency frequency;
  std::vector<Place> pages;
  std::array<std::vector<PageId>, model::kMemoryCount> listed;  // what left is dropped when met
  std::array<std::size_t, model::kMemoryCount> turns{};
  std::vector<PageId> hot;  // of CXL memory, used a moment ago
  std::deque<Timed> looks;  // not refunded yet
  std::deque<Timed> watched;
  std::size_t again = 0;  // where the round of repeated orders stands
  std::uint64_t again_ns = 0;
  double look_tokens = kLooksSaved;
  std::uint64_t last_ns = 0;
  PlacerStats stats;

  static Memory memory_of(const Place& page) {
    return has(page.state, kInCxl) ? Memory::kCxl : Memory::kDram;
  }
  void list(PageId id) {
    Place& page = pages[id];
    const Memory memory = memory_of(page);
    const std::uint8_t bit = memory == Memory::kCxl ? kListedCxl : kListedDram;
    if (has(page.state, bit)) return;
    set(page.state, bit, true);
    listed[static_cast<std::size_t>(memory)].push_back(id);
  }
  void set_frame(PageId id, bool has_frame, Memory memory) {
    Place& page = pages[id];
    set(page.state, kHasFrame, has_frame);
    set(page.state, kInCxl, has_frame && memory == Memory::kCxl);
    if (has_frame) list(id);
  }
  // A page of that memory at random, kNoPage when there is none.
  PageId draw(Memory memory) {
    return take(memory, [this](std::size_t count) { return random.below(count); });
  }
  // The next one in turn.
  PageId turn(Memory memory) {
    return take(memory, [&](std::size_t count) {
      std::size_t& hand = turns[static_cast<std::size_t>(memory)];
      hand = hand + 1 < count ? hand + 1 : 0;
      return hand;
    });
  }
  template <class Choose>
  PageId take(Memory memory, Choose choose) {
    std::vector<PageId>& from = listed[static_cast<std::size_t>(memory)];
    while (!from.empty()) {
      const std::size_t i = choose(from.size());
      Place& page = pages[from[i]];
      if (has(page.state, kHasFrame) && memory_of(page) == memory) return from[i];
      set(page.state, memory == Memory::kCxl ? kListedCxl : kListedDram, false);
      from[i] = from.back();
      from.pop_back();
    }
    return kNoPage;
  }

  static std::uint64_t open_ns(const Place& page, std::uint32_t now_ticks) {
    return page.look == 0 ? 0 : (now_ticks - page.look) * kTickLengthNs;
  }
  void tell(PageId id, std::uint32_t now_ticks) {
    Place& page = pages[id];
    if (page.look == 0) return;
    const std::uint32_t ticks = now_ticks - page.look;
    if (ticks <= page.told) return;
    frequency.untouched_for(id, (ticks - page.told) * kTickLengthNs);
    page.told = ticks;
  }
  static void begin_look(Place& page, std::uint32_t now_ticks) {
    page.look = now_ticks;
    page.told = 0;
  }
  double rate(PageId id, std::uint32_t now_ticks) {
    if (has(pages[id].state, kKeepUp)) return 1e9;
    if (has(pages[id].state, kKeepDown)) return 0;
    tell(id, now_ticks);
    return frequency.per_second(id);
  }
  // It may be worth moving up.
  void note_hot(PageId id) {
    if (has(pages[id].state, kInCxl) && hot.size() < kHotMax) hot.push_back(id);
  }
  bool is_known(PageId id) const {
    return pages[id].look != 0 || frequency.exposure_s(id) > 0 || has(pages[id].state, kKeepDown);
  }

  void used(PageId id, std::uint64_t now_ns);
  void answer(Place& page, double per_second) {
    if (page.watch == 0) return;
    pace.found(page.watch == kMovedUp, per_second);
    page.watch = 0;
  }
  void settle_watched(std::uint32_t now_ticks);
  void choose_looks(std::uint64_t now_ns, Places& out);
  void choose_moves(std::uint64_t now_ns, std::int64_t dram_room, Places& out);
};

Placer::Placer(const PlacerOptions& options) : impl_(std::make_unique<Impl>(options)) {}
Placer::~Placer() = default;
Placer::Placer(Placer&&) noexcept = default;
Placer& Placer::operator=(Placer&&) noexcept = default;

void Placer::set_limit(double places_per_s) { impl_->pace.set_limit(places_per_s); }

void Placer::region_added(model::RegionSlot slot, std::uint32_t page_count) {
  Impl& p = *impl_;
  region_removed(slot);
  const PageId first = p.ids.add(slot, page_count);
  if (first == kNoPage || p.pages.size() >= p.ids.end()) return;
  p.pages.resize(p.ids.end());
  p.frequency.resize(p.ids.end());
}

void Placer::region_removed(model::RegionSlot slot) {
  Impl& p = *impl_;
  if (!p.ids.has(slot)) return;
  const PageId first = p.ids.first(slot);
  const std::uint32_t count = p.ids.page_count(slot);
  for (PageId id = first; id < first + count; ++id) {
    Place& page = p.pages[id];
    p.set_frame(id, false, Memory::kDram);
    // (An entry in a list stays until it is met, so its bit must as well.)
    const auto listed = static_cast<std::uint8_t>(page.state & (kListedDram | kListedCxl));
    page = Place{};
    page.state = listed;
  }
  p.frequency.forget(first, count);
  const auto of_region = [first, count](PageId id) { return id - first < count; };
  std::erase_if(p.hot, of_region);
  std::erase_if(p.looks, [&](const Impl::Timed& look) { return of_region(look.id); });
  std::erase_if(p.watched, [&](const Impl::Timed& watch) { return of_region(watch.id); });
  p.ids.remove(slot);
}

void Placer::advise(model::PageRef first, std::uint32_t page_count, Advice advice) {
  Impl& p = *impl_;
  const PageId base = p.ids.id(first);
  if (base == kNoPage) return;
  page_count = std::min(page_count, p.ids.page_count(first.region) - first.page);
  for (PageId id = base; id < base + page_count; ++id) {
    std::uint8_t& state = p.pages[id].state;
    switch (advice) {
      case Advice::kNormal:
      case Advice::kSequential:
        set(state, kKeepDown, false);
        set(state, kKeepUp, has(state, kPinned));
        break;
      case Advice::kHot:
        set(state, kKeepDown, false);
        set(state, kKeepUp, true);
        p.note_hot(id);
        break;
      case Advice::kCold:
        set(state, kKeepDown, true);
        set(state, kKeepUp, has(state, kPinned));
        break;
      case Advice::kPin:
        set(state, kPinned | kKeepUp, true);
        p.note_hot(id);
        break;
      case Advice::kUnpin:
        set(state, kPinned | kKeepUp, false);
        break;
      case Advice::kPrefetch:
      case Advice::kEvict:
        break;
    }
  }
}

void Placer::arrived(model::PageRef ref, Memory memory) {
  Impl& p = *impl_;
  const PageId id = p.ids.id(ref);
  if (id == kNoPage) return;
  Place& page = p.pages[id];
  p.set_frame(id, true, memory);
  // What is known of it is from another time; and it is mapped now, or will be when it is touched.
  p.frequency.forget(id, 1);
  page.look = 0;
  page.watch = 0;
}

void Placer::left(model::PageRef ref) {
  Impl& p = *impl_;
  const PageId id = p.ids.id(ref);
  if (id == kNoPage) return;
  p.set_frame(id, false, Memory::kDram);
  p.pages[id].look = 0;
  p.pages[id].watch = 0;
  set(p.pages[id].state, kMoving, false);
}

void Placer::moved(model::PageRef ref, Memory memory, std::uint64_t now_ns) {
  Impl& p = *impl_;
  const PageId id = p.ids.id(ref);
  if (id == kNoPage) return;
  Place& page = p.pages[id];
  set(page.state, kMoving, false);
  p.set_frame(id, true, memory);
  if (p.watched.size() >= kWatchedMax) return;
  page.watch = memory == Memory::kDram ? kMovedUp : kMovedDown;
  // A look that was open says nothing about the time since.
  if (page.look != 0) {
    p.tell(id, to_ticks(now_ns));
    Impl::begin_look(page, to_ticks(now_ns));
  }
  p.watched.push_back({id, to_ticks(now_ns)});
}

void Placer::stayed(model::PageRef ref) {
  Impl& p = *impl_;
  const PageId id = p.ids.id(ref);
  if (id != kNoPage) set(p.pages[id].state, kMoving, false);
}

void Placer::used(model::PageRef page, std::uint64_t now_ns) {
  const PageId id = impl_->ids.id(page);
  if (id != kNoPage) impl_->used(id, now_ns);
}

void Placer::Impl::used(PageId id, std::uint64_t now_ns) {
  Place& page = pages[id];
  if (page.look == 0) return;
  const std::uint64_t wait_ns = std::max(open_ns(page, to_ticks(now_ns)), kLeastWaitNs);
  frequency.touched_after(id, wait_ns, page.told * kTickLengthNs);
  page.look = 0;
  ++stats.looks_used;
  answer(page, 1e9 / static_cast<double>(wait_ns));
  note_hot(id);
}

void Placer::looked_at(model::PageRef ref, std::uint64_t now_ns) {
  Impl& p = *impl_;
  const PageId id = p.ids.id(ref);
  if (id == kNoPage || !has(p.pages[id].state, kHasFrame)) return;
  if (p.pages[id].look == 0) Impl::begin_look(p.pages[id], to_ticks(now_ns));
}

// Pages that moved and were not used since.
void Placer::Impl::settle_watched(std::uint32_t now_ticks) {
  while (!watched.empty()) {
    const Timed& watch = watched.front();
    if (now_ticks - watch.since < kWatchNs / kTickLengthNs) break;
    Place& page = pages[watch.id];
    const std::uint64_t unused_ns = std::max<std::uint64_t>(open_ns(page, now_ticks), 500'000'000);
    if (page.look != 0) answer(page, 0.5e9 / static_cast<double>(unused_ns));
    page.watch = 0;
    watched.pop_front();
  }
}

void Placer::Impl::choose_looks(std::uint64_t now_ns, Places& out) {
  const std::uint32_t now_ticks = to_ticks(now_ns);
  const double seconds = last_ns == 0 ? 0 : static_cast<double>(now_ns - last_ns) / 1e9;
  look_tokens = std::min(look_tokens + seconds * options.looks_per_s, kLooksSaved);
  while (!looks.empty() && now_ticks - looks.front().since >= kRefundNs / kTickLengthNs) {
    const Timed& look = looks.front();
    if (pages[look.id].look == look.since) look_tokens += 1;
    looks.pop_front();
  }
  const auto look = [&](PageId id) {
    Place& page = pages[id];
    if (page.look != 0 || !has(page.state, kHasFrame) || has(page.state, kMoving)) return;
    begin_look(page, now_ticks);  // at once, so that it is not drawn again
    looks.push_back({id, now_ticks});
    look_tokens -= 1;
    out.looks.push_back(ids.page(id));
    ++stats.looks;
  };
  // Once more at what was just used in CXL memory: one use does not make it hot.
  const double half = look_tokens / 2;
  for (std::size_t i = 0; i < hot.size() && look_tokens > half; ++i) look(hot[i]);
  // By turns from either memory; pages that are looked at already cost a draw.
  for (std::size_t tries = 0; tries < 4 * kLooksMax && look_tokens >= 1; ++tries) {
    if (out.looks.size() >= kLooksMax) break;
    const PageId id = turn(tries % 2 == 0 ? Memory::kCxl : Memory::kDram);
    if (id != kNoPage) look(id);
  }
  // An order may have been lost, and the page would seem unused for good.
  if (now_ns - again_ns < kAgainNs / 64) return;
  again_ns = now_ns;
  const std::size_t part = pages.size() / 64 + 1;
  for (std::size_t i = 0; i < part && out.looks.size() < kLooksMax && !pages.empty(); ++i) {
    again = (again + 1) % pages.size();
    const Place& page = pages[again];
    if (page.look != 0 && now_ticks - page.look > kAgainFromTicks && has(page.state, kHasFrame))
      out.looks.push_back(ids.page(static_cast<PageId>(again)));
  }
}

void Placer::Impl::choose_moves(std::uint64_t now_ns, std::int64_t dram_room, Places& out) {
  const std::uint32_t now_ticks = to_ticks(now_ns);
  pace.advance(now_ns);
  if (pace.to_move() < 1) return;
  std::vector<Rated> up;
  std::vector<Rated> down;
  const auto consider = [&](PageId id, std::vector<Rated>& to) {
    const Place& page = pages[id];
    if (!has(page.state, kHasFrame) || has(page.state, kMoving)) return;
    for (const Rated& known : to) {
      if (known.id == id) return;
    }
    to.push_back({rate(id, now_ticks), id});
  };
  for (const PageId id : hot) {
    if (has(pages[id].state, kInCxl)) consider(id, up);
  }
  hot.clear();
  for (std::size_t i = 0; i < kUpDraws; ++i) {
    if (const PageId id = draw(Memory::kCxl); id != kNoPage) consider(id, up);
  }
  const auto is_told = [&](PageId id) { return has(pages[id].state, kKeepUp); };
  const auto hotter = [](const Rated& a, const Rated& b) {
    return a.rate != b.rate ? a.rate > b.rate : a.id < b.id;
  };
  std::sort(up.begin(), up.end(), hotter);
  std::size_t next_up = 0;
  const auto start = [&](PageId id) {
    set(pages[id].state, kMoving, true);
    return ids.page(id);
  };
  for (; next_up < up.size() && dram_room > 0 && pace.to_move() >= 1; ++next_up, --dram_room) {
    if (out.swaps.size() >= kSwapsMax) break;
    out.swaps.push_back({start(up[next_up].id), {}, false});
    ++stats.ups_room;
    pace.moved(1);
  }
  // What an engine asked for does not have to pay.
  const auto may_exchange = [&] {
    if (next_up == up.size() || out.swaps.size() >= kSwapsMax) return false;
    return (is_told(up[next_up].id) ? pace.to_move() : pace.to_exchange()) >= 2;
  };
  if (dram_room >= 0 && !may_exchange()) return;
  for (std::size_t i = 0; i < kDownDraws; ++i) {
    const PageId id = draw(Memory::kDram);
    if (id != kNoPage && !has(pages[id].state, kKeepUp)) consider(id, down);
  }
  std::sort(down.begin(), down.end(), [&](const Rated& a, const Rated& b) { return hotter(b, a); });
  std::size_t next_down = 0;
  for (; next_down < down.size() && dram_room < 0 && pace.to_move() >= 1;
       ++next_down, ++dram_room) {
    if (out.down.size() >= kSwapsMax) break;
    out.down.push_back(start(down[next_down].id));
    ++stats.downs_room;
    pace.moved(1);
  }
  for (; next_down < down.size(); ++next_down) {
    const Rated& other = down[next_down];
    if (!may_exchange()) break;
    if (!is_known(other.id)) continue;
    if (up[next_up].rate < kSwapRatio * other.rate) break;
    const bool is_paced = !is_told(up[next_up].id);
    out.swaps.push_back({start(up[next_up].id), start(other.id), true});
    ++next_up;
    ++stats.swaps_hotter;
    is_paced ? pace.exchanged(2) : pace.moved(2);
  }
}

void Placer::plan(std::uint64_t now_ns, std::int64_t dram_room, May may, Places& out) {
  Impl& p = *impl_;
  out.clear();
  if (p.pace.limit_per_s() <= 0) return;
  p.frequency.advance(now_ns);
  p.settle_watched(to_ticks(now_ns));
  if (may.looks) p.choose_looks(now_ns, out);
  if (may.moves) p.choose_moves(now_ns, dram_room, out);
  p.last_ns = now_ns;
}

double Placer::uses_per_second(model::PageRef page, std::uint64_t now_ns) const {
  const PageId id = impl_->ids.id(page);
  return id == kNoPage ? 0 : impl_->rate(id, to_ticks(now_ns));
}

PlacerStats Placer::stats() const {
  PlacerStats stats = impl_->stats;
  stats.pace_per_s = impl_->pace.pace_per_s();
  stats.limit_per_s = impl_->pace.limit_per_s();
  stats.gain = impl_->pace.gain();
  return stats;
}

std::uint64_t Placer::metadata_bytes() const {
  std::uint64_t bytes = impl_->pages.capacity() * sizeof(Place) + impl_->frequency.metadata_bytes();
  for (const auto& list : impl_->listed) bytes += list.capacity() * sizeof(PageId);
  return bytes;
}

}  // namespace kvmem::loop
