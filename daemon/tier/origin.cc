#include "tier/origin.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "os/memory.h"

namespace kvmem::tier {

Result<OriginKey> Origin::key_of(int fd) {
  // The descriptor is the permission: one that cannot read (O_PATH needs none) must not become one
  // that can when it is opened again with the daemon's rights.
  const int flags = ::fcntl(fd, F_GETFL);
  const int access = flags & O_ACCMODE;
  if (flags < 0 || (flags & O_PATH) != 0 || (access != O_RDONLY && access != O_RDWR)) {
    return Status(Code::kUnsupported, "file not open for reading");
  }
  struct stat st {};
  if (::fstat(fd, &st) != 0) return Status::from_errno("fstat");
  if (!S_ISREG(st.st_mode)) return Status(Code::kUnsupported, "not a regular file");
  return OriginKey{
      st.st_dev, st.st_ino, static_cast<std::uint64_t>(st.st_size),
      static_cast<std::int64_t>(st.st_mtim.tv_sec) * 1'000'000'000 + st.st_mtim.tv_nsec};
}

Result<Origin> Origin::open(UniqueFd engine_fd) {
  Origin origin;
  KV_ASSIGN_OR_RETURN(origin.key_, key_of(engine_fd.get()));
  char link[64];
  char path[4096];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", engine_fd.get());
  const ssize_t n = ::readlink(link, path, sizeof path - 1);
  origin.path_.assign(path, n > 0 ? static_cast<std::size_t>(n) : 0);
  // O_DIRECT on a description of our own: setting it on the engine's would change the engine's
  // reads.
  if (auto direct = os::reopen(engine_fd.get(), O_RDONLY | O_DIRECT); direct.ok()) {
    origin.fd_ = *std::move(direct);
    origin.direct_ = true;
  } else {
    origin.fd_ = std::move(engine_fd);
  }
  return origin;
}

std::uint64_t Origin::bytes_at(std::uint64_t offset, std::uint64_t size_bytes) const {
  return offset >= key_.size_bytes ? 0 : std::min(size_bytes, key_.size_bytes - offset);
}

}  // namespace kvmem::tier
