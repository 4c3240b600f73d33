#include "tests/softgpu/work.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "tests/softgpu/settings.h"

namespace softgpu {
namespace {

// What the device died of.
std::atomic<CUresult> error{CUDA_SUCCESS};
thread_local bool device_thread = false;
thread_local sigjmp_buf* volatile fault_return = nullptr;
struct sigaction old_segv, old_bus;

void on_fault(int number, siginfo_t* info, void* context) {
  if (fault_return != nullptr) siglongjmp(*fault_return, 1);
  const struct sigaction& old = number == SIGSEGV ? old_segv : old_bus;
  if ((old.sa_flags & SA_SIGINFO) != 0 && old.sa_sigaction != nullptr) {
    old.sa_sigaction(number, info, context);
  } else if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) {
    old.sa_handler(number);
  } else {
    ::signal(number, SIG_DFL);  // the access is made again, and ends the process
  }
}

class Device {
 public:
  static Device& get() {
    static auto* const kDevice = new Device;  // its thread outlives static destructors
    return *kDevice;
  }

  void submit(const OpRef& op) {
    const std::lock_guard lock(mu_);
    const std::uint64_t late_us = settings().late_us;
    op->not_before_ns = now_ns() + (late_us > 0 ? random_() % (late_us * 1000 + 1) : 0);
    pending_.push_back(op);
    work_.notify_one();
  }

  void wait(const OpRef& op) {
    std::unique_lock lock(mu_);
    done_.wait(lock, [&] { return is_done(op); });
  }

  void drain() {
    std::unique_lock lock(mu_);
    done_.wait(lock, [&] { return pending_.empty() && !running_; });
  }

 private:
  Device() : random_(settings().seed) {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    ::sigaction(SIGSEGV, &action, &old_segv);
    ::sigaction(SIGBUS, &action, &old_bus);
    // No signal of the program's is handled on the device.
    sigset_t all, before;
    ::sigfillset(&all);
    ::sigdelset(&all, SIGSEGV);
    ::sigdelset(&all, SIGBUS);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([this] { loop(); }).detach();
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void loop() {
    device_thread = true;
    std::unique_lock lock(mu_);
    for (;;) {
      std::uint64_t next_ns = 0;
      OpRef op = take_ready(&next_ns);
      if (op == nullptr) {
        if (next_ns == 0) {
          work_.wait(lock);
        } else {
          work_.wait_for(lock, std::chrono::nanoseconds(next_ns));
        }
        continue;
      }
      running_ = true;
      lock.unlock();
      if (device_error() == CUDA_SUCCESS && op->run) execute(*op);
      op->run = nullptr;
      op->after.clear();
      lock.lock();
      running_ = false;
      op->ended_ns = now_ns();
      op->done.store(true, std::memory_order_release);
      done_.notify_all();
    }
  }

  // One of those that may run now, drawn at random; else how long until the first may.
  OpRef take_ready(std::uint64_t* next_ns) {
    const std::uint64_t now = now_ns();
    std::vector<std::size_t> ready;
    for (std::size_t i = 0; i < pending_.size(); ++i) {
      const Op& op = *pending_[i];
      if (!std::all_of(op.after.begin(), op.after.end(), is_done)) continue;
      if (op.not_before_ns <= now) {
        ready.push_back(i);
      } else if (*next_ns == 0 || op.not_before_ns - now < *next_ns) {
        *next_ns = op.not_before_ns - now;
      }
    }
    if (ready.empty()) return nullptr;
    const std::size_t i = ready[random_() % ready.size()];
    OpRef op = std::move(pending_[i]);
    pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(i));
    return op;
  }

  void execute(Op& op) {
    // Host functions fault as the program's own code does.
    if (op.host_function) {
      op.run();
      return;
    }
    sigjmp_buf here;
    if (sigsetjmp(here, 1) == 0) {
      fault_return = &here;
      op.run();
    } else {
      error.store(CUDA_ERROR_ILLEGAL_ADDRESS, std::memory_order_release);
    }
    fault_return = nullptr;
  }

  std::mutex mu_;
  std::condition_variable work_, done_;
  std::vector<OpRef> pending_;  // in order of submission
  bool running_ = false;
  std::mt19937_64 random_;
};

}  // namespace

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                        std::chrono::steady_clock::now().time_since_epoch())
                                        .count());
}

void submit(const OpRef& op) { Device::get().submit(op); }
void wait(const OpRef& op) {
  if (op != nullptr) Device::get().wait(op);
}
void drain() { Device::get().drain(); }
void fault() { siglongjmp(*fault_return, 1); }

CUresult device_error() { return error.load(std::memory_order_acquire); }
bool on_device_thread() { return device_thread; }

}  // namespace softgpu
