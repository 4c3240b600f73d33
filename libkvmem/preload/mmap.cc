// mmap and what may be done to a mapping. Calls that cannot concern a region are the next
// library's, with their arguments as they came.
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cstdint>

#include "base/page.h"
#include "preload/real.h"
#include "region/host.h"

#define KVMEM_INTERPOSED extern "C" __attribute__((visibility("default")))

namespace host = kvmem::host;
using kvmem::in_arena;
using kvmem::is_aligned;
using kvmem::kPageBytes;
using kvmem::touches_arena;
using kvmem::host::g_threshold_bytes;

namespace {

std::uint64_t number(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }

int answer(int result) {
  if (result >= 0) return result;
  errno = -result;
  return -1;
}
void* answer_address(long result) {
  if (result >= 0 || result < -4095) return reinterpret_cast<void*>(result);
  errno = static_cast<int>(-result);
  return MAP_FAILED;
}

const kvmem::real::Functions& real_functions() {
  if (__builtin_expect(kvmem::real::g_real.mmap == nullptr, 0)) kvmem::real::resolve();
  return kvmem::real::g_real;
}

bool is_anonymous_candidate(int prot, int flags) {
  constexpr int kIgnored =
      MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_DENYWRITE | MAP_EXECUTABLE;
  return prot == (PROT_READ | PROT_WRITE) && (flags & ~kIgnored) == (MAP_PRIVATE | MAP_ANONYMOUS);
}

// A file that nobody writes through this descriptor, on a file system that keeps it on a disk:
// shared memory (tmpfs, memfd) is somebody's channel, and in memory already.
bool is_file_candidate(int prot, int flags, int fd, off_t offset) {
  constexpr int kIgnored =
      MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_DENYWRITE | MAP_EXECUTABLE;
  const int kind = flags & ~kIgnored;
  if (prot != PROT_READ || (kind != MAP_PRIVATE && kind != MAP_SHARED) || fd < 0 || offset < 0 ||
      !is_aligned(static_cast<std::uint64_t>(offset), kPageBytes)) {
    return false;
  }
  const int mode = fcntl(fd, F_GETFL);
  if (mode < 0 || (mode & O_ACCMODE) != O_RDONLY) return false;
  struct statfs fs;
  if (fstatfs(fd, &fs) != 0) return false;
  constexpr decltype(fs.f_type) kTmpfs = 0x01021994, kHugeTlbFs = 0x958458f6, kRamfs = 0x858458f6;
  return fs.f_type != kTmpfs && fs.f_type != kHugeTlbFs && fs.f_type != kRamfs;
}

__attribute__((noinline, cold)) void* large_mmap(void* hint, std::size_t size, int prot, int flags,
                                                 int fd, off_t offset) {
  const int saved = errno;
  void* p = nullptr;
  if (hint == nullptr && size <= PTRDIFF_MAX) {
    if (is_anonymous_candidate(prot, flags)) {
      p = host::allocate(size, false);
    } else if ((flags & MAP_ANONYMOUS) == 0 && is_file_candidate(prot, flags, fd, offset)) {
      p = host::map_file(size, flags, fd, static_cast<std::uint64_t>(offset));
    }
  }
  errno = saved;
  return p != nullptr ? p : real_functions().mmap(hint, size, prot, flags, fd, offset);
}

void* map(void* hint, std::size_t size, int prot, int flags, int fd, off_t offset) {
  if (__builtin_expect(size >= g_threshold_bytes, 0) &&
      (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) == 0) {
    return large_mmap(hint, size, prot, flags, fd, offset);
  }
  if (__builtin_expect((flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) != 0, 0) &&
      touches_arena(number(hint), size)) {
    return answer_address(
        host::map_fixed(number(hint), size, prot, flags, fd, static_cast<std::uint64_t>(offset)));
  }
  return real_functions().mmap(hint, size, prot, flags, fd, offset);
}

}  // namespace

KVMEM_INTERPOSED void* mmap(void* hint, std::size_t size, int prot, int flags, int fd,
                            off_t offset) noexcept {
  return map(hint, size, prot, flags, fd, offset);
}
// off_t has 64 bits on every machine libkvmem builds for.
KVMEM_INTERPOSED void* mmap64(void* hint, std::size_t size, int prot, int flags, int fd,
                              off64_t offset) noexcept {
  return map(hint, size, prot, flags, fd, offset);
}

KVMEM_INTERPOSED int munmap(void* p, std::size_t size) noexcept {
  if (__builtin_expect(touches_arena(number(p), size), 0))
    return answer(host::unmap(number(p), size));
  return real_functions().munmap(p, size);
}

KVMEM_INTERPOSED void* mremap(void* p, std::size_t old_size, std::size_t new_size, int flags,
                              ...) noexcept {
  va_list rest;
  va_start(rest, flags);
  void* target = (flags & MREMAP_FIXED) != 0 ? va_arg(rest, void*) : nullptr;
  va_end(rest);
  if (__builtin_expect(touches_arena(number(p), old_size) ||
                           ((flags & MREMAP_FIXED) != 0 && touches_arena(number(target), new_size)),
                       0)) {
    return answer_address(host::remap(number(p), old_size, new_size, flags, number(target)));
  }
  return real_functions().mremap(p, old_size, new_size, flags, target);
}

KVMEM_INTERPOSED int mprotect(void* p, std::size_t size, int prot) noexcept {
  if (__builtin_expect(touches_arena(number(p), size), 0)) {
    return answer(host::protect(number(p), size, prot));
  }
  return real_functions().mprotect(p, size, prot);
}

KVMEM_INTERPOSED int madvise(void* p, std::size_t size, int advice) noexcept {
  if (__builtin_expect(touches_arena(number(p), size), 0)) {
    return answer(host::advise(number(p), size, advice));
  }
  return real_functions().madvise(p, size, advice);
}

// Its advices are madvise's by value; it returns the error, and DONTNEED must keep the data.
KVMEM_INTERPOSED int posix_madvise(void* p, std::size_t size, int advice) noexcept {
  if (__builtin_expect(touches_arena(number(p), size), 0)) {
    if (advice == POSIX_MADV_DONTNEED) return 0;
    if (advice < POSIX_MADV_NORMAL || advice > POSIX_MADV_DONTNEED) return EINVAL;
    return -host::advise(number(p), size, advice);
  }
  return real_functions().posix_madvise(p, size, advice);
}

KVMEM_INTERPOSED int mlock(const void* p, std::size_t size) noexcept {
  if (__builtin_expect(touches_arena(number(p), size), 0)) {
    return answer(host::lock(number(p), size, 0));
  }
  return real_functions().mlock(p, size);
}
KVMEM_INTERPOSED int mlock2(const void* p, std::size_t size, unsigned flags) noexcept {
  if (__builtin_expect(touches_arena(number(p), size), 0)) {
    return answer(host::lock(number(p), size, static_cast<int>(flags)));
  }
  return real_functions().mlock2(p, size, flags);
}
KVMEM_INTERPOSED int munlock(const void* p, std::size_t size) noexcept {
  if (__builtin_expect(touches_arena(number(p), size), 0)) {
    return answer(host::unlock(number(p), size));
  }
  return real_functions().munlock(p, size);
}
