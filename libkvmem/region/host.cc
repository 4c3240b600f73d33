#include "region/host.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <algorithm>

#include "client/agent.h"
#include "client/notice.h"
#include "client/settings.h"
#include "region/table.h"
#include "region/tag.h"

namespace kvmem::host {

constinit std::size_t g_threshold_bytes = SIZE_MAX;

namespace {

using table::Op;
using Kind = table::Op::Kind;

constexpr int kMadvPopulateRead = 22;  // 5.14

// Reads a byte of every page, which waits until it is there. Nothing is held meanwhile: the agent
// may have to bring the daemon back first.
void touch(std::uint64_t address, std::uint64_t size_bytes) {
  for (std::uint64_t at = address; at < address + size_bytes; at += kPageBytes) {
    if (sys::madvise(at, kOsPageBytes, kMadvPopulateRead) != -EINVAL) continue;
    (void)*reinterpret_cast<const volatile char*>(at);
  }
}

int ask_agent(Op& op) REQUIRES(g_agent_lock) { return run_on_agent(table::serve, &op); }

// Carries out an operation, however often pages must be fetched first.
int carry_out(Op& op) {
  for (;;) {
    {
      LockGuard guard(g_agent_lock);
      const int result = ask_agent(op);
      if (result != -EAGAIN || op.touch_bytes == 0) return result;
    }
    touch(op.touch, op.touch_bytes);
  }
}

Op range_op(Kind kind, std::uint64_t address, std::uint64_t size_bytes, int value) {
  Op op{};
  op.kind = kind;
  op.address = address;
  op.size_bytes = align_up(size_bytes, kOsPageBytes);
  op.value = value;
  return op;
}

// A new region. 0 or -errno.
int make(Op& op) {
  op.kind = Kind::kCreate;
  int error = 0;
  {
    LockGuard guard(g_agent_lock);
    error = ask_agent(op);
  }
  keep_descriptors();
  return error;
}

// The kernel's own checks of a range. 1: go on; else what the call returns.
int check_range(std::uint64_t address, std::uint64_t size_bytes, bool is_empty_valid) {
  if (!is_aligned(address, kOsPageBytes)) return -EINVAL;
  const std::uint64_t length = align_up(size_bytes, kOsPageBytes);
  if (length < size_bytes || address + length < address) return is_empty_valid ? -ENOMEM : -EINVAL;
  if (length == 0) return is_empty_valid ? 0 : -EINVAL;
  // A range that leaves the arena crosses memory that is nobody's.
  if (!in_arena(address) || !in_arena(address + length - 1)) return -ENOMEM;
  return 1;
}

}  // namespace

void install(char* const* environment) {
  remember_stderr();
  g_settings = read_settings(environment);
  table::install();
  if (g_settings.intercept) g_threshold_bytes = g_settings.threshold_bytes;
}

void* allocate(std::size_t size_bytes, bool is_heap, const char* tag) {
  if (size_bytes == 0 || size_bytes > wire::kRegionPagesMax << kPageShift) return nullptr;
  Op op{};
  op.size_bytes = size_bytes;
  op.is_heap = is_heap;
  op.tag = tag != nullptr ? tag : kvmem::tag();
  return make(op) == 0 ? reinterpret_cast<void*>(op.address) : nullptr;
}

int create(std::size_t size_bytes, std::size_t bytes_max, const char* tag, void** out) {
  if (g_settings.off) return -ENOTSUP;
  Op op{};
  op.size_bytes = size_bytes;
  op.is_heap = true;
  op.bytes_max = bytes_max;
  op.tag = tag;
  const int error = make(op);
  if (error == 0) *out = reinterpret_cast<void*>(op.address);
  return error;
}

void* map_file(std::size_t size_bytes, int flags, int fd, std::uint64_t offset) {
  struct stat s;
  if (sys::call(SYS_fstat, fd, sys::arg(&s)) != 0 || !S_ISREG(s.st_mode)) return nullptr;
  // What lies beyond the end of the file raises SIGBUS; regions know no such thing.
  const std::uint64_t file_bytes = static_cast<std::uint64_t>(s.st_size);
  if (offset > file_bytes || size_bytes > align_up(file_bytes, kOsPageBytes) - offset)
    return nullptr;
  // The engine's own mapping, made as it asked but for prefetching, in whole pages. It checks
  // everything the kernel checks, and stays beside the region, untouched, to be given back.
  const std::uint64_t shadow_bytes = align_up(size_bytes, kPageBytes);
  const long shadow =
      sys::mmap(0, shadow_bytes, PROT_READ, flags & ~(MAP_POPULATE | MAP_NONBLOCK), fd, offset);
  if (sys::is_error(shadow)) return nullptr;
  Op op{};
  op.size_bytes = size_bytes;
  op.shadow = static_cast<std::uint64_t>(shadow);
  op.offset = offset;
  op.device = s.st_dev;
  op.inode = s.st_ino;
  op.fd = fd;
  op.fd_tid = sys::tid();
  if (make(op) == 0) return reinterpret_cast<void*>(op.address);
  sys::munmap(op.shadow, shadow_bytes);
  return nullptr;
}

bool release(void* p) {
  const Region* r = table::region_at(reinterpret_cast<std::uintptr_t>(p));
  if (r == nullptr || !r->is_heap || r->begin != reinterpret_cast<std::uintptr_t>(p)) return false;
  Op op{};
  op.kind = Kind::kRelease;
  op.address = r->begin;
  LockGuard guard(g_agent_lock);
  ask_agent(op);
  return true;
}

std::size_t size_of(const void* p) {
  const Region* r = table::region_at(reinterpret_cast<std::uintptr_t>(p));
  return r != nullptr && r->is_heap && r->begin == reinterpret_cast<std::uintptr_t>(p)
             ? r->size_bytes
             : 0;
}

bool resize_in_place(void* p, std::size_t size_bytes) {
  Region* r = table::region_at(reinterpret_cast<std::uintptr_t>(p));
  const std::uint64_t pages = pages_for(size_bytes);
  if (size_bytes == 0 || pages > r->page_count) return false;
  // Pages that were given up before are nobody's, though a hole still names the region, or may be
  // another region's by now.
  const PageTag own = arena::tag(r->begin);
  for (std::uint64_t i = 0; i < pages; ++i) {
    const PageTag tag = arena::tag(r->begin + (i << kPageShift));
    const bool is_there = tag.kind == PageKind::kManaged || tag.kind == PageKind::kPlain;
    if (!is_there || tag.region != own.region) return false;
  }
  const std::uint64_t old_pages = pages_for(r->size_bytes);
  if (pages < old_pages) {
    Op op = range_op(Kind::kUnmap, r->begin + (pages << kPageShift),
                     (old_pages - pages) << kPageShift, 0);
    if (carry_out(op) != 0) return false;
  }
  r->size_bytes = size_bytes;
  return true;
}

int alias(std::uint64_t address, std::size_t size_bytes, std::uint64_t source) {
  const Region* r = table::region_at(address);
  if (r == nullptr) return -EINVAL;
  Op op = range_op(Kind::kAlias, address, size_bytes, 0);
  op.offset = source - r->begin;
  return carry_out(op);
}

int drop_pages(std::uint64_t address, std::size_t size_bytes) {
  Op op = range_op(Kind::kDropPages, address, size_bytes, 0);
  return carry_out(op);
}

int advise_pages(std::uint64_t address, std::size_t size_bytes, wire::Advice advice) {
  Op op = range_op(Kind::kAdviseDaemon, address, size_bytes, static_cast<int>(advice));
  return carry_out(op);
}

int unmap(std::uint64_t address, std::uint64_t size_bytes) {
  if (const int checked = check_range(address, size_bytes, false); checked != 1) {
    if (checked != -ENOMEM) return checked;
    // Partly outside: each side by its own rules.
    const std::uint64_t end = address + align_up(size_bytes, kOsPageBytes);
    const std::uint64_t base = g_arena.base.load(std::memory_order_relaxed);
    const std::uint64_t limit = base + g_arena.size_bytes.load(std::memory_order_relaxed);
    if (address < base) sys::munmap(address, base - address);
    if (end > limit) sys::munmap(limit, end - limit);
    address = address < base ? base : address;
    size_bytes = (end > limit ? limit : end) - address;
  }
  Op op = range_op(Kind::kUnmap, address, size_bytes, 0);
  return carry_out(op);
}

int protect(std::uint64_t address, std::uint64_t size_bytes, int prot) {
  if (const int checked = check_range(address, size_bytes, true); checked != 1) return checked;
  Op op = range_op(Kind::kProtect, address, size_bytes, prot);
  return carry_out(op);
}

int advise(std::uint64_t address, std::uint64_t size_bytes, int advice) {
  // The kernel looks at the advice first. One it does not know must change nothing.
  if (sys::madvise(align_down(address, kOsPageBytes), 0, advice) == -EINVAL) return -EINVAL;
  if (const int checked = check_range(address, size_bytes, true); checked != 1) return checked;
  Op op = range_op(Kind::kAdvise, address, size_bytes, advice);
  const int result = carry_out(op);
  for (const Op::Range& zero : op.zero) {
    if (zero.end > zero.begin)
      memset(reinterpret_cast<void*>(zero.begin), 0, zero.end - zero.begin);
  }
  if (result == 0 && (advice == kMadvPopulateRead || advice == kMadvPopulateRead + 1)) {
    return static_cast<int>(sys::madvise(address, align_up(size_bytes, kOsPageBytes), advice));
  }
  return result;
}

int lock(std::uint64_t address, std::uint64_t size_bytes, int flags) {
  const std::uint64_t begin = align_down(address, kOsPageBytes);
  const std::uint64_t length = size_bytes + (address - begin);
  if (const int checked = check_range(begin, length, true); checked != 1) return checked;
  Op op = range_op(Kind::kLock, begin, length, flags);
  return carry_out(op);
}

int unlock(std::uint64_t address, std::uint64_t size_bytes) {
  const std::uint64_t begin = align_down(address, kOsPageBytes);
  const std::uint64_t length = size_bytes + (address - begin);
  if (const int checked = check_range(begin, length, true); checked != 1) return checked;
  Op op = range_op(Kind::kUnlock, begin, length, 0);
  return carry_out(op);
}

long map_fixed(std::uint64_t address, std::uint64_t size_bytes, int prot, int flags, int fd,
               std::uint64_t offset) {
  if (const int checked = check_range(address, size_bytes, false); checked != 1) return checked;
  const bool is_noreplace = (flags & MAP_FIXED_NOREPLACE) == MAP_FIXED_NOREPLACE;
  Op op = range_op(Kind::kClaim, address, size_bytes, is_noreplace ? 1 : 0);
  for (;;) {
    {
      LockGuard guard(g_agent_lock);
      const int result = ask_agent(op);
      if (result != -EAGAIN || op.touch_bytes == 0) {
        if (result != 0) return result;
        // In the kernel's eyes all of the arena is taken.
        return sys::mmap(address, size_bytes, prot, (flags & ~MAP_FIXED_NOREPLACE) | MAP_FIXED, fd,
                         offset);
      }
    }
    touch(op.touch, op.touch_bytes);
  }
}

namespace {

// Some of the range is managed, and all of it writable anonymous memory of one region: a move may
// be a copy. (All plain: the kernel's mremap does it. Pages made plain one by one are mappings of
// their own, across which mremap does not reach.)
bool is_copyable(std::uint64_t address, std::uint64_t size_bytes) {
  bool is_any_managed = false;
  const std::uint32_t region = arena::tag(address).region;
  for (std::uint64_t at = align_down(address, kPageBytes); at < address + size_bytes;
       at += kPageBytes) {
    const PageTag tag = arena::tag(at);
    if (tag.region != region || region == 0 || tag.is_dont_fork) return false;
    if (tag.kind == PageKind::kManaged) {
      if (tag.prot != (PROT_READ | PROT_WRITE)) return false;
      is_any_managed = true;
    } else if (tag.kind != PageKind::kPlain) {
      return false;
    }
  }
  return is_any_managed;
}

// 0, or -EFAULT where the source is not readable.
int copy_checked(std::uint64_t target, std::uint64_t source, std::uint64_t size_bytes) {
  for (std::uint64_t done = 0; done < size_bytes;) {
    const std::uint64_t at = source + done;
    const std::uint64_t page_end = align_down(at, kPageBytes) + kPageBytes;
    const std::uint64_t length = std::min(page_end, source + size_bytes) - at;
    long copied = -ENOSYS;
    if (arena::tag(at).kind == PageKind::kPlain) {
      // The engine may have taken the right to read it away, which memcpy would not survive.
      iovec to{reinterpret_cast<void*>(target + done), length};
      iovec from{reinterpret_cast<void*>(at), length};
      // By this thread's number: a main thread that has left has no memory.
      copied = sys::call(SYS_process_vm_readv, sys::tid(), sys::arg(&to), 1, sys::arg(&from), 1, 0);
      if (copied == -EFAULT || (copied >= 0 && static_cast<std::uint64_t>(copied) != length)) {
        return -EFAULT;
      }
    }
    if (copied < 0) {
      memcpy(reinterpret_cast<void*>(target + done), reinterpret_cast<const void*>(at), length);
    }
    done += length;
  }
  return 0;
}

// `fixed`: where to, or 0. Address or -errno.
long move_by_copy(std::uint64_t old_address, std::uint64_t old_bytes, std::uint64_t new_bytes,
                  std::uint64_t fixed) {
  constexpr int kProt = PROT_READ | PROT_WRITE, kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
  long at = 0;
  if (fixed != 0) {
    at = touches_arena(fixed, new_bytes)
             ? map_fixed(fixed, new_bytes, kProt, kFlags | MAP_FIXED, -1, 0)
             : sys::mmap(fixed, new_bytes, kProt, kFlags | MAP_FIXED, -1, 0);
  } else if (void* region = new_bytes >= g_threshold_bytes ? allocate(new_bytes, false) : nullptr) {
    at = static_cast<long>(reinterpret_cast<std::uintptr_t>(region));
  } else {
    at = sys::mmap(0, new_bytes, kProt, kFlags, -1, 0);
  }
  if (sys::is_error(at)) return at;
  const std::uint64_t target = static_cast<std::uint64_t>(at);
  if (const int error = copy_checked(target, old_address, std::min(old_bytes, new_bytes));
      error != 0) {
    if (fixed == 0)
      touches_arena(target, new_bytes) ? unmap(target, new_bytes) : sys::munmap(target, new_bytes);
    return error;
  }
  unmap(old_address, old_bytes);
  return at;
}

}  // namespace

long remap(std::uint64_t old_address, std::uint64_t old_bytes, std::uint64_t new_bytes, int flags,
           std::uint64_t new_address) {
  constexpr int kDontUnmap = 4;  // MREMAP_DONTUNMAP, 5.7
  const bool is_fixed = (flags & MREMAP_FIXED) != 0, stays = (flags & kDontUnmap) != 0;
  old_bytes = align_up(old_bytes, kOsPageBytes);
  new_bytes = align_up(new_bytes, kOsPageBytes);
  if (!is_aligned(old_address, kOsPageBytes) || new_bytes == 0 || old_bytes == 0 ||
      (flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | kDontUnmap)) != 0 ||
      ((is_fixed || stays) && (flags & MREMAP_MAYMOVE) == 0) || (stays && old_bytes != new_bytes)) {
    return -EINVAL;
  }
  const bool is_ours = touches_arena(old_address, old_bytes);
  if (is_ours && (!in_arena(old_address) || !in_arena(old_address + old_bytes - 1))) return -EFAULT;
  if (is_ours && !is_fixed && !stays) {
    if (new_bytes < old_bytes) {
      const int error = unmap(old_address + new_bytes, old_bytes - new_bytes);
      if (error != 0) return error;
    }
    if (new_bytes <= old_bytes) return static_cast<long>(old_address);
    if ((flags & MREMAP_MAYMOVE) == 0) return -ENOMEM;
    if (is_copyable(old_address, old_bytes)) {
      return move_by_copy(old_address, old_bytes, new_bytes, 0);
    }
  }
  const bool has_target = is_fixed && touches_arena(new_address, new_bytes);
  if (is_fixed) {
    if (!is_aligned(new_address, kOsPageBytes) ||
        (new_address < old_address + old_bytes && old_address < new_address + new_bytes)) {
      return -EINVAL;
    }
    if (has_target) {
      const int checked = check_range(new_address, new_bytes, false);
      if (checked != 1) return checked;
    }
    if (is_ours && !stays && is_copyable(old_address, old_bytes)) {
      return move_by_copy(old_address, old_bytes, new_bytes, new_address);
    }
  }
  Op plain = range_op(Kind::kMakePlain, old_address, old_bytes, 0);
  Op target = range_op(Kind::kClaim, new_address, new_bytes, 0);
  for (;;) {
    const Op* blocked = nullptr;
    {
      LockGuard guard(g_agent_lock);
      int result = is_ours ? ask_agent(plain) : 0;
      if (result == -EAGAIN && plain.touch_bytes != 0) blocked = &plain;
      if (result == 0 && has_target) {
        result = ask_agent(target);
        if (result == -EAGAIN && target.touch_bytes != 0) blocked = &target;
      }
      if (blocked == nullptr) {
        if (result != 0) return result;
        const long at = sys::mremap(old_address, old_bytes, new_bytes, flags, new_address);
        if (!sys::is_error(at) && is_ours && !stays) {
          Op moved = range_op(Kind::kMoved, old_address, old_bytes, 0);
          ask_agent(moved);
        }
        return at;
      }
    }
    touch(blocked->touch, blocked->touch_bytes);
  }
}

}  // namespace kvmem::host
