// Region and View: what the daemon moves, and where engines see it.
//
// A Region is memory (a memfd), its residency table and where clean pages come from. A View is one
// engine's mapping of a stretch of it: an anonymous region has one, and one more for each stretch
// that lies at other addresses too, a model file as many as engines map it. Loop only, except that
// workers read `memory`.
//
//   open -> closing   last view and offer gone; no new moves
//   closing -> gone   last move in flight has ended; frames and slots are given back
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/page.h"
#include "os/memory.h"
#include "residency/table.h"
#include "tier/origin.h"

namespace kvmem::migrate {

struct Region;

struct View {
  Region* region = nullptr;
  std::uint64_t session_id = 0;
  int userfault = -1;  // the engine's; owned by its session
  std::uint64_t address = 0;
  std::uint32_t first_page = 0;
  std::uint32_t page_count = 0;
  bool held = false;  // its engine is forking: nothing is mapped until ForkEnd
  void* owner = nullptr;

  bool covers(std::uint32_t page) const { return page - first_page < page_count; }
  std::uint64_t address_of(std::uint32_t page) const {
    return address + (static_cast<std::uint64_t>(page - first_page) << kPageShift);
  }
  std::uint64_t end_address() const {
    return address + (static_cast<std::uint64_t>(page_count) << kPageShift);
  }
  std::uint32_t page_at(std::uint64_t at) const {
    return first_page + static_cast<std::uint32_t>((at - address) >> kPageShift);
  }
};

struct Region {
  model::RegionSlot slot = 0;
  std::uint64_t id = 0;  // unique in this host's daemons, old and new
  std::uint32_t uid = 0;
  std::uint64_t session_id = 0;  // owner of an anonymous region
  std::int32_t pid = 0;
  std::string tag;
  os::SharedMemory memory;
  os::SharedMemory aside;  // ordinary, for pages that huge ones could not be had for; none yet: -1
  residency::ResidencyTable table;
  std::unique_ptr<tier::Origin> origin;  // null: anonymous
  std::vector<std::unique_ptr<View>> views;
  std::uint32_t pages_max = UINT32_MAX;  // that may be anything but fresh at a time
  std::uint32_t offers = 0;              // engines that were given it and have not mapped it yet
  std::uint32_t moves_in_flight = 0;
  std::uint64_t faults = 0;  // since it was made
  bool closing = false;
  // Of the pages that have a frame, those whose frame is CXL memory. Empty: none, and none will be.
  std::vector<bool> in_cxl;
  // Pages that the engine was asked to move aside, and when it may be asked again.
  struct Ask {
    std::uint32_t page = 0;
    std::uint64_t again_ns = 0;
    bool over_budget = false;  // there was no frame, and none could be made
  };
  std::vector<Ask> asks;

  // Copy on demand after fork: pages of a child that still equal its parent's carry kInherited.
  Region* parent = nullptr;
  std::vector<Region*> children;

  std::uint32_t page_count() const { return table.page_count(); }
  // What it counts for in quotas.
  std::uint32_t pages_charged() const { return std::min(page_count(), pages_max); }
  // An engine that reads a little past its data takes pages for that.
  std::uint64_t pages_limit() const { return pages_max + pages_max / 4ULL + 64; }
  bool has_aside() const { return aside.fd() >= 0; }
  // Where the page lies when it is in memory.
  const os::SharedMemory& memory_of(std::uint32_t page) const {
    return (table.read(page).flags & residency::Residency::kAside) != 0 ? aside : memory;
  }
  model::Memory frame_of(std::uint32_t page) const {
    return !in_cxl.empty() && in_cxl[page] ? model::Memory::kCxl : model::Memory::kDram;
  }
  void set_frame(std::uint32_t page, model::Memory where) {
    if (in_cxl.empty() && where == model::Memory::kDram) return;
    in_cxl.resize(page_count());
    in_cxl[page] = where == model::Memory::kCxl;
  }
  std::byte* page_data(std::uint32_t page) const {
    return memory_of(page).data() + (static_cast<std::size_t>(page) << kPageShift);
  }
  model::PageRef ref(std::uint32_t page) const { return {slot, page}; }
};

}  // namespace kvmem::migrate
