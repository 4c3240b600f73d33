// BudgetFile: what is left of the write budget, in a small file, so that a restart is no way to
// write more. It says how much was saved and when, by the wall clock: what comes in while no daemon
// runs counts. Written by a worker once a second at most; what is written in the second before a
// crash is not counted.
//
// Loop only.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "base/unique_handle.h"
#include "os/workers.h"

namespace kvmem::cache {

class BudgetFile {
 public:
  struct State {
    std::uint64_t wall_ms = 0;
    std::uint64_t saved_bytes = 0;
    bool operator==(const State&) const = default;
  };

  // An empty path: nothing is kept.
  BudgetFile(std::string path, os::Executor& workers);
  // REQUIRES: idle().
  ~BudgetFile();
  BudgetFile(const BudgetFile&) = delete;
  BudgetFile& operator=(const BudgetFile&) = delete;

  // Waits for the disk. None: there is no such file, or it is not whole.
  std::optional<State> read() const;
  // If one is being written, it is this one's turn later, or that of one after it.
  void write(const State& state);
  bool idle() const { return !busy_; }

 private:
  struct Write : os::Job {
    BudgetFile* file = nullptr;
    State state;
    bool failed = false;
  };
  bool write_now(const State& state) const;  // any thread, one at a time

  const std::string path_;
  os::Executor& workers_;
  Write write_;
  std::optional<State> next_;
  bool busy_ = false;
  bool given_up_ = false;  // the disk does not take it
};

}  // namespace kvmem::cache
