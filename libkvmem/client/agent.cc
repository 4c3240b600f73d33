#include "client/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <new>

#include "client/notice.h"
#include "client/settings.h"

namespace kvmem {

constinit Lock g_agent_lock;

namespace {

constexpr std::uint64_t kBackoffMinNs = 10'000'000;
constexpr std::uint64_t kBackoffMaxNs = 1'000'000'000;
// Without its wake end (the engine closed it) the agent looks for calls this often.
constexpr std::int64_t kBlindPollNs = 20'000'000;
constexpr std::size_t kStackBytes = 256 * 1024;

enum CallState : std::uint32_t { kIdle, kPosted, kDone };

struct Call {
  int (*function)(void*) = nullptr;
  void* context = nullptr;
  int result = 0;
  sys::FutexWord state{kIdle};
};

struct Agent {
  AgentHandlers handlers{};
  bool running = false;  // guarded by g_agent_lock
  std::atomic<bool> is_private{false};
  int wake = -1;                 // the engine's end
  std::uint64_t wake_inode = 0;  // what must still be behind it
  int wake_agent = -1;           // the agent's end, in the table it started with
  bool calls_only = false;       // agent thread
  Call call;
};

constinit Agent agent;

// No destructor may run at exit: threads still allocate and free then.
alignas(Session) constinit unsigned char session_storage[sizeof(Session)] = {};

std::uint64_t inode_of(int fd) {
  struct stat s;
  if (sys::call(SYS_fstat, fd, sys::arg(&s)) != 0) return 0;
  return S_ISSOCK(s.st_mode) ? s.st_ino : 0;
}

// Out of the way of programs that count on small numbers; any number will do.
int move_up(int fd) {
  rlimit limit{};
  sys::call(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, sys::arg(&limit));
  const long floor = limit.rlim_cur > 1024 ? 1000 : static_cast<long>(limit.rlim_cur) - 16;
  if (floor < 3) return fd;
  const long moved = sys::call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, floor);
  if (moved < 0) return fd;
  sys::close(fd);
  return static_cast<int>(moved);
}

// Gives the calling thread a descriptor table of its own that holds `keep` alone, as the returned
// number; -1: refused, and nothing changed.
int take_private_table(int keep) {
#ifndef SYS_close_range
  constexpr long SYS_close_range = 436;
#endif
  constexpr unsigned kUnshare = 2;  // CLOSE_RANGE_UNSHARE
  if (sys::call(SYS_close_range, keep + 1, UINT_MAX, kUnshare) != 0) return -1;
  if (keep > 0) sys::call(SYS_close_range, 0, keep - 1, 0);
  // A stray write to standard error must not reach one of ours.
  for (int i = 0; i < 3 && keep > 2; ++i) sys::open("/dev/null", O_RDWR | O_CLOEXEC);
  return keep;
}

void serve_call() {
  Call& call = agent.call;
  if (call.state.load(std::memory_order_acquire) != kPosted) return;
  call.result = call.function(call.context);
  call.state.store(kDone, std::memory_order_release);  // pairs with run_on_agent's acquire
  sys::futex_wake(call.state, 1);
}

void serve_command() {
  wire::AgentCommand command;
  const long n = receive_message(session().agent_socket(), &command, sizeof command, nullptr, 0);
  if (n == -ETIMEDOUT) return;  // nothing there
  if (n != static_cast<long>(sizeof command) || command.version != wire::kProtocolVersion) {
    session().interrupt();
    return;
  }
  wire::AgentReply reply;
  reply.error = command.run_count <= wire::AgentCommand::kRunsMax
                    ? agent.handlers.on_command(command)
                    : -EINVAL;
  // A daemon that does not read its replies is as good as gone.
  if (send_message(session().agent_socket(), &reply, sizeof reply, nullptr, 0,
                   sys::now_ns() + kBackoffMaxNs) != 0) {
    session().interrupt();
  }
}

[[noreturn]] void serve(int wake) {
  std::uint64_t backoff_ns = kBackoffMinNs;
  std::uint64_t retry_at_ns = 0;
  bool is_blind = false;
  for (;;) {
    if (agent.calls_only) {
      const std::uint32_t seen = agent.call.state.load(std::memory_order_acquire);
      if (seen != kPosted) sys::futex_wait(agent.call.state, seen);
      serve_call();
      continue;
    }
    if (session().state() == Session::State::kInterrupted && !agent.handlers.needs_session()) {
      session().end();
    }
    std::int64_t timeout_ns = is_blind ? kBlindPollNs : -1;
    if (session().state() == Session::State::kInterrupted) {
      const std::uint64_t now = sys::now_ns();
      if (now >= retry_at_ns) {
        if (try_resume()) {
          detail("session resumed");
          backoff_ns = kBackoffMinNs;
          retry_at_ns = 0;
          continue;
        }
        retry_at_ns = sys::now_ns() + backoff_ns;
        if (backoff_ns < kBackoffMaxNs) backoff_ns *= 2;
      }
      const std::int64_t wait_ns = static_cast<std::int64_t>(retry_at_ns - sys::now_ns());
      if (timeout_ns < 0 || wait_ns < timeout_ns) timeout_ns = wait_ns > 0 ? wait_ns : 0;
    }
    // A request socket that becomes readable between requests has been closed.
    pollfd fds[3] = {{is_blind ? -1 : wake, POLLIN, 0},
                     {session().agent_socket(), POLLIN, 0},
                     {session().request_socket(), POLLIN, 0}};
    const long n = sys::poll(fds, 3, timeout_ns);
    if (n < 0 && n != -EINTR) sys::sleep_ns(kBackoffMinNs);  // out of memory: not in a busy loop
    if (fds[0].revents != 0) {
      char byte;
      const long got = sys::call(SYS_recvfrom, wake, sys::arg(&byte), 1, MSG_DONTWAIT, 0, 0);
      if (got == 0 || (got < 0 && got != -EAGAIN && got != -EINTR)) is_blind = true;
    }
    serve_call();
    // A call may have closed or replaced the sockets that were polled.
    if (fds[1].revents != 0 && session().agent_socket() == fds[1].fd) serve_command();
    if (fds[2].revents != 0 && session().request_socket() == fds[2].fd) {
      char byte;
      const long got =
          sys::call(SYS_recvfrom, fds[2].fd, sys::arg(&byte), 1, MSG_DONTWAIT | MSG_PEEK, 0, 0);
      if (got != -EAGAIN && got != -EINTR) session().interrupt();
    }
  }
}

void* agent_main(void*) {
  sys::call(SYS_prctl, PR_SET_NAME, sys::arg("kvmem"));
  const int kept = take_private_table(agent.wake_agent);
  if (kept >= 0) {
    descriptors_are_apart(sys::pid(), sys::tid());
    agent.is_private.store(true, std::memory_order_relaxed);
  }
  new (session_storage) Session;
  agent.call.state.store(kIdle, std::memory_order_release);
  sys::futex_wake(agent.call.state, 1);
  serve(agent.wake_agent);
}

void wait_until(CallState wanted) {
  Call& call = agent.call;
  for (;;) {
    const std::uint32_t seen = call.state.load(std::memory_order_acquire);
    if (seen == wanted) return;
    sys::futex_wait(call.state, seen);
  }
}

// REQUIRES g_agent_lock, which has blocked all signals: the agent inherits that.
int start() {
  int pair[2] = {-1, -1};
  const long made = sys::call(SYS_socketpair, AF_UNIX,
                              SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sys::arg(pair));
  if (made < 0) return static_cast<int>(made);
  agent.wake_agent = move_up(pair[0]);
  agent.wake = move_up(pair[1]);
  agent.wake_inode = inode_of(agent.wake);
  agent.is_private.store(false, std::memory_order_relaxed);
  agent.call.state.store(kPosted, std::memory_order_relaxed);  // until the thread is up

  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  pthread_t thread;
  int error = pthread_create(&thread, &attributes, agent_main, nullptr);
  if (error == EINVAL) {  // an engine with large thread-local storage needs a larger stack
    pthread_attr_destroy(&attributes);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    error = pthread_create(&thread, &attributes, agent_main, nullptr);
  }
  pthread_attr_destroy(&attributes);
  if (error != 0) {
    sys::close(agent.wake);
    sys::close(agent.wake_agent);
    agent.wake = agent.wake_agent = -1;
    return -EAGAIN;
  }
  wait_until(kIdle);
  // With its own table the agent has its end there; here it is not needed.
  if (agent.is_private.load(std::memory_order_relaxed)) sys::close(agent.wake_agent);
  agent.running = true;
  return 0;
}

}  // namespace

Session& session() { return *std::launder(reinterpret_cast<Session*>(session_storage)); }

bool try_resume() {
  const Status status = session().resume();
  if (status.ok()) return agent.handlers.on_resumed() == 0;
  if (status.code() == Code::kPeerGone || status.code() == Code::kErrno) return false;
  agent.handlers.on_refused(status);
  session().end();
  return true;
}

bool is_agent_running() { return agent.running; }

void set_calls_only(bool is_on) { agent.calls_only = is_on; }

void set_agent_handlers(const AgentHandlers& handlers) { agent.handlers = handlers; }

int run_on_agent(int (*function)(void*), void* context) {
  if (!agent.running) {
    if (const int error = start(); error != 0) {
      notice("passing through: no thread can be started");
      return -EAGAIN;
    }
  }
  Call& call = agent.call;
  call.function = function;
  call.context = context;
  call.state.store(kPosted, std::memory_order_release);  // pairs with serve_call's acquire
  sys::futex_wake(call.state, 1);                        // an agent that carries out calls only
  // The engine may have closed our end, and something of its own may have the number now.
  if (inode_of(agent.wake) == agent.wake_inode) {
    const char byte = 0;
    sys::call(SYS_sendto, agent.wake, sys::arg(&byte), 1, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
  }
  wait_until(kDone);
  call.state.store(kIdle, std::memory_order_relaxed);
  write_left_line();
  return call.result;
}

bool forget_agent() {
  if (!agent.running) return false;
  const bool is_shared = !agent.is_private.load(std::memory_order_relaxed);
  if (inode_of(agent.wake) == agent.wake_inode) sys::close(agent.wake);
  if (is_shared) sys::close(agent.wake_agent);
  session().forget(is_shared);
  agent.running = false;
  agent.calls_only = false;
  agent.wake = agent.wake_agent = -1;
  descriptors_are_apart(0, 0);
  return is_shared;
}

}  // namespace kvmem
