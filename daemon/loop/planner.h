// Planner: what to fetch ahead, what to demote, what to sample. Orders heat and policy, knows no
// I/O and no clock: time is the number of pages touched, so a trace replays to the same moves. The
// daemon's loop and the simulator drive it alike: tell facts as they happen, call plan() after each
// batch, start the moves it lists. Owned by one thread.
//
// A page, as the planner sees it, and the facts that move it:
//
//   absent   -> filling    fill_started       absent: in the store, in its origin, or fresh
//   filling  -> resident   filled
//   filling  -> absent     fill_failed
//   resident -> leaving    demote_started     still resident for the engine until demoted
//   leaving  -> absent     demoted
//   leaving  -> resident   demote_failed      failed, or cancelled because the engine wrote
//   any      -> absent     discarded          contents dropped by the engine
//
// A fill on demand: touched(kDemand), fill_started(ahead=false), filled().
// A fresh page:     touched(kFresh), filled(kFree).
// Further touches before fill_started count as kInFlight, whatever they are said to be.
// A move that is not started costs nothing: only *_started changes state, and what was not started
// may be proposed again. A move that can never be started must be answered with fill_failed or
// demote_failed. Facts about unknown regions or pages out of range are ignored.
// After a restart: region_added, then filled() for resident pages and demoted() for stored ones.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "model/moves.h"
#include "model/page.h"

namespace kvmem::loop {

struct PlannerOptions {
  std::uint64_t capacity_pages = 0;
  std::uint32_t inflight_fills_max = 8;  // what the disk needs to be busy; 4..8 for 2 MiB reads
  std::uint32_t sample_permille = 20;    // at most so many of 1,000 touches are caused by sampling
  std::uint64_t seed = 1;
};

struct PlannerStats {
  std::array<std::uint64_t, model::kReasonCount> moves{};  // started, per reason
  std::uint64_t touches = 0;
  std::uint64_t demand = 0;         // touches that found the page absent, the first of each wait
  std::uint64_t in_flight = 0;      // touches that found it on its way, or waited for already
  std::uint64_t ahead_used = 0;     // pages fetched ahead and then touched
  std::uint64_t ahead_unused = 0;   // pages fetched ahead and demoted untouched
  std::uint64_t samples_hit = 0;    // sampled pages that were touched
  std::uint64_t samples_cold = 0;   // sampled pages found unused
  std::uint64_t demoted_early = 0;  // demoted and touched again at once
  // What it has learned, now:
  std::uint64_t cycle_touches = 0;  // pages between two uses of a page that comes around; 0: none
  std::uint32_t keep_recent = 0;    // touched pages that are not demoted yet
  std::uint32_t ahead_target = 0;   // pages it wants fetched or being fetched ahead
  std::uint32_t reserve = 0;        // frames it keeps free
};

class Planner {
 public:
  explicit Planner(const PlannerOptions& options);
  ~Planner();
  Planner(Planner&&) noexcept;
  Planner& operator=(Planner&&) noexcept;
  Planner(const Planner&) = delete;
  Planner& operator=(const Planner&) = delete;

  void set_capacity(std::uint64_t pages);

  // `has_bytes`: untouched pages hold something worth reading ahead (a file), not zeroes.
  // Adding a slot again drops what was known of it.
  void region_added(model::RegionSlot slot, std::uint32_t page_count, bool has_bytes);
  void region_removed(model::RegionSlot slot);
  void advise(model::PageRef first, std::uint32_t page_count, model::Advice advice);

  // Facts.
  void touched(model::PageRef page, model::Touch touch);
  void fill_started(model::PageRef page, bool ahead);
  void filled(model::PageRef page, model::Refetch refetch);
  void fill_failed(model::PageRef page);
  void write_noticed(model::PageRef page);  // clean -> dirty
  void demote_started(model::PageRef page);
  void demoted(model::PageRef page);
  void demote_failed(model::PageRef page);
  void discarded(model::PageRef page);
  // The engine's mapping of a resident page is gone, the next touch will be seen.
  void sample_armed(model::PageRef page);

  // What to do now. `free_pages`: capacity - (filling + resident + leaving), 0 when over capacity;
  // `over_pages`: by how much over. Lists at most as many promotes as fit in free_pages and in
  // inflight_fills_max - fills_in_flight; start them in order, drop the rest when frames run out.
  void plan(std::uint64_t free_pages, std::uint64_t over_pages, std::uint32_t fills_in_flight,
            std::uint32_t demotes_in_flight, model::Moves& out);

  model::PageView view(model::PageRef page) const;
  // The view's heat alone.
  double heat(model::PageRef page) const;
  const PlannerStats& stats() const;
  std::uint64_t metadata_bytes() const;
  // Whole-structure check, for tests and debug builds; linear.
  bool validate() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvmem::loop
