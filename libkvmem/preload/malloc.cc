// malloc and its kin. Below the threshold each is a comparison and a jump.
#include <errno.h>
#include <string.h>

#include <cstdint>

#include "base/page.h"
#include "preload/real.h"
#include "region/host.h"

#define KVMEM_INTERPOSED extern "C" __attribute__((visibility("default")))

using kvmem::in_arena;
using kvmem::kPageBytes;
using kvmem::may_be_in_arena;
using kvmem::host::g_threshold_bytes;
using kvmem::real::g_real;

namespace {

#define KVMEM_COLD __attribute__((noinline, cold))

// The engine sees errno as malloc left it.
class KeepErrno {
 public:
  KeepErrno() : saved_(errno) {}
  ~KeepErrno() { errno = saved_; }
  KeepErrno(const KeepErrno&) = delete;
  KeepErrno& operator=(const KeepErrno&) = delete;

 private:
  int saved_;
};

void* region_or_null(std::size_t size, std::size_t alignment = 1) {
  if (size > PTRDIFF_MAX || alignment > kPageBytes) return nullptr;
  const KeepErrno keep;
  return kvmem::host::allocate(size, true);
}

KVMEM_COLD void* large_malloc(std::size_t size) {
  if (void* p = region_or_null(size)) return p;
  return g_real.malloc(size);
}

KVMEM_COLD void* large_calloc(std::size_t count, std::size_t size) {
  if (void* p = region_or_null(count * size)) return p;  // fresh pages are zero
  return g_real.calloc(count, size);
}

KVMEM_COLD void region_free(void* p) {
  if (!in_arena(p)) return g_real.free(p);
  const KeepErrno keep;
  if (!kvmem::host::release(p)) g_real.free(p);
}

// The old block is a region.
KVMEM_COLD void* region_realloc(void* p, std::size_t size) {
  const std::size_t old_size = kvmem::host::size_of(p);
  if (old_size == 0) return g_real.realloc(p, size);  // not ours: glibc says what it thinks of it
  if (size == 0) {
    region_free(p);
    return nullptr;
  }
  if (size >= g_threshold_bytes) {
    const KeepErrno keep;
    if (kvmem::host::resize_in_place(p, size)) return p;
  }
  void* moved = malloc(size);
  if (moved == nullptr) return nullptr;
  memcpy(moved, p, old_size < size ? old_size : size);
  region_free(p);
  return moved;
}

// The old block is not a region, the new one might be.
KVMEM_COLD void* grow_into_region(void* p, std::size_t size) {
  void* moved = region_or_null(size);
  if (moved == nullptr) return g_real.realloc(p, size);
  if (p == nullptr) return moved;
  const std::size_t old_size = g_real.malloc_usable_size(p);
  memcpy(moved, p, old_size < size ? old_size : size);
  const KeepErrno keep;
  g_real.free(p);
  return moved;
}

bool is_power_of_two(std::size_t n) { return n != 0 && (n & (n - 1)) == 0; }

}  // namespace

KVMEM_INTERPOSED void* malloc(std::size_t size) noexcept {
  if (__builtin_expect(size >= g_threshold_bytes, 0)) return large_malloc(size);
  return g_real.malloc(size);
}

KVMEM_INTERPOSED void free(void* p) noexcept {
  if (__builtin_expect(may_be_in_arena(p), 0)) return region_free(p);
  g_real.free(p);
}

KVMEM_INTERPOSED void* calloc(std::size_t count, std::size_t size) noexcept {
  std::size_t total = 0;
  if (__builtin_expect(!__builtin_mul_overflow(count, size, &total) && total >= g_threshold_bytes,
                       0)) {
    return large_calloc(count, size);
  }
  return g_real.calloc(count, size);
}

KVMEM_INTERPOSED void* realloc(void* p, std::size_t size) noexcept {
  if (__builtin_expect(in_arena(p), 0)) return region_realloc(p, size);
  if (__builtin_expect(size >= g_threshold_bytes, 0)) return grow_into_region(p, size);
  return g_real.realloc(p, size);
}

KVMEM_INTERPOSED void* reallocarray(void* p, std::size_t count, std::size_t size) noexcept {
  std::size_t total = 0;
  if (__builtin_mul_overflow(count, size, &total)) {
    errno = ENOMEM;
    return nullptr;
  }
  return realloc(p, total);
}

KVMEM_INTERPOSED int posix_memalign(void** out, std::size_t alignment, std::size_t size) noexcept {
  if (__builtin_expect(size >= g_threshold_bytes, 0) && is_power_of_two(alignment) &&
      alignment % sizeof(void*) == 0) {
    if (void* p = region_or_null(size, alignment)) {
      *out = p;
      return 0;
    }
  }
  return g_real.posix_memalign(out, alignment, size);
}

KVMEM_INTERPOSED void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  if (__builtin_expect(size >= g_threshold_bytes, 0) && is_power_of_two(alignment)) {
    if (void* p = region_or_null(size, alignment)) return p;
  }
  return g_real.aligned_alloc(alignment, size);
}

KVMEM_INTERPOSED void* memalign(std::size_t alignment, std::size_t size) noexcept {
  if (__builtin_expect(size >= g_threshold_bytes, 0)) {
    if (void* p = region_or_null(size, alignment)) return p;
  }
  return g_real.memalign(alignment, size);
}

KVMEM_INTERPOSED void* valloc(std::size_t size) noexcept {
  if (__builtin_expect(size >= g_threshold_bytes, 0)) {
    if (void* p = region_or_null(size)) return p;
  }
  return g_real.valloc(size);
}

KVMEM_INTERPOSED void* pvalloc(std::size_t size) noexcept {
  if (__builtin_expect(size >= g_threshold_bytes, 0)) {
    if (void* p = region_or_null(kvmem::align_up(size, kvmem::kOsPageBytes))) return p;
  }
  return g_real.pvalloc(size);
}

KVMEM_INTERPOSED std::size_t malloc_usable_size(void* p) noexcept {
  if (__builtin_expect(in_arena(p), 0)) {
    if (const std::size_t size = kvmem::host::size_of(p); size != 0) return size;
  }
  return g_real.malloc_usable_size(p);
}
