#include "os/userfault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/page.h"

namespace kvmem::os {
namespace {

// Newer than the headers of Debian 12.
constexpr std::uint64_t kContinueModeWp = 1U << 1;
struct PoisonArgument {
  uffdio_range range;
  __u64 mode;
  __s64 updated;
};
constexpr unsigned long kPoison = _IOWR(UFFDIO, 0x08, PoisonArgument);

constexpr int kRetriesMax = 1000;  // EAGAIN: the engine's address space is changing

Status classify(const char* what) {
  if (errno == ESRCH || errno == ENOENT || errno == EBADF)
    return Status(Code::kPeerGone, what, errno);
  if (errno == EINVAL || errno == ENOTTY) return Status(Code::kUnsupported, what, errno);
  return Status::from_errno(what);
}

}  // namespace

Result<UniqueFd> open_userfault_device() {
  UniqueFd fd(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!fd) return Status::from_errno("open /dev/userfaultfd");
  return fd;
}

Status map_pages(int fd, std::uint64_t address, std::size_t size_bytes, std::size_t step_bytes,
                 bool write_protected) {
  std::size_t at = 0;
  bool skipped = false;
  for (int tries = 0; at < size_bytes;) {
    uffdio_continue argument{};
    argument.range = {address + at, size_bytes - at};
    argument.mode = write_protected ? kContinueModeWp : 0;
    if (::ioctl(fd, UFFDIO_CONTINUE, &argument) == 0) break;
    const int error = errno;
    if (argument.mapped > 0) {
      at += static_cast<std::size_t>(argument.mapped);
      continue;
    }
    switch (error) {
      case EAGAIN:
        if (++tries > kRetriesMax) return Status(Code::kBusy, "UFFDIO_CONTINUE", error);
        continue;
      case EEXIST:  // this OS page is mapped
      case ENOENT:  // this OS page is unmapped by the engine, or the range spans mappings
        skipped = true;
        at += step_bytes;
        continue;
      case EFAULT:
        return Status(Code::kNotFound, "the memfd has no page to map", error);
      default:
        errno = error;
        return classify("UFFDIO_CONTINUE");
    }
  }
  return skipped ? wake(fd, address, size_bytes) : Status{};
}

Status write_protect(int fd, std::uint64_t address, std::size_t size_bytes, bool on) {
  uffdio_writeprotect argument{};
  argument.range = {address, size_bytes};
  argument.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
  for (int tries = 0; ::ioctl(fd, UFFDIO_WRITEPROTECT, &argument) != 0; ++tries) {
    if (errno == ENOENT) {
      // It stops at the first part that is not (or no longer) ours, or where two mappings meet:
      // piece by piece, and what is left of a single OS page is the engine's own business.
      if (size_bytes <= kOsPageBytes) return {};
      const std::size_t piece = size_bytes > kPageBytes ? kPageBytes : kOsPageBytes;
      for (std::size_t at = 0; at < size_bytes; at += piece) {
        KV_TRY(write_protect(fd, address + at, piece, on));
      }
      return {};
    }
    if (errno != EAGAIN || tries > kRetriesMax) return classify("UFFDIO_WRITEPROTECT");
  }
  return {};
}

Status wake(int fd, std::uint64_t address, std::size_t size_bytes) {
  uffdio_range range{address, size_bytes};
  return ::ioctl(fd, UFFDIO_WAKE, &range) == 0 ? Status{} : classify("UFFDIO_WAKE");
}

Status poison(int fd, std::uint64_t address, std::size_t size_bytes) {
  PoisonArgument argument{{address, size_bytes}, 0, 0};
  for (int tries = 0; ::ioctl(fd, kPoison, &argument) != 0; ++tries) {
    if (errno == EEXIST) break;
    if (errno != EAGAIN || tries > kRetriesMax) return classify("UFFDIO_POISON");
  }
  return wake(fd, address, size_bytes);
}

}  // namespace kvmem::os
