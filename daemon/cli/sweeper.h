// Sweeper: a process that cleans up after a `kvmemctl run` that was killed.
//
// It hears of the engine's and the daemon's process ids through a pipe. A pipe that closes without
// a farewell means that kvmemctl is gone: then it waits for the engine to end, stops the daemon and
// removes the files. After a farewell it just ends.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/unique_handle.h"

namespace kvmem::cli {

class Sweeper {
 public:
  Sweeper() = default;
  // Forks. Descriptors that the caller holds stay open in the sweeper when they are in `keep_fds`
  // (locks); all others are closed there. Without memory for a process there is no sweeper.
  static Sweeper start(const std::vector<std::string>& paths, const std::vector<int>& keep_fds);

  void engine_is(pid_t pid) const { tell('e', pid); }
  void daemon_is(pid_t pid) const { tell('d', pid); }
  // All is cleaned up. Reaps the process.
  void dismiss();

  pid_t pid() const { return pid_; }

 private:
  void tell(char what, pid_t pid) const;

  UniqueFd pipe_;
  pid_t pid_ = -1;
};

}  // namespace kvmem::cli
