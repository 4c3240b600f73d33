// The functions that the interposed ones stand before: the next definitions in link order, resolved
// once. Before that those that allocate resolve and go on, so that their callers test nothing,
// those that read ask the kernel, and those from mmap to munlock are null: REQUIRES resolve()
// first.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>

namespace kvmem::real {

struct Functions {
  void* (*malloc)(std::size_t);
  void (*free)(void*);
  void* (*calloc)(std::size_t, std::size_t);
  void* (*realloc)(void*, std::size_t);
  void* (*reallocarray)(void*, std::size_t, std::size_t);
  int (*posix_memalign)(void**, std::size_t, std::size_t);
  void* (*aligned_alloc)(std::size_t, std::size_t);
  void* (*memalign)(std::size_t, std::size_t);
  void* (*valloc)(std::size_t);
  void* (*pvalloc)(std::size_t);
  std::size_t (*malloc_usable_size)(void*);
  void* (*mmap)(void*, std::size_t, int, int, int, off_t);
  int (*munmap)(void*, std::size_t);
  void* (*mremap)(void*, std::size_t, std::size_t, int, ...);
  int (*mprotect)(void*, std::size_t, int);
  int (*madvise)(void*, std::size_t, int);
  int (*posix_madvise)(void*, std::size_t, int);
  int (*mlock)(const void*, std::size_t);
  int (*mlock2)(const void*, std::size_t, unsigned);
  int (*munlock)(const void*, std::size_t);
  ssize_t (*read)(int, void*, std::size_t);
  ssize_t (*pread64)(int, void*, std::size_t, off64_t);
  ssize_t (*readv)(int, const iovec*, int);
  ssize_t (*preadv64)(int, const iovec*, int, off64_t);
  ssize_t (*preadv64v2)(int, const iovec*, int, off64_t, int);
  ssize_t (*read_chk)(int, void*, std::size_t, std::size_t);
  ssize_t (*pread64_chk)(int, void*, std::size_t, off64_t, std::size_t);
};
extern Functions g_real __attribute__((visibility("hidden")));

// Idempotent; any thread, also from inside the loader.
void resolve();

// While on, allocations come from a small static area instead of the real functions. Single
// threaded callers only: a forked child before its allocator's own handlers have run.
void use_static_area(bool is_on);

}  // namespace kvmem::real

namespace kvmem {
// Reads the environment, arms the interposition; idempotent. `environment` may be null: too early.
void initialise(char* const* environment);
}  // namespace kvmem
