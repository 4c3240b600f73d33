// The residency table: where each page of a region lives. One memfd a region, written by the
// daemon's loop alone, read by the engine, and kept by the engine so that a restarted daemon finds
// every page again.
//
// An entry is one 64-bit word, published with release and read with acquire: readers see a whole
// entry, never block the writer, and need no retry.
//
//   fresh     -> resident            first touch; zero-filled
//   resident  -> writing             demotion: write-protected, being written to the store
//   writing   -> resident            cancelled by a write, or the write failed
//   writing   -> stored              record durable enough to survive the daemon
//   resident  -> origin              clean page of a file dropped
//   stored|origin|fresh -> filling   promotion: the daemon fills the page; not mapped
//   filling   -> resident            filled and verified; published BEFORE the engine can map it
//   filling   -> stored|origin|fresh failed or cancelled; the source still holds the bytes
//   stored    -> lost                no valid copy is left: access raises SIGBUS, never zeroes
//
// Where a region's memory is huge pages and the kernel has none left, a page moves aside: it lies,
// when it is in memory, in a second, ordinary memfd of the region at the same offset (kAside), and
// that is mapped at its addresses from then on. Only a page that is absent moves:
//   stored|fresh -> filling -> resident | kAside   filled there; then the engine maps it and
//                                                  registers the mapping
// The bytes are whole before the engine maps them, so a thread that touches the new mapping before
// it is registered finds what belongs there.
//
// A daemon that takes over a table may find any of these. What makes each safe:
//   resident          the memfd page holds the bytes. (With kAside: the engine has had the ordinary
//                     memfd before, and maps the page at the latest when it finds the daemon gone.)
//   writing           the memfd page holds the bytes: becomes resident again.
//   stored, origin    the store or file holds the bytes; whatever the memfd holds is equal to
//                     them or was never mapped, so it is punched out.
//   filling           as its source, which `slot` still names.
#pragma once

#include <atomic>
#include <cstdint>

namespace kvmem::wire {

enum class PageState : std::uint8_t {
  kFresh = 0,  // never written: reads as zeroes; a zeroed table is a fresh region
  kResident = 1,
  kWriting = 2,
  kStored = 3,
  kOrigin = 4,
  kFilling = 5,
  kLost = 6,
};

// The word: state 3 bits | source 3 | flags 4 | generation 14 | slot 40.
struct Residency {
  PageState state = PageState::kFresh;
  PageState source = PageState::kFresh;  // filling: the state to return to
  std::uint8_t flags = 0;
  std::uint16_t generation = 0;  // of the page's last record; counts its demotions, wraps
  std::uint64_t slot = 0;  // store locator; valid when state or source is kStored, or kHasCopy

  static constexpr std::uint8_t kPinned = 1;   // may not be demoted
  static constexpr std::uint8_t kHasCopy = 2;  // resident, unwritten since `slot` was read: clean
  static constexpr std::uint8_t kInherited =
      4;  // fresh in a forked child: still equals its parent's page
  static constexpr std::uint8_t kAside = 8;  // of the ordinary memfd, in any state; for good
  static constexpr unsigned kGenerationMask = (1U << 14) - 1;
  static constexpr std::uint64_t kSlotMax = (std::uint64_t{1} << 40) - 1;

  bool operator==(const Residency&) const = default;

  constexpr std::uint64_t pack() const {
    return static_cast<std::uint64_t>(state) | static_cast<std::uint64_t>(source) << 3 |
           static_cast<std::uint64_t>(flags & 15U) << 6 |
           static_cast<std::uint64_t>(generation & kGenerationMask) << 10 | slot << 24;
  }
  static constexpr Residency unpack(std::uint64_t word) {
    return {static_cast<PageState>(word & 7), static_cast<PageState>(word >> 3 & 7),
            static_cast<std::uint8_t>(word >> 6 & 15),
            static_cast<std::uint16_t>(word >> 10 & kGenerationMask), word >> 24};
  }
};

enum class Backing : std::uint32_t { kHugeTlb = 1, kHugeShmem = 2, kShmem = 3 };

struct ResidencyHeader {
  static constexpr std::uint64_t kMagic = 0x31534552'4d454d56;  // "VMEMRES1"
  std::uint64_t magic = kMagic;
  std::uint32_t page_shift = 0;
  Backing backing = Backing::kShmem;
  std::uint64_t region_id = 0;
  std::uint64_t page_count = 0;
  std::uint64_t reserved[4] = {};
};
static_assert(sizeof(ResidencyHeader) == 64);

using ResidencyWord = std::atomic<std::uint64_t>;
static_assert(sizeof(ResidencyWord) == 8 && ResidencyWord::is_always_lock_free);

constexpr std::uint64_t residency_table_bytes(std::uint64_t page_count) {
  return sizeof(ResidencyHeader) + page_count * sizeof(ResidencyWord);
}

}  // namespace kvmem::wire
