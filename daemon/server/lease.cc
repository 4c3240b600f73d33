#include "server/lease.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <filesystem>

namespace kvmem::server {

Status Leases::create_folder() const {
  if (::mkdir(folder_.c_str(), 0700) != 0 && errno != EEXIST) {
    return Status::from_errno("mkdir: leases in the runtime directory");
  }
  return {};
}

std::string Leases::path(std::uint64_t session_id) const {
  char name[32];
  std::snprintf(name, sizeof name, "/%016" PRIx64, session_id);
  return folder_ + name;
}

Result<UniqueFd> Leases::make(std::uint64_t session_id) const {
  UniqueFd lease(::open(path(session_id).c_str(), O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!lease) return Status::from_errno("open: lease");
  // The lock belongs to the open file description, which the engine will hold.
  if (::flock(lease.get(), LOCK_SH | LOCK_NB) != 0) return Status::from_errno("flock: lease");
  return lease;
}

bool Leases::is_lease(std::uint64_t session_id, int fd) const {
  struct stat mine {};
  struct stat known {};
  return ::fstat(fd, &mine) == 0 && ::stat(path(session_id).c_str(), &known) == 0 &&
         mine.st_ino == known.st_ino && mine.st_dev == known.st_dev;
}

bool Leases::is_held(std::uint64_t session_id) const {
  const UniqueFd lease(::open(path(session_id).c_str(), O_RDONLY | O_CLOEXEC));
  if (!lease) return errno != ENOENT;
  return ::flock(lease.get(), LOCK_EX | LOCK_NB) != 0;
}

void Leases::remove(std::uint64_t session_id) const { (void)::unlink(path(session_id).c_str()); }

std::vector<std::uint64_t> Leases::sessions() const {
  std::vector<std::uint64_t> found;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder_, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename();
    std::uint64_t id = 0;
    const auto [last, bad] = std::from_chars(name.data(), name.data() + name.size(), id, 16);
    if (bad == std::errc{} && last == name.data() + name.size() && id != 0) found.push_back(id);
  }
  return found;
}

void Leases::note(std::uint64_t session_id, const std::vector<GpuGrant>& grants) const {
  const UniqueFd lease(::open(path(session_id).c_str(), O_WRONLY | O_CLOEXEC));
  if (!lease) return;
  const std::size_t size_bytes = std::min(grants.size(), kGpusOfSessionMax) * sizeof(GpuGrant);
  // Cut last: a daemon that dies in between leaves too much noted, not too little.
  (void)!::pwrite(lease.get(), grants.data(), size_bytes, 0);
  (void)!::ftruncate(lease.get(), static_cast<off_t>(size_bytes));
}

std::vector<GpuGrant> Leases::noted(std::uint64_t session_id) const {
  const UniqueFd lease(::open(path(session_id).c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<GpuGrant> grants(kGpusOfSessionMax);
  const ssize_t size =
      lease ? ::pread(lease.get(), grants.data(), grants.size() * sizeof(GpuGrant), 0) : 0;
  grants.resize(size < 0 ? 0 : static_cast<std::size_t>(size) / sizeof(GpuGrant));
  return grants;
}

}  // namespace kvmem::server
