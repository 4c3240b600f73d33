// SOCK_SEQPACKET Unix sockets with descriptors and credentials. Everything is non-blocking.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/status.h"
#include "base/unique_handle.h"

namespace kvmem::os {

inline constexpr unsigned kSocketFdsMax = 4;

struct Peer {
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
};

struct Received {
  std::size_t size_bytes = 0;  // 0: the peer closed
  bool truncated = false;      // longer than the buffer: refuse it
  unsigned fd_count = 0;
  std::array<UniqueFd, kSocketFdsMax> fds;
};

// Binds and listens. A stale socket file that nobody listens on is replaced; kBusy when a daemon
// answers there.
Result<UniqueFd> listen_at(const std::string& path, unsigned mode);
Result<UniqueFd> accept_from(int listener);
Result<Peer> peer_of(int fd);
// kBusy: nothing to read, or no room to send.
Result<Received> receive(int fd, std::span<std::byte> buffer);
Status send(int fd, std::span<const std::byte> message, std::span<const int> fds = {});

}  // namespace kvmem::os
