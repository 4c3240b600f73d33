#include "preload/real.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

#include "base/page.h"

namespace kvmem::real {

namespace {

// Serves what dlsym itself may allocate while it resolves malloc, and a forked child's agent. Never
// given back; 64 KiB is many times what either was seen to need.
constexpr std::size_t kAreaBytes = 64 * 1024;
constexpr std::size_t kHeaderBytes = 16;  // the size, before each piece
alignas(16) constinit unsigned char area[kAreaBytes] = {};
constinit std::atomic<std::size_t> area_used{0};

bool is_in_area(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) - reinterpret_cast<std::uintptr_t>(area) < kAreaBytes;
}

std::size_t area_size(const void* p) {
  std::size_t size = 0;
  memcpy(&size, static_cast<const unsigned char*>(p) - kHeaderBytes, sizeof size);
  return size;
}

void* area_aligned(std::size_t alignment, std::size_t size) {
  if (size > kAreaBytes || alignment > kOsPageBytes) return nullptr;
  const std::size_t needed = align_up(size, 16) + kHeaderBytes + (alignment > 16 ? alignment : 0);
  const std::size_t at = area_used.fetch_add(needed, std::memory_order_relaxed);
  if (at + needed > kAreaBytes) {
    errno = ENOMEM;
    return nullptr;
  }
  std::uintptr_t p = reinterpret_cast<std::uintptr_t>(area) + at + kHeaderBytes;
  if (alignment > 16) p = align_up(p, alignment);
  memcpy(reinterpret_cast<void*>(p - kHeaderBytes), &size, sizeof size);
  return reinterpret_cast<void*>(p);
}
void* area_malloc(std::size_t size) { return area_aligned(16, size); }
void* area_calloc(std::size_t count, std::size_t size) {
  std::size_t total = 0;
  if (__builtin_mul_overflow(count, size, &total)) return nullptr;
  return area_malloc(total);  // static, and never reused: zero
}

constinit Functions found{};  // as dlsym found them
constinit std::atomic<int> resolving{0};
constinit std::atomic<bool> resolved{false};

// Pieces of the static area may come back at any time: once there are any, free and its kin look.
void careful_free(void* p) {
  if (!is_in_area(p)) found.free(p);
}
std::size_t careful_usable_size(void* p) {
  return is_in_area(p) ? area_size(p) : found.malloc_usable_size(p);
}
void* careful_realloc(void* p, std::size_t size) {
  if (!is_in_area(p)) return found.realloc(p, size);
  void* moved = found.malloc(size);
  const std::size_t old_size = area_size(p);
  if (moved != nullptr) memcpy(moved, p, old_size < size ? old_size : size);
  return moved;
}
void* careful_reallocarray(void* p, std::size_t count, std::size_t size) {
  std::size_t total = 0;
  if (!is_in_area(p)) return found.reallocarray(p, count, size);
  if (__builtin_mul_overflow(count, size, &total)) {
    errno = ENOMEM;
    return nullptr;
  }
  return careful_realloc(p, total);
}

void publish() {
  Functions f = found;
  if (area_used.load(std::memory_order_relaxed) != 0) {
    f.free = careful_free;
    f.realloc = careful_realloc;
    f.reallocarray = careful_reallocarray;
    f.malloc_usable_size = careful_usable_size;
  }
  g_real = f;
}

template <class Pointer>
void look_up(Pointer& target, const char* name) {
  if (void* symbol = dlsym(RTLD_NEXT, name)) target = reinterpret_cast<Pointer>(symbol);
}

// Each resolves and goes on; while this very thread resolves, the static area serves.
bool is_ready() {
  resolve();
  return resolved.load(std::memory_order_acquire);
}
void* early_malloc(std::size_t n) { return is_ready() ? g_real.malloc(n) : area_malloc(n); }
void early_free(void* p) {
  if (is_in_area(p)) return;
  if (is_ready()) g_real.free(p);
}
void* early_calloc(std::size_t c, std::size_t n) {
  return is_ready() ? g_real.calloc(c, n) : area_calloc(c, n);
}
void* early_realloc(void* p, std::size_t n) {
  if (is_ready()) return g_real.realloc(p, n);
  void* moved = area_malloc(n);
  if (moved != nullptr && p != nullptr && is_in_area(p)) {
    memcpy(moved, p, area_size(p) < n ? area_size(p) : n);
  }
  return moved;
}
void* early_reallocarray(void* p, std::size_t c, std::size_t n) {
  return is_ready() ? g_real.reallocarray(p, c, n) : nullptr;
}
int early_posix_memalign(void** out, std::size_t a, std::size_t n) {
  if (is_ready()) return g_real.posix_memalign(out, a, n);
  void* p = area_aligned(a, n);
  if (p == nullptr) return ENOMEM;
  *out = p;
  return 0;
}
void* early_aligned_alloc(std::size_t a, std::size_t n) {
  return is_ready() ? g_real.aligned_alloc(a, n) : area_aligned(a, n);
}
void* early_memalign(std::size_t a, std::size_t n) {
  return is_ready() ? g_real.memalign(a, n) : area_aligned(a, n);
}
void* early_valloc(std::size_t n) {
  return is_ready() ? g_real.valloc(n) : area_aligned(kOsPageBytes, n);
}
void* early_pvalloc(std::size_t n) {
  return is_ready() ? g_real.pvalloc(n) : area_aligned(kOsPageBytes, align_up(n, kOsPageBytes));
}
std::size_t early_usable_size(void* p) {
  if (is_in_area(p)) return area_size(p);
  return is_ready() ? g_real.malloc_usable_size(p) : 0;
}

// Reading, too, begins before main; nothing of it can concern a region yet.
ssize_t early_read(int fd, void* buffer, std::size_t size) {
  return syscall(SYS_read, fd, buffer, size);
}
ssize_t early_pread(int fd, void* buffer, std::size_t size, off64_t offset) {
  return syscall(SYS_pread64, fd, buffer, size, offset);
}
ssize_t early_readv(int fd, const iovec* parts, int count) {
  return syscall(SYS_readv, fd, parts, count);
}
ssize_t early_preadv(int fd, const iovec* parts, int count, off64_t offset) {
  return syscall(SYS_preadv, fd, parts, count, offset, 0L);
}
ssize_t early_preadv2(int fd, const iovec* parts, int count, off64_t offset, int flags) {
  return syscall(SYS_preadv2, fd, parts, count, offset, 0L, flags);
}
// Reached where a read would overflow alone.
ssize_t early_read_chk(int fd, void* buffer, std::size_t size, std::size_t room) {
  if (!is_ready()) abort();
  return g_real.read_chk(fd, buffer, size, room);
}
ssize_t early_pread_chk(int fd, void* buffer, std::size_t size, off64_t offset, std::size_t room) {
  if (!is_ready()) abort();
  return g_real.pread64_chk(fd, buffer, size, offset, room);
}

}  // namespace

// Allocation resolves and goes on, reading goes to the kernel, and the memory calls are null: who
// uses those resolves first.
constinit Functions g_real = {early_malloc,
                              early_free,
                              early_calloc,
                              early_realloc,
                              early_reallocarray,
                              early_posix_memalign,
                              early_aligned_alloc,
                              early_memalign,
                              early_valloc,
                              early_pvalloc,
                              early_usable_size,
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr,
                              early_read,
                              early_pread,
                              early_readv,
                              early_preadv,
                              early_preadv2,
                              early_read_chk,
                              early_pread_chk};

void resolve() {
  if (resolved.load(std::memory_order_acquire)) return;
  // A second entry is dlsym allocating, or another thread before main; both are served from the
  // static area until the pointers are there.
  if (resolving.exchange(1, std::memory_order_acquire) != 0) return;
  Functions f{};
  look_up(f.malloc, "malloc");
  look_up(f.free, "free");
  look_up(f.calloc, "calloc");
  look_up(f.realloc, "realloc");
  look_up(f.reallocarray, "reallocarray");
  look_up(f.posix_memalign, "posix_memalign");
  look_up(f.aligned_alloc, "aligned_alloc");
  look_up(f.memalign, "memalign");
  look_up(f.valloc, "valloc");
  look_up(f.pvalloc, "pvalloc");
  look_up(f.malloc_usable_size, "malloc_usable_size");
  look_up(f.mmap, "mmap");
  look_up(f.munmap, "munmap");
  look_up(f.mremap, "mremap");
  look_up(f.mprotect, "mprotect");
  look_up(f.madvise, "madvise");
  look_up(f.posix_madvise, "posix_madvise");
  look_up(f.mlock, "mlock");
  look_up(f.mlock2, "mlock2");
  look_up(f.munlock, "munlock");
  look_up(f.read, "read");
  look_up(f.pread64, "pread64");
  look_up(f.readv, "readv");
  look_up(f.preadv64, "preadv64");
  look_up(f.preadv64v2, "preadv64v2");
  look_up(f.read_chk, "__read_chk");
  look_up(f.pread64_chk, "__pread64_chk");
  found = f;
  publish();
  resolved.store(true, std::memory_order_release);
  initialise(environ);
}

void use_static_area(bool is_on) {
  if (!is_on) {
    publish();
    return;
  }
  g_real.malloc = area_malloc;
  g_real.calloc = area_calloc;
  g_real.memalign = g_real.aligned_alloc = area_aligned;
  g_real.free = careful_free;
}

}  // namespace kvmem::real
