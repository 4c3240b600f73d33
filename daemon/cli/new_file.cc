#include "cli/new_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <system_error>

#include "cli/text.h"

namespace kvmem::cli {
namespace {

std::string cannot(const std::string& path, int error) {
  return "cannot write " + printable(path) + ": " + std::system_category().message(error) +
         "; name a file in a folder that you may write to";
}

}  // namespace

NewFile::~NewFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

std::string NewFile::open(const std::string& path) {
  struct stat st {};
  // A rename would put a file in the place of a device.
  if (::stat(path.c_str(), &st) == 0 && !S_ISREG(st.st_mode)) {
    return printable(path) + " is there and is no ordinary file: name another";
  }
  path_ = path;
  std::string name = path + ".XXXXXX";
  fd_ = UniqueFd(::mkostemp(name.data(), O_CLOEXEC));
  if (!fd_) return cannot(path, errno);
  temporary_ = name;
  const mode_t mask = ::umask(0);
  ::umask(mask);
  ::fchmod(fd_.get(), 0666 & ~mask);
  return "";
}

std::string NewFile::write(std::string_view content) {
  while (!content.empty()) {
    const ssize_t written = ::write(fd_.get(), content.data(), content.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return cannot(path_, errno);
    content.remove_prefix(static_cast<std::size_t>(written));
  }
  // Some file systems tell only here that there was no room.
  if (::close(fd_.release()) != 0) return cannot(path_, errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) return cannot(path_, errno);
  temporary_.clear();
  return "";
}

}  // namespace kvmem::cli
