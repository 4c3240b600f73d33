// Messages with descriptors over a SOCK_SEQPACKET socket, with deadlines.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/unique_handle.h"
#include "wire/protocol.h"

namespace kvmem {

// Descriptors that came beside a message; those not taken are closed.
struct Descriptors {
  UniqueFd fd[wire::kFdsMax];
  unsigned count = 0;
};

// Connects to the Unix socket at `path`; never waits for a daemon that does not accept.
// The socket, or -errno.
int connect_to(const char* path);

// 0 or -errno. -EPIPE, -ECONNRESET: the peer is gone.
int send_message(int socket, const void* message, std::size_t size_bytes, const int* fds,
                 unsigned fd_count, std::uint64_t deadline_ns);

// Bytes received, 0 when the peer closed, or -errno (-ETIMEDOUT at the deadline).
// `received` may be null where no descriptor is expected.
long receive_message(int socket, void* buffer, std::size_t size_bytes, Descriptors* received,
                     std::uint64_t deadline_ns);

// Sends one request and receives its reply. 0: `reply` is the daemon's answer, an error or not;
// -EPIPE, -EPROTO: no answer came, or none that can be understood. `received` may be null.
int converse(int socket, const wire::Request& request, const int* fds, unsigned fd_count,
             wire::Reply* reply, Descriptors* received, std::uint64_t timeout_ns);

}  // namespace kvmem
