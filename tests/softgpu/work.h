// Work: what the device does, in its own time. Operations wait for those they depend on, then for a
// while, then run on the device's one thread in an order drawn from the seed: whatever the
// dependencies allow happens, sooner or later. An access to memory that is not there ends the
// operation and leaves CUDA_ERROR_ILLEGAL_ADDRESS behind for good, as on a GPU.
#pragma once

#include <cuda.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace softgpu {

struct Op {
  std::function<void()> run;  // on the device's thread; empty: nothing but an order
  std::vector<std::shared_ptr<Op>> after;
  bool host_function = false;  // runs where no driver call is allowed
  std::uint64_t not_before_ns = 0;
  std::uint64_t ended_ns = 0;  // before `done`
  std::atomic<bool> done{false};
};
using OpRef = std::shared_ptr<Op>;

// Starts it when all of `after` are done. Any thread.
void submit(const OpRef& op);
void wait(const OpRef& op);
inline bool is_done(const OpRef& op) {
  return op == nullptr || op->done.load(std::memory_order_acquire);
}
// Waits for all work there is.
void drain();

// CUDA_SUCCESS, or what the device died of.
CUresult device_error();
// True on the device's thread, and inside a host function.
bool on_device_thread();

// Ends the operation that runs as an access to memory that is not there does. On the device's
// thread.
[[noreturn]] void fault();

std::uint64_t now_ns();

}  // namespace softgpu
