#include "loop/placer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>

#include "heat/page_ids.h"
#include "heat/random.h"
#include "heat/use_rate.h"
#include "policy/place_pace.h"

namespace kvmem::loop {
namespace {

using heat::kNoPage;
using heat::PageId;
using model::Advice;
using model::Memory;

// What is remembered of a page. 24 bytes, only where there is CXL memory.
struct Place {
  heat::UseRate rate;
  std::uint32_t look = 0;  // since when it is looked at, in ticks; 0: it is not
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
constexpr std::size_t kSwapsMax = 8;    // a plan
constexpr std::size_t kHotMax = 64;
constexpr std::size_t kLooksMax = 256;  // a plan
constexpr double kLooksSaved = 256;
constexpr std::uint64_t kRefundNs = 200'000'000;    // unused for so long: the look costs nothing
constexpr std::uint64_t kAgainNs = 5'000'000'000;   // an order to the engine may be lost
constexpr std::uint32_t kAgainFromTicks = 100'000;  // 1 s
constexpr std::uint64_t kWatchNs = 2'000'000'000;   // not used for so long: that is the answer
constexpr std::size_t kWatchedMax = 512;
constexpr double kUsualKept = 0.999;

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
      : options(from), pace(from.places_per_s), random(from.seed) {}

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
  std::vector<Place> pages;
  std::array<std::vector<PageId>, model::kMemoryCount> listed;  // what left is dropped when met
  std::array<std::size_t, model::kMemoryCount> turns{};
  std::uint64_t in_cxl = 0;
  std::vector<PageId> hot;    // of CXL memory, used a moment ago
  std::vector<PageId> moved;  // what that was worth is to be known
  std::deque<Timed> looks;    // not refunded yet
  std::deque<Timed> watched;
  std::size_t again = 0;  // where the round of repeated orders stands
  std::uint64_t again_ns = 0;
  double look_tokens = kLooksSaved;
  std::uint64_t last_ns = 0;
  double usual_uses = 0;  // of all looks lately: uses, and seconds
  double usual_seconds = 0;
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
    in_cxl -= has(page.state, kInCxl);
    set(page.state, kHasFrame, has_frame);
    set(page.state, kInCxl, has_frame && memory == Memory::kCxl);
    in_cxl += has(page.state, kInCxl);
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

  float usual() const {
    return usual_uses <= 0 ? 1 : static_cast<float>(usual_uses / std::max(usual_seconds, 1e-3));
  }
  static float open_seconds(const Place& page, std::uint32_t now_ticks) {
    return page.look == 0 ? 0 : static_cast<float>(now_ticks - page.look) * 1e-5F;
  }
  double rate(const Place& page, std::uint32_t now_ticks) const {
    if (has(page.state, kKeepUp)) return 1e9;
    if (has(page.state, kKeepDown)) return 0;
    return page.rate.per_second(open_seconds(page, now_ticks), usual());
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
  if (first != kNoPage && p.pages.size() < p.ids.end()) p.pages.resize(p.ids.end());
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
  const auto of_region = [first, count](PageId id) { return id - first < count; };
  std::erase_if(p.hot, of_region);
  std::erase_if(p.moved, of_region);
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
        set(state, kKeepUp | kKeepDown, false);
        if (has(state, kPinned)) set(state, kKeepUp, true);
        break;
      case Advice::kHot:
        set(state, kKeepDown, false);
        set(state, kKeepUp, true);
        break;
      case Advice::kCold:
        set(state, kKeepDown, true);
        set(state, kKeepUp, has(state, kPinned));
        break;
      case Advice::kPin:
        set(state, kPinned | kKeepUp, true);
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
  page.rate.forget();
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
    page.rate.unused_for(Impl::open_seconds(page, to_ticks(now_ns)));
    page.look = to_ticks(now_ns);
  } else {
    p.moved.push_back(id);
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
  const float seconds =
      std::max(open_seconds(page, to_ticks(now_ns)), heat::UseRate::kLeastSeconds);
  page.look = 0;
  page.rate.used_after(seconds);
  ++stats.looks_used;
  usual_uses = usual_uses * kUsualKept + 1;
  usual_seconds = usual_seconds * kUsualKept + seconds;
  answer(page, 1 / seconds);
  if (has(page.state, kInCxl) && hot.size() < kHotMax) hot.push_back(id);
}

void Placer::looked_at(model::PageRef ref, std::uint64_t now_ns) {
  Impl& p = *impl_;
  const PageId id = p.ids.id(ref);
  if (id == kNoPage || !has(p.pages[id].state, kHasFrame)) return;
  Place& page = p.pages[id];
  if (page.look != 0) page.rate.unused_for(Impl::open_seconds(page, to_ticks(now_ns)));
  page.look = to_ticks(now_ns);
}

// Pages that moved and were not used since.
void Placer::Impl::settle_watched(std::uint32_t now_ticks) {
  while (!watched.empty()) {
    const Timed& watch = watched.front();
    if (now_ticks - watch.since < kWatchNs / kTickLengthNs) break;
    Place& page = pages[watch.id];
    if (page.look != 0) answer(page, 0.5 / std::max(open_seconds(page, now_ticks), 0.5F));
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
    page.look = now_ticks;  // at once, so that it is not drawn again
    looks.push_back({id, now_ticks});
    look_tokens -= 1;
    out.looks.push_back(ids.page(id));
    ++stats.looks;
  };
  for (const PageId id : moved) look(id);
  moved.clear();
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
    to.push_back({rate(page, now_ticks), id});
  };
  for (const PageId id : hot) {
    if (has(pages[id].state, kInCxl)) consider(id, up);
  }
  hot.clear();
  for (std::size_t i = 0; i < kUpDraws; ++i) {
    if (const PageId id = draw(Memory::kCxl); id != kNoPage) consider(id, up);
  }
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
  if (dram_room >= 0 && (pace.to_exchange() < 2 || next_up == up.size())) return;
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
    if (next_up == up.size() || pace.to_exchange() < 2 || out.swaps.size() >= kSwapsMax) break;
    // Of either something is known.
    const Place& page = pages[other.id];
    if (!page.rate.is_known() && page.look == 0 && !has(page.state, kKeepDown)) continue;
    if (up[next_up].rate < kSwapRatio * other.rate) break;
    out.swaps.push_back({start(up[next_up].id), start(other.id), true});
    ++next_up;
    ++stats.swaps_hotter;
    pace.exchanged(2);
  }
}

void Placer::plan(std::uint64_t now_ns, std::int64_t dram_room, bool may_look, Places& out) {
  Impl& p = *impl_;
  out.clear();
  if (p.pace.limit_per_s() <= 0) return;
  p.settle_watched(to_ticks(now_ns));
  if (may_look) p.choose_looks(now_ns, out);
  p.choose_moves(now_ns, dram_room, out);
  p.last_ns = now_ns;
}

double Placer::uses_per_second(model::PageRef page, std::uint64_t now_ns) const {
  const PageId id = impl_->ids.id(page);
  return id == kNoPage ? 0 : impl_->rate(impl_->pages[id], to_ticks(now_ns));
}

PlacerStats Placer::stats() const {
  PlacerStats stats = impl_->stats;
  stats.pace_per_s = impl_->pace.pace_per_s();
  stats.limit_per_s = impl_->pace.limit_per_s();
  stats.gain = impl_->pace.gain();
  return stats;
}

std::uint64_t Placer::metadata_bytes() const {
  std::uint64_t bytes = impl_->pages.capacity() * sizeof(Place);
  for (const auto& list : impl_->listed) bytes += list.capacity() * sizeof(PageId);
  return bytes;
}

}  // namespace kvmem::loop
