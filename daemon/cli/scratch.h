// A private folder (0700) for one run, removed when it ends, however it ends.
//
// A lock file in it is held as long as any process of the run lives. A run that was cut off (power,
// kill -9 of everything) leaves its folder behind; the next run in the same place finds its lock
// free and removes it.
#pragma once

#include <string>
#include <utility>

#include "base/status.h"
#include "base/unique_handle.h"

namespace kvmem::cli {

class ScratchDir {
 public:
  // Below `root`, which is created when missing; sweeps left-overs of earlier runs first.
  static Result<ScratchDir> create(const std::string& root);

  ScratchDir() = default;
  ScratchDir(ScratchDir&& other) noexcept { *this = std::move(other); }
  ScratchDir& operator=(ScratchDir&& other) noexcept;
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;
  ~ScratchDir() { remove(); }

  const std::string& path() const { return path_; }
  bool empty() const { return path_.empty(); }
  int lock_fd() const { return lock_.get(); }
  void remove();
  // Leaves the folder where it is.
  void keep() { path_.clear(); }

 private:
  std::string path_;
  UniqueFd lock_;
};

// tmpfs and the like: what is stored there is not out of DRAM.
bool is_memory_filesystem(const std::string& folder);

// XDG_RUNTIME_DIR if it can be used, else TMPDIR or /tmp.
std::string runtime_root();

// For the page store: XDG_CACHE_HOME or ~/.cache, else /var/tmp; empty when they are all in memory.
std::string store_root();

}  // namespace kvmem::cli
