#include "client/session.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "client/settings.h"
#include "client/sys.h"
#include "client/userfault.h"

namespace kvmem {

namespace {

// Long enough for a daemon on a loaded machine, short enough that an engine behind a stopped one
// goes on without it.
constexpr std::uint64_t kOpenTimeoutNs = 5'000'000'000;
// A daemon that is slow is waited for, as its faults are: hanging up would tell it that the engine
// is dead. The bound is for one that will never answer.
constexpr std::uint64_t kReplyTimeoutNs = 600'000'000'000;

}  // namespace

Status Session::hello(std::uint16_t flags, Descriptors* received) {
  if (g_settings.socket_path[0] == 0) {
    return Status(Code::kInvalid, "KVMEM_SOCKET is longer than a socket's name may be");
  }
  const int socket = connect_to(g_settings.socket_path);
  if (socket < 0) {
    switch (-socket) {
      case ENOENT:
      case ECONNREFUSED:
        return Status(Code::kPeerGone, "no kvmemd answers there (start it, or set KVMEM_SOCKET)",
                      -socket);
      case EACCES:
      case EPERM:
        return Status(Code::kPeerGone, "this user may not connect to kvmemd", -socket);
      default:
        return Status(Code::kErrno, "connecting to kvmemd failed", -socket);
    }
  }
  request_.reset(socket);
  wire::Request request;
  request.op = wire::Op::kHello;
  request.flags = flags;
  request.session_id = id_;
  request.pid = sys::pid();
  memcpy(request.tag, g_settings.tag, sizeof request.tag);
  const int lease = lease_.get();
  wire::Reply reply;
  int error = converse(socket, request, &lease, flags != 0 && lease >= 0 ? 1 : 0, &reply, received,
                       kOpenTimeoutNs);
  if (error == 0) error = reply.error;
  if (error == 0) {
    id_ = reply.session_id;
    return {};
  }
  request_.reset();
  if (error == -EPIPE) return Status(Code::kPeerGone, "kvmemd hung up", EPIPE);
  if (error == -EMFILE) return Status(Code::kErrno, "too many open files", EMFILE);
  if (error == -EAGAIN || error == -EBUSY) return Status(Code::kErrno, "kvmemd is busy", -error);
  return Status(Code::kInvalid, "kvmemd refused this process", -error);
}

Status Session::arm() {
  int pair[2] = {-1, -1};
  const long made = sys::call(SYS_socketpair, AF_UNIX,
                              SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sys::arg(pair));
  if (made < 0) return Status(Code::kErrno, "socketpair", static_cast<int>(-made));
  UniqueFd ours(pair[0]), theirs(pair[1]);
  wire::Request request;
  request.op = wire::Op::kArm;
  request.session_id = id_;
  const int fds[] = {userfault_.get(), theirs.get()};
  wire::Reply reply;
  int error = converse(request_.get(), request, fds, 2, &reply, nullptr, kOpenTimeoutNs);
  if (error == 0) error = reply.error;
  if (error != 0) {
    request_.reset();
    if (error == -EPIPE) return Status(Code::kPeerGone, "kvmemd hung up", EPIPE);
    return Status(Code::kInvalid, "kvmemd refused this process's userfaultfd", -error);
  }
  agent_ = std::move(ours);
  state_ = State::kOpen;
  return {};
}

Status Session::open() {
  id_ = 0;
  Descriptors received;
  KV_TRY(hello(0, &received));
  // The lease comes last; a daemon without the device sends it alone.
  int device = -1;
  if (received.count == 2) device = received.fd[0].get();
  if (received.count > 0) lease_ = std::move(received.fd[received.count - 1]);
  Result<UniqueFd> userfault = open_userfault(device);
  if (!userfault.ok()) {
    end();
    return userfault.status();
  }
  userfault_ = *std::move(userfault);
  const Status armed = arm();
  if (!armed.ok()) end();
  return armed;
}

Status Session::resume() {
  Descriptors received;
  KV_TRY(hello(wire::Request::kResume, &received));
  return arm();  // with the userfaultfd and the lease it has
}

int Session::request(wire::Request& request, const int* fds, unsigned fd_count, wire::Reply* reply,
                     Descriptors* received) {
  if (state_ != State::kOpen) return -EPIPE;
  request.session_id = id_;
  const int error =
      converse(request_.get(), request, fds, fd_count, reply, received, kReplyTimeoutNs);
  // After a reply that is late or not understood the next one would answer the wrong request.
  if (error == -EPIPE || error == -EPROTO) {
    interrupt();
    return -EPIPE;
  }
  if (error != 0) return error;
  // An answer, whatever its number: to the caller -EPIPE means that there was none.
  return reply->error == -EPIPE ? -EIO : reply->error;
}

void Session::interrupt() {
  request_.reset();
  agent_.reset();
  if (state_ != State::kOpen) return;
  state_ = State::kInterrupted;
  interrupted_ns_ = sys::now_ns();
}

void Session::end() {
  interrupt();
  userfault_.reset();
  lease_.reset();
  id_ = 0;
  state_ = State::kNone;
}

void Session::forget(bool close_descriptors) {
  if (!close_descriptors) {
    (void)lease_.release();
    (void)userfault_.release();
    (void)request_.release();
    (void)agent_.release();
  }
  end();
}

}  // namespace kvmem
