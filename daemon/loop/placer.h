// Placer: which of the pages in memory lie in DRAM, and which in CXL memory. What is in memory at
// all is the Planner's; both hear the same facts. Knows no I/O and no clock: time is handed in.
// Owned by one thread.
//
// Pages are looked at in turn: a mapping is taken away, and the next use is seen
// (heat/frequency.h). The most used pages of CXL memory change places with the least used of DRAM,
// of a few drawn at random, while one is used at least twice as often as the other, and at a pace
// that follows what it brings (policy/place_pace.h).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/moves.h"
#include "model/page.h"

namespace kvmem::loop {

struct PlacerOptions {
  double places_per_s = 0;   // at most so many pages change places a second, both ways together
  double looks_per_s = 400;  // that cost the engine a fault: 10 to 30 us each
  std::uint64_t seed = 1;
};

// What to do now. Pages move in pairs, unless DRAM has a frame free.
struct Places {
  struct Swap {
    model::PageRef up;    // to DRAM
    model::PageRef down;  // to CXL memory, first; only if `is_pair`
    bool is_pair = false;
  };
  std::vector<model::PageRef> looks;
  std::vector<Swap> swaps;
  std::vector<model::PageRef> down;  // DRAM holds more than it may
  void clear() {
    looks.clear();
    swaps.clear();
    down.clear();
  }
};

struct PlacerStats {
  std::uint64_t looks = 0;
  std::uint64_t looks_used = 0;    // that ended with a use
  std::uint64_t swaps_hotter = 0;  // pairs: one was used more often than the other
  std::uint64_t ups_room = 0;      // moved up because DRAM had room
  std::uint64_t downs_room = 0;    // moved down because it had none
  double pace_per_s = 0;
  double limit_per_s = 0;
  double gain = 0;  // of the last moves: uses of those moved up, over uses of those moved down
};

class Placer {
 public:
  explicit Placer(const PlacerOptions& options);
  ~Placer();
  Placer(Placer&&) noexcept;
  Placer& operator=(Placer&&) noexcept;
  Placer(const Placer&) = delete;
  Placer& operator=(const Placer&) = delete;

  void set_limit(double places_per_s);

  void region_added(model::RegionSlot slot, std::uint32_t page_count);
  void region_removed(model::RegionSlot slot);
  void advise(model::PageRef first, std::uint32_t page_count, model::Advice advice);

  // Facts.
  void arrived(model::PageRef page, model::Memory memory);  // has a frame there
  void left(model::PageRef page);                           // has none
  void moved(model::PageRef page, model::Memory memory, std::uint64_t now_ns);
  void stayed(model::PageRef page);  // it could not be moved
  void used(model::PageRef page, std::uint64_t now_ns);
  // Its mapping was taken away, for whatever reason.
  void looked_at(model::PageRef page, std::uint64_t now_ns);

  // Called every kTickNs while there are pages in CXL memory.
  static constexpr std::uint64_t kTickNs = 50'000'000;
  // `dram_room`: frames that DRAM has free; below 0: pages that it has too many, and CXL memory has
  // room for.
  struct May {
    bool looks = true;
    bool moves = true;  // those of the last plan have ended
  };
  void plan(std::uint64_t now_ns, std::int64_t dram_room, May may, Places& out);

  // Uses a second, as far as they are known.
  double uses_per_second(model::PageRef page, std::uint64_t now_ns) const;
  PlacerStats stats() const;
  std::uint64_t metadata_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvmem::loop
