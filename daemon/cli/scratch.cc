#include "cli/scratch.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace kvmem::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "kvmem-run-";
constexpr unsigned kSweptMax = 64;

std::string environment(const char* name) {
  const char* const value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe)
  return value != nullptr ? value : "";
}

bool lock(int fd) { return ::flock(fd, LOCK_EX | LOCK_NB) == 0; }

// A folder without a lock is one that another run is just making: left alone.
void sweep(const std::string& root) {
  std::error_code error;
  unsigned seen = 0;
  std::vector<fs::path> stale;
  for (fs::directory_iterator it(root, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(kPrefix) || ++seen > kSweptMax) continue;
    struct stat st {};
    if (::lstat(it->path().c_str(), &st) != 0 || !S_ISDIR(st.st_mode) || st.st_uid != ::geteuid()) {
      continue;
    }
    const UniqueFd fd(::open((it->path() / "lock").c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    if (fd && lock(fd.get())) stale.push_back(it->path());
  }
  for (const fs::path& path : stale) fs::remove_all(path, error);
}

bool usable_folder(const std::string& path) {
  struct stat st {};
  return !path.empty() && path.front() == '/' && ::stat(path.c_str(), &st) == 0 &&
         S_ISDIR(st.st_mode) && ::access(path.c_str(), W_OK | X_OK) == 0;
}

}  // namespace

ScratchDir& ScratchDir::operator=(ScratchDir&& other) noexcept {
  if (this != &other) {
    remove();
    path_ = std::exchange(other.path_, {});
    lock_ = std::move(other.lock_);
  }
  return *this;
}

Result<ScratchDir> ScratchDir::create(const std::string& root) {
  std::error_code error;
  fs::create_directories(root, error);
  if (error) return Status::from_errno("mkdir", error.value());
  sweep(root);
  // A sweeper may take the new lock file's moment of freedom for a left-over: then make another.
  for (int attempt = 0; attempt < 8; ++attempt) {
    std::string path = root + "/" + std::string(kPrefix) + "XXXXXX";
    if (::mkdtemp(path.data()) == nullptr) return Status::from_errno("mkdtemp");
    ScratchDir scratch;
    scratch.path_ = path;
    const std::string lock_path = path + "/lock";
    scratch.lock_ =
        UniqueFd(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    struct stat st {};
    if (scratch.lock_ && lock(scratch.lock_.get()) && ::stat(lock_path.c_str(), &st) == 0) {
      return scratch;
    }
  }
  return Status{Code::kBusy, "another run removes every folder"};
}

void ScratchDir::remove() {
  if (path_.empty()) return;
  std::error_code error;
  fs::remove_all(std::exchange(path_, {}), error);
  lock_.reset();
}

bool is_memory_filesystem(const std::string& folder) {
  struct statfs st {};
  if (::statfs(folder.c_str(), &st) != 0) return false;
  return st.f_type == TMPFS_MAGIC || st.f_type == RAMFS_MAGIC || st.f_type == HUGETLBFS_MAGIC;
}

std::string runtime_root() {
  constexpr std::size_t kRootMax = 64;  // a socket's path has at most 107 bytes
  for (const char* name : {"XDG_RUNTIME_DIR", "TMPDIR"}) {
    std::string root = environment(name);
    if (root.size() <= kRootMax && usable_folder(root)) return root;
  }
  return "/tmp";
}

std::string store_root() {
  std::vector<std::string> candidates;
  if (const std::string cache = environment("XDG_CACHE_HOME"); !cache.empty()) {
    candidates.push_back(cache + "/kvmem");
  } else if (const std::string home = environment("HOME"); !home.empty()) {
    candidates.push_back(home + "/.cache/kvmem");
  }
  candidates.emplace_back("/var/tmp");
  for (const std::string& candidate : candidates) {
    std::error_code error;
    if (candidate.front() != '/') continue;
    fs::create_directories(candidate, error);
    if (usable_folder(candidate) && !is_memory_filesystem(candidate)) return candidate;
  }
  return "";
}

}  // namespace kvmem::cli
