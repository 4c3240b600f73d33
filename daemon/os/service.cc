#include "os/service.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <system_error>

namespace kvmem::os {
namespace {

constexpr int kListenFdFirst = 3;  // sd_listen_fds(3)
constexpr int kListenFdsMax = 16;

std::optional<std::string> take_env(const char* name) {
  const char* const value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): before any thread
  if (value == nullptr) return std::nullopt;
  std::string copy = value;
  ::unsetenv(name);  // NOLINT(concurrency-mt-unsafe)
  return copy;
}

std::optional<std::uint64_t> number(const std::optional<std::string>& text) {
  if (!text) return std::nullopt;
  std::uint64_t value = 0;
  const char* const end = text->data() + text->size();
  const auto result = std::from_chars(text->data(), end, value);
  if (result.ec != std::errc{} || result.ptr != end) return std::nullopt;
  return value;
}

// "/path" or "@abstract"; anything else (vsock: ...) is not ours.
UniqueFd connect_to(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() < 2 || path.size() >= sizeof(address.sun_path)) return {};
  if (path[0] != '/' && path[0] != '@') return {};
  std::memcpy(address.sun_path, path.data(), path.size());
  if (path[0] == '@') address.sun_path[0] = '\0';
  UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  if (!fd || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0) return {};
  return fd;
}

bool for_us(const std::optional<std::string>& pid) {
  const auto value = number(pid);
  return value && *value == static_cast<std::uint64_t>(::getpid());
}

}  // namespace

Service Service::from_environment() {
  Service service;
  const auto notify_socket = take_env("NOTIFY_SOCKET");
  const auto watchdog_usec = take_env("WATCHDOG_USEC");
  const auto watchdog_pid = take_env("WATCHDOG_PID");
  const auto listen_fds = take_env("LISTEN_FDS");
  const auto listen_pid = take_env("LISTEN_PID");
  static_cast<void>(take_env("LISTEN_FDNAMES"));

  if (notify_socket) service.socket_ = connect_to(*notify_socket);
  if (service.socket_ && watchdog_usec && (!watchdog_pid || for_us(watchdog_pid))) {
    service.watchdog_interval_ns_ = number(watchdog_usec).value_or(0) * 1000;
  }
  const auto count = number(listen_fds);
  if (count && *count <= kListenFdsMax && for_us(listen_pid)) {
    for (int fd = kListenFdFirst; fd < kListenFdFirst + static_cast<int>(*count); ++fd) {
      if (::fcntl(fd, F_SETFD, FD_CLOEXEC) == 0) service.listen_fds_.emplace_back(fd);
    }
  }
  return service;
}

Status Service::notify(std::string_view lines) const {
  if (!socket_) return {};
  const ssize_t sent = ::send(socket_.get(), lines.data(), lines.size(), MSG_NOSIGNAL);
  if (sent == static_cast<ssize_t>(lines.size())) return {};
  if (errno == EAGAIN || errno == ENOBUFS)
    return {Code::kBusy, "the service manager does not read"};
  return Status::from_errno("send to NOTIFY_SOCKET");
}

Status Service::reloading() const {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const std::uint64_t us = static_cast<std::uint64_t>(now.tv_sec) * 1'000'000 +
                           static_cast<std::uint64_t>(now.tv_nsec) / 1000;
  return notify("RELOADING=1\nMONOTONIC_USEC=" + std::to_string(us));
}

}  // namespace kvmem::os
