// read(2) and its kin with O_DIRECT. A device writes into memory past every page table: no write
// protection stops it, so a page that is demoted meanwhile would lose what arrives. Such reads go
// through a buffer outside the arena, of which at most four stay. All others fault like the
// program's own accesses, and what the kernel would refuse the kernel is asked to refuse.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

#include "base/page.h"
#include "preload/real.h"
#include "region/arena.h"

#define KVMEM_INTERPOSED extern "C" __attribute__((visibility("default")))

using kvmem::in_arena;
using kvmem::kPageBytes;
using kvmem::PageTag;
using kvmem::real::g_real;

namespace {

constexpr std::size_t kBufferBytes = 2 * kPageBytes;
constexpr std::size_t kSpareBytes = 64 * 1024;
constexpr std::size_t kTransferMax = 0x7ffff000;  // what the kernel moves in one call
constexpr std::size_t kSectorBytes = 512;
constexpr off_t kAtPosition = -1;  // as preadv2 has it: at the file's position, which moves

constinit std::atomic<void*> kept[4]{};
// For a process that may not have a single page more.
alignas(kvmem::kOsPageBytes) constinit unsigned char spare[kSpareBytes] = {};
constinit std::atomic<bool> spare_taken{false};

// Memory outside the arena, and nobody's demand: a cancelled thread would keep it.
class Buffer {
 public:
  Buffer() {
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state_);
    for (std::atomic<void*>& slot : kept) {
      data_ = slot.exchange(nullptr, std::memory_order_acquire);
      if (data_ != nullptr) return;
    }
    kvmem::real::resolve();  // mmap is null before
    data_ = g_real.mmap(nullptr, kBufferBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                        -1, 0);
    if (data_ != MAP_FAILED) return;
    while (spare_taken.exchange(true, std::memory_order_acquire)) sched_yield();
    data_ = spare;
  }
  ~Buffer() {
    const int saved = errno;
    give_back();
    pthread_setcancelstate(cancel_state_, nullptr);
    errno = saved;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  char* data() const { return static_cast<char*>(data_); }
  std::size_t size() const { return data_ == spare ? kSpareBytes : kBufferBytes; }

 private:
  void give_back() {
    if (data_ == spare) return spare_taken.store(false, std::memory_order_release);
    for (std::atomic<void*>& slot : kept) {
      void* none = nullptr;
      if (slot.compare_exchange_strong(none, data_, std::memory_order_release,
                                       std::memory_order_relaxed)) {
        return;
      }
    }
    g_real.munmap(data_, kBufferBytes);
  }

  void* data_ = nullptr;
  int cancel_state_ = 0;
};

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

ssize_t read_once(int fd, char* to, std::size_t size, off_t offset, int flags) {
  if (flags != 0) {
    const iovec one{to, size};
    return g_real.preadv64v2(fd, &one, 1, offset, flags);
  }
  return offset == kAtPosition ? g_real.read(fd, to, size) : g_real.pread64(fd, to, size, offset);
}

// Bytes to be read, when a page that may be demoted is among the targets and all of them can be
// written; else 0: then the kernel's own call does no harm, or says what is wrong.
std::size_t managed_bytes(const iovec* parts, int count, off_t offset) {
  if (count < 0 || count > IOV_MAX || offset < kAtPosition) return 0;
  std::size_t total = 0;
  bool is_managed = false;
  for (int i = 0; i < count; ++i) {
    const std::size_t size = parts[i].iov_len;
    if (size > SSIZE_MAX - total) return 0;
    total += size;
    const std::uint64_t begin = reinterpret_cast<std::uintptr_t>(parts[i].iov_base);
    if (size == 0 || !kvmem::touches_arena(begin, size)) continue;
    if (size > kTransferMax) return 0;
    for (std::uint64_t page = kvmem::align_down(begin, kPageBytes); page < begin + size;
         page += kPageBytes) {
      if (!in_arena(page)) return 0;
      const PageTag tag = kvmem::arena::tag(page);
      if (tag.kind == kvmem::PageKind::kManaged && (tag.prot & PROT_WRITE) != 0) {
        is_managed = true;
      } else if (!kvmem::is_ordinary(tag.kind)) {
        return 0;
      }
    }
  }
  const bool is_aligned =
      total % kSectorBytes == 0 && (offset == kAtPosition || offset % off_t{kSectorBytes} == 0);
  if (!is_managed || !is_aligned) return 0;
  return total < kTransferMax ? total : kTransferMax;
}

__attribute__((noinline, cold)) ssize_t read_direct(int fd, const iovec* parts, std::size_t total,
                                                    off_t offset, int flags) {
  pthread_testcancel();
  const Buffer buffer;
  bool position_taken = false;
  if (offset == kAtPosition && total > buffer.size()) {
    // Several reads must look like one to whoever shares the position: it is taken ahead for all of
    // them, and what was not read is given back. Where there is none, one read that ends early.
    const off_t end = lseek(fd, static_cast<off_t>(total), SEEK_CUR);
    if (end < 0) {
      total = buffer.size();
    } else {
      offset = end - static_cast<off_t>(total);
      position_taken = true;
    }
  }
  std::size_t done = 0;
  ssize_t got = 0;
  int error = 0;
  do {
    const std::size_t wanted = total - done < buffer.size() ? total - done : buffer.size();
    const off_t at = offset == kAtPosition ? kAtPosition : offset + static_cast<off_t>(done);
    got = read_once(fd, buffer.data(), wanted, at, flags);
    if (got < 0) error = errno;
    if (got <= 0) break;
    scatter(parts, done, buffer.data(), static_cast<std::size_t>(got));
    done += static_cast<std::size_t>(got);
    if (static_cast<std::size_t>(got) < wanted) break;
  } while (done < total);
  if (position_taken && done < total) (void)lseek(fd, static_cast<off_t>(done - total), SEEK_CUR);
  if (error != 0) errno = error;
  return done > 0 ? static_cast<ssize_t>(done) : got;
}

bool has_arena() { return kvmem::g_arena.size_bytes.load(std::memory_order_relaxed) != 0; }

// True: read, with `*result` for the caller.
bool read_through(int fd, const iovec* parts, int count, off_t offset, int flags, ssize_t* result) {
  if (!is_direct(fd)) return false;
  const std::size_t total = managed_bytes(parts, count, offset);
  if (total == 0) return false;
  *result = read_direct(fd, parts, total, offset, flags);
  return true;
}

}  // namespace

static_assert(sizeof(off_t) == sizeof(off64_t));

KVMEM_INTERPOSED ssize_t read(int fd, void* buffer, size_t size) {
  ssize_t result = 0;
  const iovec part{buffer, size};
  if (__builtin_expect(in_arena(buffer), 0) &&
      read_through(fd, &part, 1, kAtPosition, 0, &result)) {
    return result;
  }
  return g_real.read(fd, buffer, size);
}

KVMEM_INTERPOSED ssize_t pread64(int fd, void* buffer, size_t size, off64_t offset) {
  ssize_t result = 0;
  const iovec part{buffer, size};
  if (__builtin_expect(in_arena(buffer), 0) && offset >= 0 &&
      read_through(fd, &part, 1, offset, 0, &result)) {
    return result;
  }
  return g_real.pread64(fd, buffer, size, offset);
}
KVMEM_INTERPOSED ssize_t pread(int fd, void* buffer, size_t size, off_t offset) {
  return pread64(fd, buffer, size, offset);
}

KVMEM_INTERPOSED ssize_t readv(int fd, const iovec* parts, int count) {
  ssize_t result = 0;
  if (has_arena() && read_through(fd, parts, count, kAtPosition, 0, &result)) return result;
  return g_real.readv(fd, parts, count);
}

KVMEM_INTERPOSED ssize_t preadv64(int fd, const iovec* parts, int count, off64_t offset) {
  ssize_t result = 0;
  if (has_arena() && offset >= 0 && read_through(fd, parts, count, offset, 0, &result)) {
    return result;
  }
  return g_real.preadv64(fd, parts, count, offset);
}
KVMEM_INTERPOSED ssize_t preadv(int fd, const iovec* parts, int count, off_t offset) {
  return preadv64(fd, parts, count, offset);
}
KVMEM_INTERPOSED ssize_t preadv64v2(int fd, const iovec* parts, int count, off64_t offset,
                                    int flags) {
  ssize_t result = 0;
  if (has_arena() && read_through(fd, parts, count, offset, flags, &result)) return result;
  return g_real.preadv64v2(fd, parts, count, offset, flags);
}
KVMEM_INTERPOSED ssize_t preadv2(int fd, const iovec* parts, int count, off_t offset, int flags) {
  return preadv64v2(fd, parts, count, offset, flags);
}

// What programs built with _FORTIFY_SOURCE call; glibc's own say what is wrong.
// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming)
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
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)
