// Fork with the semantics the engine would see without kvmem.
//
// Managed pages are MADV_DONTFORK: the child starts with holes there.
//   file pages       the untouched mapping of the file itself, which the child did inherit, moves
//                    into the hole
//   anonymous pages  the daemon holds the parent's writes while the process is copied, and gives
//                    the child a clone of each region, copied on demand
// Where no daemon can clone, the child's access raises SIGSEGV: never zeroes.
//
// prepare runs innermost (registered before other libraries' handlers), since nobody may write to
// a region between it and parent.
#include <errno.h>
#include <sys/wait.h>

#include "client/agent.h"
#include "client/notice.h"
#include "region/host.h"
#include "region/table.h"
#ifdef KVMEM_WITH_CUDA
#include "region/device_heap.h"
#endif

namespace kvmem::host {

void (*g_child_allocator)(bool is_on) = nullptr;

namespace {

using table::Op;

// A daemon that is being restarted is back within this.
constexpr std::uint64_t kAwayMaxNs = 10'000'000'000;
constexpr std::uint64_t kAwayPollNs = 10'000'000;

constinit bool is_prepared = false;

// Handlers are not told whether the fork failed. A thread that has no child at all has none to
// claim the clones; one that has other children leaves them to the daemon, which waits in vain,
// but not for ever.
bool has_child() {
  constexpr long kAnyChild = 0;  // P_ALL
  return sys::call(SYS_waitid, kAnyChild, 0, 0, WEXITED | WNOHANG | WNOWAIT | __WNOTHREAD | __WALL,
                   0) != -ECHILD;
}

}  // namespace

void fork_prepare() KV_TSA(no_thread_safety_analysis) {
  // The forking thread writes to its stack while writes are held.
  std::uint64_t here = 0;
  const std::uint64_t stack = reinterpret_cast<std::uintptr_t>(&here);
  if (in_arena(stack)) {
    const Region* r = table::region_at(stack);
    Op op{};
    op.kind = Op::Kind::kMakePlain;
    // Frames above and below this one: glibc's fork needs far less.
    constexpr std::uint64_t kReach = std::uint64_t{4} << 20;
    const std::uint64_t begin = r == nullptr ? stack : r->begin;
    const std::uint64_t end = r == nullptr ? stack + 1 : r->end();
    op.address = stack - begin > kReach ? align_down(stack - kReach, kPageBytes) : begin;
    op.size_bytes =
        (end - stack > kReach ? align_up(stack + kReach, kPageBytes) : end) - op.address;
    LockGuard guard(g_agent_lock);
    (void)run_on_agent(table::serve, &op);
    table::give_up(op);
  }
  const std::uint64_t deadline_ns = sys::now_ns() + kAwayMaxNs;
  for (;;) {
    g_agent_lock.lock();  // until parent and child: neither finds it held by a thread it lacks
    if (!is_agent_running()) break;
    Op op{};
    op.kind = Op::Kind::kForkBegin;
    const bool is_late = sys::now_ns() >= deadline_ns;
    op.value = is_late ? 1 : 0;
    if (run_on_agent(table::serve, &op) != -ENOTCONN) break;
    g_agent_lock.unlock();
    sys::sleep_ns(kAwayPollNs);
  }
  is_prepared = true;
}

void fork_parent() KV_TSA(no_thread_safety_analysis) {
  if (!is_prepared) return;
  is_prepared = false;
  if (is_agent_running()) {
    Op op{};
    op.kind = Op::Kind::kForkEnd;
    op.value = has_child() ? 0 : -1;
    (void)run_on_agent(table::serve, &op);
  }
  g_agent_lock.unlock();
}

void fork_child() KV_TSA(no_thread_safety_analysis) {
  forget_last_thread();
#ifdef KVMEM_WITH_CUDA
  device::forget();
#endif
  if (!is_prepared) return;
  is_prepared = false;
  const bool close_descriptors = is_agent_running() && forget_agent();
  if (table::enter_child(close_descriptors)) {
    Op op{};
    op.kind = Op::Kind::kForkChild;
    if (g_child_allocator != nullptr) g_child_allocator(true);
    const int error = run_on_agent(table::serve, &op);
    if (g_child_allocator != nullptr) g_child_allocator(false);
    if (error == -EAGAIN) table::give_up_in_child();
    if (error != 0) {
      notice("a forked child has no copy of its parent's large allocations; access raises SIGSEGV");
    }
  }
  g_agent_lock.unlock();
}

}  // namespace kvmem::host
