// A program whose main thread ends by pthread_exit lives until its last thread ends. The agent is a
// thread, too, and never ends. So once main has left and there is an agent, a second thread waits
// until the two are the only ones left, and ends the program as glibc would have: exit(0).
//
// The agent cannot do that itself: what exit() flushes goes to the engine's descriptors, and the
// agent has a table of its own. The last thread that shares the engine's table keeps it open.
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <algorithm>

#include "client/agent.h"
#include "client/notice.h"
#include "region/host.h"

namespace kvmem::host {

namespace {

constexpr std::uint64_t kPollMinNs = 10'000'000;
constexpr std::uint64_t kPollMaxNs = 1'000'000'000;

constinit std::atomic<bool> has_main_left{false};
constinit std::atomic<bool> has_keeper{false};
constinit sys::SignalMask engine_mask = 0;

// The main thread has ended: what is left of it is a zombie, which counts as a task until the
// process ends. Before that its cleanup handlers may still start threads.
bool is_main_over() {
  Text path;
  path << "/proc/self/task/" << decimal(sys::pid()).text << "/stat";
  const long fd = sys::open(path.get(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  char line[64] = {};  // "PID (COMM) STATE": COMM has 15 characters at most
  const long n = sys::call(SYS_read, fd, sys::arg(line), sizeof line - 1);
  sys::close(static_cast<int>(fd));
  const char* name_end = n > 0 ? strrchr(line, ')') : nullptr;
  return name_end != nullptr && name_end[1] == ' ' && name_end[2] == 'Z';
}

void* keep(void*) {
  for (std::uint64_t poll_ns = kPollMinNs;; poll_ns = std::min(poll_ns * 2, kPollMaxNs)) {
    struct stat s {};
    constexpr long kAtFdCwd = -100;
    if (sys::call(SYS_newfstatat, kAtFdCwd, sys::arg("/proc/self/task"), sys::arg(&s), 0) != 0) {
      return nullptr;
    }
    // Links: ".", "..", and one a thread: main's zombie, the agent, this one.
    if (s.st_nlink <= 5 && is_main_over()) break;
    sys::sleep_ns(poll_ns);
  }
  sys::restore_signals(engine_mask);
  exit(0);  // NOLINT(concurrency-mt-unsafe): no other thread of the engine is left
}

bool is_agent_there() {
  LockGuard guard(g_agent_lock);
  return is_agent_running();
}

}  // namespace

void keep_descriptors() {
  if (!has_main_left.load() || has_keeper.load(std::memory_order_relaxed) || !is_agent_there() ||
      has_keeper.exchange(true)) {
    return;
  }
  // The engine's signals are for the engine's threads.
  engine_mask = sys::block_signals();
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  if (pthread_create(&thread, &attributes, keep, nullptr) != 0) has_keeper.store(false);
  pthread_attr_destroy(&attributes);
  sys::restore_signals(engine_mask);
}

void thread_exits() {
  if (g_threshold_bytes == SIZE_MAX || sys::tid() != sys::pid()) return;
  has_main_left.store(true);  // before it looks for the agent: whoever starts one looks here after
  keep_descriptors();
}

void forget_last_thread() {
  has_main_left.store(false);
  has_keeper.store(false);
}

}  // namespace kvmem::host
