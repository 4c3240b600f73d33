// Session: the agent thread's conversation with the daemon. Agent thread only.
//
//   none        -> open         Hello, Arm
//   open        -> interrupted  the daemon hung up, or did not answer in time
//   interrupted -> open         Hello{kResume}, Arm; then the owner gives its regions back
//   open|interrupted -> none    end(), or the daemon refused to resume
//
// While interrupted the userfaultfd and the lease are kept: threads that touch an absent page wait,
// and the daemon keeps what it stored.
#pragma once

#include "base/status.h"
#include "base/unique_handle.h"
#include "client/channel.h"
#include "wire/protocol.h"

namespace kvmem {

class Session {
 public:
  enum class State { kNone, kOpen, kInterrupted };

  // REQUIRES: state() == kNone.
  Status open();
  // REQUIRES: state() == kInterrupted. kPeerGone, kErrno: try again; any other code: refused, for
  // good; the state stays interrupted until end().
  Status resume();
  // Sends `request` (version and session are filled in) and waits for its reply. An error in the
  // reply becomes 0 > result == reply->error. A conversation that fails interrupts the session and
  // returns -EPIPE. `fds` are lent, `received` may be null.
  int request(wire::Request& request, const int* fds, unsigned fd_count, wire::Reply* reply,
              Descriptors* received);
  void interrupt();
  void end();
  // After fork, in a child whose descriptor table came from the parent (`close_descriptors`) or
  // not: forgets the parent's session.
  void forget(bool close_descriptors);

  State state() const { return state_; }
  // When it was interrupted the last time, of CLOCK_MONOTONIC.
  std::uint64_t interrupted_ns() const { return interrupted_ns_; }
  int userfault() const { return userfault_.get(); }
  int request_socket() const { return request_.get(); }
  int agent_socket() const { return agent_.get(); }

 private:
  Status hello(std::uint16_t flags, Descriptors* received);
  Status arm();

  State state_ = State::kNone;
  std::uint64_t id_ = 0;
  std::uint64_t interrupted_ns_ = 0;
  UniqueFd lease_;  // an open file whose lock tells that the session lives
  UniqueFd userfault_;
  UniqueFd request_;
  UniqueFd agent_;
};

}  // namespace kvmem
