// Arming: once, from the first allocation that finds an environment or from the constructor.
#include <pthread.h>

#include <atomic>

#include "preload/real.h"
#include "region/host.h"
#ifdef KVMEM_WITH_CUDA
#include "region/device_heap.h"
#endif

namespace kvmem {

namespace {

constinit std::atomic<bool> started{false};

}  // namespace

void initialise(char* const* environment) {
  if (environment == nullptr || started.exchange(true, std::memory_order_acq_rel)) return;
  host::install(environment);
#ifdef KVMEM_WITH_CUDA
  device::install();
#endif
  host::g_child_allocator = real::use_static_area;
  // As early as can be: the handlers that are registered first run innermost.
  pthread_atfork(host::fork_prepare, host::fork_parent, host::fork_child);
}

namespace {

// glibc hands constructors what it hands main.
[[gnu::constructor(101)]] void on_load(int, char**, char** environment) {
  real::resolve();
  initialise(environment);
}

}  // namespace
}  // namespace kvmem
