#include "os/socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

namespace kvmem::os {
namespace {

// A process that was killed listens until the kernel has taken down its rings.
bool is_peer_gone(int fd) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.pid > 0 &&
         ::kill(peer.pid, 0) != 0 && errno == ESRCH;
}

}  // namespace

Result<UniqueFd> listen_at(const std::string& path, unsigned mode) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return Status(Code::kInvalid, "socket path longer than 107 bytes");
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const auto* sa = reinterpret_cast<const sockaddr*>(&address);

  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return Status::from_errno("socket");
  if (::bind(fd.get(), sa, sizeof address) != 0) {
    if (errno != EADDRINUSE) return Status::from_errno("bind");
    UniqueFd probe(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    const bool is_answered = probe && ::connect(probe.get(), sa, sizeof address) == 0;
    if (is_answered && !is_peer_gone(probe.get())) {
      return Status(Code::kBusy, "another kvmemd listens on this socket");
    }
    if (!is_answered && errno != ECONNREFUSED) return Status::from_errno("bind");
    if (::unlink(path.c_str()) != 0 || ::bind(fd.get(), sa, sizeof address) != 0) {
      return Status::from_errno("bind");
    }
  }
  if (::chmod(path.c_str(), mode) != 0) return Status::from_errno("chmod");
  if (::listen(fd.get(), 64) != 0) return Status::from_errno("listen");
  return fd;
}

Result<UniqueFd> accept_from(int listener) {
  UniqueFd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd) {
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
      return Status(Code::kBusy, "accept");
    return Status::from_errno("accept");
  }
  return fd;
}

Result<Peer> peer_of(int fd) {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0)
    return Status::from_errno("SO_PEERCRED");
  return Peer{credentials.pid, credentials.uid, credentials.gid};
}

Result<Received> receive(int fd, std::span<std::byte> buffer) {
  iovec part{buffer.data(), buffer.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kSocketFdsMax)];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t n = ::recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (n < 0) {
    if (errno == EAGAIN || errno == EINTR) return Status(Code::kBusy, "recvmsg");
    if (errno == ECONNRESET) return Received{};
    return Status::from_errno("recvmsg");
  }
  Received received;
  received.size_bytes = static_cast<std::size_t>(n);
  received.truncated = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int passed = -1;
      std::memcpy(&passed, CMSG_DATA(c) + i * sizeof(int), sizeof passed);
      UniqueFd owned(passed);
      if (received.fd_count < kSocketFdsMax) received.fds[received.fd_count++] = std::move(owned);
    }
  }
  return received;
}

Status send(int fd, std::span<const std::byte> bytes, std::span<const int> fds) {
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kSocketFdsMax)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    if (fds.size() > kSocketFdsMax) return Status(Code::kInvalid, "too many descriptors");
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(c), fds.data(), sizeof(int) * fds.size());
  }
  if (::sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    if (errno == EAGAIN || errno == ENOBUFS) return Status(Code::kBusy, "sendmsg");
    if (errno == EPIPE || errno == ECONNRESET) return Status(Code::kPeerGone, "sendmsg");
    return Status::from_errno("sendmsg");
  }
  return {};
}

}  // namespace kvmem::os
