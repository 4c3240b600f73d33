// Plain values that heat, policy, migration and the loop exchange.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace kvmem::model {

// A region's number in this daemon; reused after the region is gone.
using RegionSlot = std::uint32_t;

struct PageRef {
  RegionSlot region = 0;
  std::uint32_t page = 0;  // index within the region
  bool operator==(const PageRef&) const = default;
};

// Memory that engines use where it lies: the processor's own, and that of nodes without processors.
enum class Memory : std::uint8_t { kDram, kCxl };
inline constexpr std::size_t kMemoryCount = 2;

// What a page fault tells about a page.
enum class Touch : std::uint8_t {
  kFresh,     // first touch ever; no bytes to read
  kDemand,    // was not resident and nobody was fetching it: the engine waits for the tier
  kInFlight,  // was already being fetched; the engine waits for the rest
  kPresent,   // resident but unmapped: first touch since it was fetched ahead, or a heat sample
  kWrite,     // resident, mapped, write-protected: a write
};

// The cost of having evicted a page wrongly.
enum class Refetch : std::uint8_t {
  kFree,   // fresh pages that were never written
  kRead,   // clean: origin, or an unwritten copy in the store
  kWrite,  // dirty: must be written before it can go
};

}  // namespace kvmem::model

template <>
struct std::hash<kvmem::model::PageRef> {
  std::size_t operator()(const kvmem::model::PageRef& p) const noexcept {
    return std::hash<std::uint64_t>{}(static_cast<std::uint64_t>(p.region) << 32 | p.page);
  }
};
