// A program whose main thread ends by pthread_exit lives until its last thread ends. The agent is a
// thread, too, and never ends: so the main thread's last act is to wait until it and the agent are
// the only ones left, and to leave then as glibc would have: exit(0).
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <algorithm>

#include "client/agent.h"
#include "region/host.h"

namespace kvmem::host {

namespace {

constexpr std::uint64_t kPollMinNs = 1'000'000;
constexpr std::uint64_t kPollMaxNs = 100'000'000;

constinit pthread_key_t key = 0;
constinit std::atomic<bool> has_key{false};

bool is_agent_there() {
  LockGuard guard(g_agent_lock);
  return is_agent_running();
}

// Runs after the thread's cleanup handlers, among its destructors of thread-specific data. The
// agent may be started while it waits.
void wait_for_the_rest(void*) {
  for (std::uint64_t poll_ns = kPollMinNs;; poll_ns = std::min(poll_ns * 2, kPollMaxNs)) {
    struct stat s {};
    constexpr long kAtFdCwd = -100;
    if (sys::call(SYS_newfstatat, kAtFdCwd, sys::arg("/proc/self/task"), sys::arg(&s), 0) != 0) {
      return;
    }
    // Links: ".", "..", and one a thread.
    const bool has_agent = is_agent_there();
    if (s.st_nlink <= 3) return;
    if (s.st_nlink == 4 && has_agent) break;
    sys::sleep_ns(poll_ns);
  }
  exit(0);  // NOLINT(concurrency-mt-unsafe): no other thread of the engine is left
}

}  // namespace

void thread_exits() {
  if (g_threshold_bytes == SIZE_MAX || sys::tid() != sys::pid()) return;
  if (!has_key.exchange(true, std::memory_order_relaxed) &&
      pthread_key_create(&key, wait_for_the_rest) != 0) {
    return;
  }
  pthread_setspecific(key, &key);
}

}  // namespace kvmem::host
