// Signals that a command waits for with its other events, instead of being ended by them.
//
// While it lives they are blocked; as it goes they are as before, and what came meanwhile is
// forgotten.
#pragma once

#include <signal.h>

#include <initializer_list>

#include "base/unique_handle.h"

namespace kvmem::cli {

class Signals {
 public:
  Signals(std::initializer_list<int> signals);
  ~Signals();
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  int fd() const { return fd_.get(); }  // can be read when take() has one
  int take();                           // 0: none

  // Has the signal do to this process what it does to one that does not wait for it. Returns when
  // a signal that stops has been followed by one that continues.
  void suffer(int signal);

 private:
  sigset_t original_{};
  UniqueFd fd_;
};

// Waits until one of the descriptors can be read, for at most so long. Negative ones are left out.
void wait_readable(std::initializer_list<int> fds, double seconds_max);

}  // namespace kvmem::cli
