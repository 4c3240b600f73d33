// Lock: a futex mutex for use inside foreign processes. It blocks signals while it is held, so that
// a handler that calls munmap on the thread that holds it cannot wait for itself, and it may be
// held across fork: the child's only thread is the one that holds it.
#pragma once

#include "base/thread_safety.h"
#include "client/sys.h"

namespace kvmem {

class KV_TSA(capability("mutex")) Lock {
 public:
  constexpr Lock() = default;

  void lock() KV_TSA(acquire_capability()) {
    const sys::SignalMask mask = sys::block_signals();
    std::uint32_t seen = kFree;
    if (!word_.compare_exchange_strong(seen, kHeld, std::memory_order_acquire)) {
      while (word_.exchange(kContended, std::memory_order_acquire) != kFree) {
        sys::futex_wait(word_, kContended);
      }
    }
    mask_ = mask;
  }
  void unlock() KV_TSA(release_capability()) {
    const sys::SignalMask mask = mask_;
    if (word_.exchange(kFree, std::memory_order_release) == kContended) sys::futex_wake(word_, 1);
    sys::restore_signals(mask);
  }

 private:
  static constexpr std::uint32_t kFree = 0, kHeld = 1, kContended = 2;
  sys::FutexWord word_{kFree};
  sys::SignalMask mask_ = 0;  // of the holder, before it locked
};

class KV_TSA(scoped_lockable) LockGuard {
 public:
  explicit LockGuard(Lock& lock) KV_TSA(acquire_capability(lock)) : lock_(lock) { lock_.lock(); }
  ~LockGuard() KV_TSA(release_capability()) { lock_.unlock(); }
  LockGuard(const LockGuard&) = delete;
  LockGuard& operator=(const LockGuard&) = delete;

 private:
  Lock& lock_;
};

}  // namespace kvmem
