// Arena: the one range of addresses that holds every region, and whose each page is.
//
// One reservation, 2 MiB aligned, made before the first region and kept for ever: whether a pointer
// is kvmem's is a subtraction and a comparison. What the engine gives back turns into reserved
// (PROT_NONE) again rather than a hole, so that nobody else is ever mapped inside.
//
// A tag a page says whose it is. Tags are written by the agent, or with the agent lock held; read
// by anyone.
//
//   free    reserved
//   managed a page of a region, faults served by the daemon
//   plain   the engine's by rights of a region or a fixed mapping, but ordinary kernel memory: what
//           the kernel does with a call on it is what the engine would see without kvmem
//   fixed   plain, by a mapping that the engine placed there (MAP_FIXED)
//   hole    unmapped by the engine, but within a range that the daemon still counts as a region's:
//           free in the engine's eyes, not for a new region
//   foreign a gap that someone else's mapping fell into; never touched again
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/page.h"

namespace kvmem {

// The arena lies within one slot of this size, and normally fills it.
inline constexpr unsigned kArenaSlotShift = 44;  // 16 TiB
inline constexpr std::uint64_t kNoArenaSlot = ~std::uint64_t{0};

struct ArenaBounds {
  std::atomic<std::uint64_t> slot{kNoArenaSlot};  // base >> kArenaSlotShift; released last
  std::atomic<std::uint64_t> base{0};
  std::atomic<std::uint64_t> size_bytes{0};  // zero: there is no arena
};
// Declared hidden: else every access goes through the global offset table.
extern ArenaBounds g_arena __attribute__((visibility("hidden")));

// The one test on the path of every free(): false means not in the arena.
inline bool may_be_in_arena(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) >> kArenaSlotShift ==
         g_arena.slot.load(std::memory_order_acquire);
}
inline bool in_arena(std::uint64_t address) {
  const std::uint64_t size_bytes = g_arena.size_bytes.load(std::memory_order_acquire);
  return address - g_arena.base.load(std::memory_order_relaxed) < size_bytes;
}
inline bool in_arena(const void* p) { return in_arena(reinterpret_cast<std::uintptr_t>(p)); }
inline bool touches_arena(std::uint64_t address, std::uint64_t size_bytes) {
  const std::uint64_t arena_bytes = g_arena.size_bytes.load(std::memory_order_acquire);
  const std::uint64_t base = g_arena.base.load(std::memory_order_relaxed);
  return arena_bytes != 0 && address < base + arena_bytes && address + size_bytes > base;
}

enum class PageKind : std::uint8_t { kFree, kManaged, kPlain, kFixed, kHole, kForeign };

// Nothing of the engine's is mapped there.
constexpr bool is_vacant(PageKind kind) {
  return kind == PageKind::kFree || kind == PageKind::kHole;
}
// Ordinary memory of the engine's.
constexpr bool is_ordinary(PageKind kind) {
  return kind == PageKind::kPlain || kind == PageKind::kFixed;
}

struct PageTag {
  PageKind kind = PageKind::kFree;
  std::uint8_t prot = 0;      // PROT_READ | PROT_WRITE of a managed page
  bool is_dont_fork = false;  // managed: the engine asked for MADV_DONTFORK
  std::uint32_t region = 0;   // index; fixed: of the region it was, which may be gone

  bool operator==(const PageTag&) const = default;
  constexpr std::uint32_t pack() const {
    return static_cast<std::uint32_t>(kind) | static_cast<std::uint32_t>(prot & 3) << 3 |
           static_cast<std::uint32_t>(is_dont_fork) << 5 | region << 8;
  }
  static constexpr PageTag unpack(std::uint32_t word) {
    return {static_cast<PageKind>(word & 7), static_cast<std::uint8_t>(word >> 3 & 3),
            (word >> 5 & 1) != 0, word >> 8};
  }
};

namespace arena {

// Makes the arena unless there is one. 0, -ENOMEM, or -EPERM where RLIMIT_AS forbids it.
int create();

// First of `pages` free pages in a row, or 0. They stay free until tagged.
std::uint64_t find(std::uint64_t pages);

PageTag tag(std::uint64_t address);
void set_tags(std::uint64_t address, std::uint64_t pages, PageTag tag);

// Reserves the range again, whatever is mapped there. Both ends are OS-page aligned.
void reserve(std::uint64_t address, std::uint64_t size_bytes);
// Reserves a range of arena that is not mapped (a fork's holes, a range mremap moved away). What
// someone else has mapped there meanwhile becomes foreign.
void reserve_hole(std::uint64_t address, std::uint64_t size_bytes);

}  // namespace arena
}  // namespace kvmem
