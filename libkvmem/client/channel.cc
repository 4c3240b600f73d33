#include "client/channel.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "client/sys.h"

namespace kvmem {

namespace {

// 0 when `events` are there, -ETIMEDOUT, or -errno.
int wait_for(int socket, short events, std::uint64_t deadline_ns) {
  for (;;) {
    const std::uint64_t now = sys::now_ns();
    if (now >= deadline_ns) return -ETIMEDOUT;
    pollfd p{socket, events, 0};
    const long n = sys::poll(&p, 1, static_cast<std::int64_t>(deadline_ns - now));
    if (n > 0) return 0;
    if (n < 0 && n != -EINTR) return static_cast<int>(n);
  }
}

// An answer that is on its way costs less to wait for than to sleep and be woken for. The processor
// is the daemon's if it wants it.
constexpr std::uint64_t kSoonNs = 50'000;
void wait_a_little(int socket) {
  const std::uint64_t end = sys::now_ns() + kSoonNs;
  pollfd p{socket, POLLIN, 0};
  while (sys::poll(&p, 1, 0) == 0 && sys::now_ns() < end) sys::call(SYS_sched_yield);
}

bool is_hangup(int error) {
  return error == -EPIPE || error == -ECONNRESET || error == -ENOTCONN || error == -ETIMEDOUT;
}

}  // namespace

int connect_to(const char* path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::size_t length = strlen(path);
  if (length == 0 || length >= sizeof address.sun_path) return -ENAMETOOLONG;
  memcpy(address.sun_path, path, length + 1);
  const long fd = sys::call(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return static_cast<int>(fd);
  const long connected = sys::call(SYS_connect, fd, sys::arg(&address),
                                   static_cast<long>(offsetof(sockaddr_un, sun_path) + length + 1));
  if (connected < 0) {
    sys::close(static_cast<int>(fd));
    return static_cast<int>(connected);  // -EAGAIN: its backlog is full
  }
  return static_cast<int>(fd);
}

int send_message(int socket, const void* message, std::size_t size_bytes, const int* fds,
                 unsigned fd_count, std::uint64_t deadline_ns) {
  iovec part{const_cast<void*>(message), size_bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * wire::kFdsMax)] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (fd_count > 0) {
    if (fd_count > wire::kFdsMax) return -EINVAL;
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
    cmsghdr* c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
    memcpy(CMSG_DATA(c), fds, sizeof(int) * fd_count);
  }
  for (;;) {
    const long n = sys::call(SYS_sendmsg, socket, sys::arg(&header), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n == static_cast<long>(size_bytes)) return 0;
    if (n >= 0) return -EMSGSIZE;
    if (n == -EINTR) continue;
    if (n != -EAGAIN) return static_cast<int>(n);
    if (const int error = wait_for(socket, POLLOUT, deadline_ns); error != 0) return error;
  }
}

long receive_message(int socket, void* buffer, std::size_t size_bytes, Descriptors* received,
                     std::uint64_t deadline_ns) {
  for (;;) {
    iovec part{buffer, size_bytes};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * wire::kFdsMax)] = {};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    if (received != nullptr) {
      header.msg_control = control;
      header.msg_controllen = sizeof control;
    }
    const long n =
        sys::call(SYS_recvmsg, socket, sys::arg(&header), MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n == -EINTR) continue;
    if (n == -EAGAIN) {
      if (const int error = wait_for(socket, POLLIN, deadline_ns); error != 0) return error;
      continue;
    }
    if (n < 0) return n;
    if (received != nullptr) {
      for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        const unsigned count = static_cast<unsigned>((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (unsigned i = 0; i < count && received->count < wire::kFdsMax; ++i) {
          int fd = -1;
          memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
          received->fd[received->count++].reset(fd);
        }
      }
    }
    // A descriptor that did not fit the table was dropped by the kernel.
    if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) return -EMFILE;
    return n;
  }
}

int converse(int socket, const wire::Request& request, const int* fds, unsigned fd_count,
             wire::Reply* reply, Descriptors* received, std::uint64_t timeout_ns) {
  const std::uint64_t deadline_ns = sys::now_ns() + timeout_ns;
  const int error = send_message(socket, &request, sizeof request, fds, fd_count, deadline_ns);
  // A daemon that closes at once may have left the reason.
  if (error != 0 && error != -EPIPE) return is_hangup(error) ? -EPIPE : error;
  wait_a_little(socket);
  const long n = receive_message(socket, reply, sizeof *reply, received, deadline_ns);
  if (n == -EMFILE) return -EMFILE;
  if (n != static_cast<long>(sizeof *reply)) return -EPIPE;
  return reply->version != wire::kProtocolVersion || reply->error > 0 ? -EPROTO : 0;
}

}  // namespace kvmem
