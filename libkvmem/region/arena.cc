#include "region/arena.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "client/sys.h"

namespace kvmem {

constinit ArenaBounds g_arena;

namespace arena {

namespace {

constexpr std::uint64_t kBytesMax = std::uint64_t{16} << 40;
constexpr std::uint64_t kBytesMin = std::uint64_t{64} << 30;
constexpr int kReserveFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

using Word = std::atomic<std::uint32_t>;
constinit Word* tags = nullptr;  // one a page: 4 bytes per 2 MiB of what was ever used
constinit std::uint64_t page_total = 0;
constinit std::uint64_t cursor = 0;  // everything at and above it is probably free

Word& word_of(std::uint64_t address) {
  return tags[(address - g_arena.base.load(std::memory_order_relaxed)) >> kPageShift];
}

bool is_free(std::uint64_t page) { return tags[page].load(std::memory_order_relaxed) == 0; }

}  // namespace

int create() {
  if (g_arena.size_bytes.load(std::memory_order_acquire) != 0) return 0;
  rlimit limit{};
  if (sys::call(SYS_prlimit64, 0, RLIMIT_AS, 0, sys::arg(&limit)) == 0 &&
      limit.rlim_cur != RLIM_INFINITY) {
    return -EPERM;
  }
  for (std::uint64_t bytes = kBytesMax; bytes >= kBytesMin; bytes /= 2) {
    // Aligned to its size, so that it lies within one slot.
    const long at = sys::mmap(0, bytes * 2, PROT_NONE, kReserveFlags, -1, 0);
    if (sys::is_error(at)) continue;
    const long map = sys::mmap(0, (bytes >> kPageShift) * sizeof(Word), PROT_READ | PROT_WRITE,
                               kReserveFlags, -1, 0);
    if (sys::is_error(map)) {
      sys::munmap(static_cast<std::uint64_t>(at), bytes * 2);
      return -ENOMEM;
    }
    const std::uint64_t start = static_cast<std::uint64_t>(at);
    const std::uint64_t base = align_up(start, bytes);
    if (base != start) sys::munmap(start, base - start);
    if (const std::uint64_t rest = start + bytes - base; rest != 0) {
      sys::munmap(base + bytes, rest);
    }
    tags = reinterpret_cast<Word*>(map);
    page_total = bytes >> kPageShift;
    g_arena.base.store(base, std::memory_order_relaxed);
    g_arena.size_bytes.store(bytes, std::memory_order_release);              // pairs with in_arena
    g_arena.slot.store(base >> kArenaSlotShift, std::memory_order_release);  // may_be_in_arena
    return 0;
  }
  return -ENOMEM;
}

std::uint64_t find(std::uint64_t pages) {
  if (pages == 0 || pages > page_total) return 0;
  // Next fit: above the cursor first, then from the start.
  for (int round = 0; round < 2; ++round) {
    std::uint64_t run = 0;
    for (std::uint64_t p = round == 0 ? cursor : 0; p < page_total; ++p) {
      run = is_free(p) ? run + 1 : 0;
      if (run == pages) {
        cursor = p + 1;
        return g_arena.base.load(std::memory_order_relaxed) + ((p + 1 - pages) << kPageShift);
      }
    }
  }
  return 0;
}

PageTag tag(std::uint64_t address) {
  return PageTag::unpack(word_of(address).load(std::memory_order_acquire));
}

void set_tags(std::uint64_t address, std::uint64_t pages, PageTag value) {
  Word* first = &word_of(address);
  for (std::uint64_t i = 0; i < pages; ++i) {
    first[i].store(value.pack(), std::memory_order_release);  // pairs with tag()
  }
  if (value.kind != PageKind::kFree) return;
  if (static_cast<std::uint64_t>(first - tags) + pages == cursor) {
    while (cursor > 0 && is_free(cursor - 1)) --cursor;
  }
}

void reserve(std::uint64_t address, std::uint64_t size_bytes) {
  // Fails only where the kernel has no memory for the mapping itself; the old one stays then.
  sys::mmap(address, size_bytes, PROT_NONE, kReserveFlags | MAP_FIXED, -1, 0);
}

void reserve_hole(std::uint64_t address, std::uint64_t size_bytes) {
  const long at =
      sys::mmap(address, size_bytes, PROT_NONE, kReserveFlags | MAP_FIXED_NOREPLACE, -1, 0);
  if (at == static_cast<long>(address)) return;
  if (!sys::is_error(at)) sys::munmap(static_cast<std::uint64_t>(at), size_bytes);
  for (std::uint64_t a = address; a < address + size_bytes; a += kOsPageBytes) {
    const long one =
        sys::mmap(a, kOsPageBytes, PROT_NONE, kReserveFlags | MAP_FIXED_NOREPLACE, -1, 0);
    if (one == static_cast<long>(a)) continue;
    if (!sys::is_error(one)) sys::munmap(static_cast<std::uint64_t>(one), kOsPageBytes);
    set_tags(align_down(a, kPageBytes), 1, {PageKind::kForeign, 0, false, 0});
  }
}

}  // namespace arena
}  // namespace kvmem
