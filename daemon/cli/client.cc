#include "cli/client.h"

#include <grp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <system_error>

#include "base/unique_handle.h"
#include "cli/exit_code.h"
#include "cli/text.h"
#include "config/config.h"

namespace kvmem::cli {
namespace {

Answer failed(int exit_code, std::string error) { return {exit_code, std::move(error), {}}; }

std::string reason(int error) { return std::system_category().message(error); }

// How to be let in: by the group that the socket belongs to.
std::string permission_advice(const std::string& socket) {
  struct stat st {};
  if (::stat(socket.c_str(), &st) != 0)
    return "ask whoever runs the daemon for access to its folder";
  std::array<char, 4096> buffer{};
  group entry{};
  group* found = nullptr;
  ::getgrgid_r(st.st_gid, &entry, buffer.data(), buffer.size(), &found);
  const std::string name = found != nullptr ? found->gr_name : std::to_string(st.st_gid);
  if ((st.st_mode & 060) != 060) return "the daemon's daemon.mode lets only its own user in";
  if (st.st_gid == 0) {
    return "it belongs to root alone; give it a group with daemon.group, or use a daemon of your "
           "own (kvmemctl run --private)";
  }
  return "join the group that owns the socket (sudo adduser YOU " + name + ") and log in again";
}

Answer connect_failed(const std::string& socket, int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return failed(kExitNoDaemon, "no daemon at " + socket +
                                       ": start one (systemctl start kvmemd), run the engine by "
                                       "kvmemctl run -- ENGINE, or name another with --socket");
    case ECONNREFUSED:
      return failed(kExitNoDaemon,
                    "the daemon at " + socket +
                        " is gone: start it again (systemctl restart kvmemd) and see its log "
                        "(journalctl -u kvmemd)");
    case EACCES:
    case EPERM:
      return failed(kExitPermission,
                    "you may not connect to " + socket + ": " + permission_advice(socket));
    case EPROTOTYPE:
      return failed(kExitNoDaemon, socket + " is not kvmemd's socket: name it with --socket");
    case EAGAIN:
    case EINPROGRESS:
      return failed(kExitNoDaemon, "the daemon at " + socket +
                                       " takes no connection: see its log (journalctl -u kvmemd)");
    default:
      return failed(kExitNoDaemon, "cannot connect to " + socket + ": " + reason(error));
  }
}

Answer silent(const std::string& socket, int error) {
  if (error == EAGAIN || error == EWOULDBLOCK) {
    return failed(kExitNoDaemon, "the daemon at " + socket +
                                     " does not answer: see its log (journalctl -u kvmemd)");
  }
  return failed(kExitNoDaemon, "the daemon at " + socket + " hung up: " + reason(error));
}

// The reply and the one descriptor that may come with it.
bool receive(int fd, wire::Reply* reply, std::size_t* size_bytes, UniqueFd* memory) {
  iovec part{reply, sizeof(*reply)};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * wire::kFdsMax)> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t got = 0;
  do {
    got = ::recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return false;
  *size_bytes = static_cast<std::size_t>(got);
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int received = -1;
      std::memcpy(&received, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      UniqueFd owned(received);
      if (!*memory) *memory = std::move(owned);
    }
  }
  return true;
}

// By read, not by mapping: a file that shrinks must not become a signal.
bool read_all(int fd, std::uint64_t size_bytes, std::string* out) {
  if (size_bytes > kJsonMaxBytes) return false;
  out->resize(size_bytes);
  for (std::size_t done = 0; done < size_bytes;) {
    const ssize_t got =
        ::pread(fd, out->data() + done, size_bytes - done, static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    done += static_cast<std::size_t>(got);
  }
  return true;
}

}  // namespace

std::string socket_path(const std::string& option) {
  if (!option.empty()) return option;
  const auto environment = [](const char* name) -> std::string {
    const char* const value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe)
    return value != nullptr ? value : "";
  };
  if (std::string socket = environment("KVMEM_SOCKET"); !socket.empty()) return socket;
  if (const std::string runtime = environment("XDG_RUNTIME_DIR"); runtime.starts_with('/')) {
    std::string own = runtime + "/kvmem/kvmemd.sock";
    struct stat st {};
    if (::stat(own.c_str(), &st) == 0 && S_ISSOCK(st.st_mode)) return own;
  }
  return config::kDefaultSocket;
}

Answer ask(const std::string& socket, const Question& question, unsigned timeout_ms) {
  return Asking(socket, question, timeout_ms).finish();
}

Asking::Asking(std::string socket, const Question& question, unsigned timeout_ms)
    : socket_(std::move(socket)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket_.empty() || socket_.size() >= sizeof(address.sun_path)) {
    failure_ =
        failed(kExitUsage, "a socket's path has 1 to " +
                               std::to_string(sizeof(address.sun_path) - 1) + " bytes: " + socket_);
    return;
  }
  std::memcpy(address.sun_path, socket_.data(), socket_.size());

  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd) {
    failure_ = failed(kExitFailed, "cannot make a socket: " + reason(errno));
    return;
  }
  const timeval timeout{.tv_sec = timeout_ms / 1000,
                        .tv_usec = static_cast<suseconds_t>(timeout_ms % 1000) * 1000};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    failure_ = connect_failed(socket_, errno);
    return;
  }

  wire::Request request;
  request.op = wire::Op::kControl;
  request.control = question.op;
  request.region_id = question.target.region_id;
  request.first_page = question.target.first_page;
  request.page_count = question.target.page_count;
  request.pid = question.pid;
  if (question.tag.size() >= sizeof(request.tag)) {
    failure_ = failed(kExitUsage, "nothing has so long a name: " + printable(question.tag));
    return;
  }
  std::memcpy(request.tag, question.tag.data(), question.tag.size());
  if (::send(fd.get(), &request, sizeof(request), MSG_NOSIGNAL) != sizeof(request)) {
    failure_ = silent(socket_, errno);
    return;
  }
  fd_ = std::move(fd);
}

Answer Asking::finish() {
  if (!fd_) return std::move(failure_);
  const UniqueFd fd = std::move(fd_);
  wire::Reply reply;
  UniqueFd memory;
  std::size_t size_bytes = 0;
  if (!receive(fd.get(), &reply, &size_bytes, &memory)) return silent(socket_, errno);
  if (size_bytes == 0) return silent(socket_, ECONNRESET);
  if (size_bytes != sizeof(reply) || reply.version != wire::kProtocolVersion) {
    return failed(kExitFailed, "the daemon at " + socket_ +
                                   " speaks another version: use the kvmemctl installed with it");
  }
  reply.message[sizeof(reply.message) - 1] = '\0';
  if (reply.error != 0) {
    const std::string message = printable(reply.message);
    const int exit_code =
        reply.error == -EACCES || reply.error == -EPERM ? kExitPermission : kExitFailed;
    return failed(exit_code, message.empty() ? "refused: " + reason(-reply.error) : message);
  }
  std::string text;
  Answer answer;
  if (memory && read_all(memory.get(), reply.size_bytes, &text)) {
    answer.json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  }
  if (!answer.json.is_object()) {
    return failed(kExitFailed, "the daemon at " + socket_ + " sent an answer that cannot be read");
  }
  return answer;
}

bool parse_target(const std::string& text, Target* out) {
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto number = [&](std::uint64_t* value) {
    const auto result = std::from_chars(at, end, *value);
    if (result.ec != std::errc{}) return false;
    at = result.ptr;
    return true;
  };
  *out = {};
  if (!number(&out->region_id)) return false;
  if (at == end) return true;
  if (*at++ != ':' || !number(&out->first_page)) return false;
  std::uint64_t last_page = out->first_page;
  if (at != end && (*at++ != '-' || !number(&last_page))) return false;
  if (at != end || last_page < out->first_page || last_page >= wire::kRegionPagesMax) return false;
  out->page_count = last_page - out->first_page + 1;
  return true;
}

}  // namespace kvmem::cli
