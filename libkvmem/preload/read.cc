// read(2) and its kin with O_DIRECT. A device writes into memory past every page table: no write
// protection stops it, so a page that is demoted meanwhile would lose what arrives. Such reads go
// through a buffer outside the arena: at most four of 4 MiB are kept, a longer read is several. All
// others fault like the program's own accesses.
//
// The first byte of a target says whether it is in the arena, whose neighbours are reserved. A
// target there that the engine unmapped or protected raises SIGSEGV, not EFAULT.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>

#include "base/page.h"
#include "preload/real.h"
#include "region/arena.h"

#define KVMEM_INTERPOSED extern "C" __attribute__((visibility("default")))

using kvmem::in_arena;
using kvmem::real::g_real;

namespace {

constexpr std::size_t kBufferBytes = 2 * kvmem::kPageBytes;
constexpr off_t kAtPosition = -1;  // as preadv2 has it: at the file's position, which moves

// A few buffers stay for the next reads; also a signal handler may take one.
constinit std::atomic<void*> kept[4]{};

void* take_buffer() {
  for (std::atomic<void*>& slot : kept) {
    if (void* buffer = slot.exchange(nullptr, std::memory_order_acquire)) return buffer;
  }
  kvmem::real::resolve();  // mmap is null before
  void* buffer = g_real.mmap(nullptr, kBufferBytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);  // not ours, or it were a region
  return buffer == MAP_FAILED ? nullptr : buffer;
}

void give_buffer(void* buffer) {
  const int saved = errno;
  for (std::atomic<void*>& slot : kept) {
    void* none = nullptr;
    if (slot.compare_exchange_strong(none, buffer, std::memory_order_release,
                                     std::memory_order_relaxed)) {
      return;
    }
  }
  g_real.munmap(buffer, kBufferBytes);
  errno = saved;
}

bool is_direct(int fd) {
  const int saved = errno;
  const int mode = fcntl(fd, F_GETFL);
  errno = saved;
  return mode >= 0 && (mode & O_DIRECT) != 0;
}

// Copies to where byte `at` of the parts lies, and behind.
void scatter(const iovec* parts, std::size_t at, const char* from, std::size_t size) {
  for (; size > 0; ++parts) {
    if (at >= parts->iov_len) {
      at -= parts->iov_len;
      continue;
    }
    const std::size_t n = parts->iov_len - at < size ? parts->iov_len - at : size;
    memcpy(static_cast<char*>(parts->iov_base) + at, from, n);
    from += n;
    size -= n;
    at = 0;
  }
}

__attribute__((noinline, cold)) ssize_t read_direct(int fd, const iovec* parts, int count,
                                                    off_t offset, int flags) {
  std::size_t total = 0;
  for (int i = 0; i < count; ++i) total += parts[i].iov_len;
  void* buffer = take_buffer();
  if (buffer == nullptr) {
    errno = ENOMEM;
    return -1;
  }
  std::size_t done = 0;
  ssize_t got = 0;
  do {
    const std::size_t wanted = total - done < kBufferBytes ? total - done : kBufferBytes;
    const iovec one{buffer, wanted};
    const off_t at = offset == kAtPosition ? kAtPosition : offset + static_cast<off_t>(done);
    got = g_real.preadv64v2(fd, &one, 1, at, flags);
    if (got <= 0) break;
    scatter(parts, done, static_cast<const char*>(buffer), static_cast<std::size_t>(got));
    done += static_cast<std::size_t>(got);
    if (static_cast<std::size_t>(got) < wanted) break;
  } while (done < total);
  give_buffer(buffer);
  return done > 0 ? static_cast<ssize_t>(done) : got;
}

bool is_direct_into_arena(int fd, const void* buffer) {
  return __builtin_expect(in_arena(buffer), 0) && is_direct(fd);
}
bool is_direct_into_arena(int fd, const iovec* parts, int count) {
  if (count > IOV_MAX) return false;  // EINVAL, says the kernel
  for (int i = 0; i < count; ++i) {
    if (__builtin_expect(in_arena(parts[i].iov_base), 0)) return is_direct(fd);
  }
  return false;
}

ssize_t read_parts(int fd, const iovec* parts, int count, off_t offset, int flags) {
  if (is_direct_into_arena(fd, parts, count)) return read_direct(fd, parts, count, offset, flags);
  return g_real.preadv64v2(fd, parts, count, offset, flags);
}

}  // namespace

static_assert(sizeof(off_t) == sizeof(off64_t));

KVMEM_INTERPOSED ssize_t read(int fd, void* buffer, size_t size) {
  if (is_direct_into_arena(fd, buffer)) {
    const iovec part{buffer, size};
    return read_direct(fd, &part, 1, kAtPosition, 0);
  }
  return g_real.read(fd, buffer, size);
}

KVMEM_INTERPOSED ssize_t pread64(int fd, void* buffer, size_t size, off64_t offset) {
  if (offset >= 0 && is_direct_into_arena(fd, buffer)) {
    const iovec part{buffer, size};
    return read_direct(fd, &part, 1, offset, 0);
  }
  return g_real.pread64(fd, buffer, size, offset);
}
KVMEM_INTERPOSED ssize_t pread(int fd, void* buffer, size_t size, off_t offset) {
  return pread64(fd, buffer, size, offset);
}

KVMEM_INTERPOSED ssize_t readv(int fd, const iovec* parts, int count) {
  if (is_direct_into_arena(fd, parts, count)) return read_direct(fd, parts, count, kAtPosition, 0);
  return g_real.readv(fd, parts, count);
}

KVMEM_INTERPOSED ssize_t preadv64(int fd, const iovec* parts, int count, off64_t offset) {
  if (offset >= 0 && is_direct_into_arena(fd, parts, count)) {
    return read_direct(fd, parts, count, offset, 0);
  }
  return g_real.preadv64(fd, parts, count, offset);
}
KVMEM_INTERPOSED ssize_t preadv(int fd, const iovec* parts, int count, off_t offset) {
  return preadv64(fd, parts, count, offset);
}
KVMEM_INTERPOSED ssize_t preadv64v2(int fd, const iovec* parts, int count, off64_t offset,
                                    int flags) {
  return read_parts(fd, parts, count, offset, flags);
}
KVMEM_INTERPOSED ssize_t preadv2(int fd, const iovec* parts, int count, off_t offset, int flags) {
  return read_parts(fd, parts, count, offset, flags);
}

// What programs built with _FORTIFY_SOURCE call; glibc's own say what is wrong.
KVMEM_INTERPOSED ssize_t __read_chk(int fd, void* buffer, size_t size, size_t room) {
  return size > room ? g_real.read_chk(fd, buffer, size, room) : read(fd, buffer, size);
}
KVMEM_INTERPOSED ssize_t __pread64_chk(int fd, void* buffer, size_t size, off64_t offset,
                                       size_t room) {
  return size > room ? g_real.pread64_chk(fd, buffer, size, offset, room)
                     : pread64(fd, buffer, size, offset);
}
KVMEM_INTERPOSED ssize_t __pread_chk(int fd, void* buffer, size_t size, off_t offset, size_t room) {
  return __pread64_chk(fd, buffer, size, offset, room);
}
