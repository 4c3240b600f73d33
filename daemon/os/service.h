// What a service manager and kvmemd say to each other, without libsystemd: readiness and watchdog
// by datagrams to NOTIFY_SOCKET, listening sockets by LISTEN_FDS. Without a manager every call is a
// successful no-op.
//
// Not thread-safe against setenv; the environment is read by Service::from_environment(), once.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/unique_handle.h"

namespace kvmem::os {

class Service {
 public:
  // Reads NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID, LISTEN_FDS and LISTEN_PID, and removes them
  // so that no child takes them for its own. A manager whose socket cannot be reached is no
  // manager.
  static Service from_environment();

  // Sends "KEY=VALUE" lines, e.g. "READY=1", "STATUS=...", "WATCHDOG=1". Never blocks: the caller
  // is the loop. kBusy when the manager's queue is full (a lost WATCHDOG=1 is made up by the next).
  Status notify(std::string_view lines) const;

  Status ready() const { return notify("READY=1"); }
  Status stopping() const { return notify("STOPPING=1"); }
  Status watchdog() const { return notify("WATCHDOG=1"); }
  Status status(std::string_view text) const { return notify("STATUS=" + std::string(text)); }
  // Type=notify-reload and plain notify alike: RELOADING=1 with its clock, READY=1 after.
  Status reloading() const;

  bool managed() const { return static_cast<bool>(socket_); }
  // How often watchdog() must be called at the latest; 0: not asked for. A caller takes half of it.
  std::uint64_t watchdog_interval_ns() const { return watchdog_interval_ns_; }
  // The sockets handed over, in the manager's order, close-on-exec. Moves them out.
  std::vector<UniqueFd> take_listen_fds() { return std::move(listen_fds_); }

 private:
  UniqueFd socket_;  // connected to NOTIFY_SOCKET
  std::uint64_t watchdog_interval_ns_ = 0;
  std::vector<UniqueFd> listen_fds_;
};

}  // namespace kvmem::os
