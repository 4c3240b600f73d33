#include "client/userfault.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include "client/settings.h"
#include "client/sys.h"

namespace kvmem {

namespace {

// Newer than Debian 12's headers, or named differently there.
constexpr unsigned long kIocNew = _IO(0xAA, 0x00);  // USERFAULTFD_IOC_NEW, 6.1
constexpr int kUserModeOnly = 1;                    // UFFD_USER_MODE_ONLY, 5.11
constexpr std::uint64_t kMissingHugeTlb = 1u << 4;
constexpr std::uint64_t kMissingShmem = 1u << 5;
constexpr std::uint64_t kMinorHugeTlb = 1u << 9;
constexpr std::uint64_t kMinorShmem = 1u << 10;
constexpr std::uint64_t kWpHugeTlbShmem = 1u << 12;  // 5.19
constexpr std::uint64_t kFeatures =
    kMissingHugeTlb | kMissingShmem | kMinorHugeTlb | kMinorShmem | kWpHugeTlbShmem;
constexpr std::uint64_t kModeMissing = 1, kModeWp = 2, kModeMinor = 4;

constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;

Result<UniqueFd> agree(long fd) {
  UniqueFd owned(static_cast<int>(fd));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kFeatures;
  if (sys::ioctl(owned.get(), UFFDIO_API, &api) != 0) {
    return Status(Code::kUnsupported,
                  "this kernel's userfaultfd cannot write-protect shared memory (needs 5.19)");
  }
  return owned;
}

}  // namespace

Result<UniqueFd> open_userfault(int device) {
  if (device >= 0) {
    const long fd = sys::call(SYS_ioctl, device, kIocNew, kFlags);
    if (fd >= 0) return agree(fd);
  }
  const long own = sys::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (own >= 0) {
    const long fd = sys::call(SYS_ioctl, own, kIocNew, kFlags);
    sys::close(static_cast<int>(own));
    if (fd >= 0) return agree(fd);
  }
  long fd = sys::call(SYS_userfaultfd, kFlags);
  if (fd >= 0) return agree(fd);
  if (g_settings.user_faults_only) {
    fd = sys::call(SYS_userfaultfd, kFlags | kUserModeOnly);
    if (fd >= 0) return agree(fd);
  }
  return Status(Code::kUnsupported,
                "no userfaultfd: install kvmem's udev rule for /dev/userfaultfd, or set sysctl "
                "vm.unprivileged_userfaultfd=1; in a container pass --device /dev/userfaultfd or a "
                "seccomp profile that allows userfaultfd",
                static_cast<int>(-fd));
}

int userfault_register(int fd, std::uint64_t address, std::uint64_t size_bytes,
                       bool write_protect) {
  uffdio_register r{};
  r.range = {address, size_bytes};
  r.mode = kModeMissing | kModeMinor | (write_protect ? kModeWp : 0);
  return static_cast<int>(sys::ioctl(fd, UFFDIO_REGISTER, &r));
}

int userfault_write_protect(int fd, std::uint64_t address, std::uint64_t size_bytes) {
  uffdio_writeprotect w{};
  w.range = {address, size_bytes};
  w.mode = UFFDIO_WRITEPROTECT_MODE_WP;
  return static_cast<int>(sys::ioctl(fd, UFFDIO_WRITEPROTECT, &w));
}

int userfault_wake(int fd, std::uint64_t address, std::uint64_t size_bytes) {
  uffdio_range r{address, size_bytes};
  return static_cast<int>(sys::ioctl(fd, UFFDIO_WAKE, &r));
}

}  // namespace kvmem
