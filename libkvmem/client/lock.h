// Lock and QuickLock: futex mutexes for use inside foreign processes.
//
// A Lock blocks signals while it is held, so that a handler that calls munmap on the thread that
// holds it cannot wait for itself, and it may be held across fork: the child's only thread is the
// one that holds it. A QuickLock does neither, for a few nanoseconds instead of two system calls:
// it guards what no handler may call.
#pragma once

#include "base/thread_safety.h"
#include "client/sys.h"

namespace kvmem {

class KV_TSA(capability("mutex")) QuickLock {
 public:
  constexpr QuickLock() = default;

  void lock() KV_TSA(acquire_capability()) {
    std::uint32_t seen = kFree;
    if (word_.compare_exchange_strong(seen, kHeld, std::memory_order_acquire)) return;
    while (word_.exchange(kContended, std::memory_order_acquire) != kFree) {
      sys::futex_wait(word_, kContended);
    }
  }
  void unlock() KV_TSA(release_capability()) {
    if (word_.exchange(kFree, std::memory_order_release) == kContended) sys::futex_wake(word_, 1);
  }

 private:
  static constexpr std::uint32_t kFree = 0, kHeld = 1, kContended = 2;
  sys::FutexWord word_{kFree};
};

class KV_TSA(capability("mutex")) Lock {
 public:
  constexpr Lock() = default;

  void lock() KV_TSA(acquire_capability()) KV_TSA(no_thread_safety_analysis) {
    const sys::SignalMask mask = sys::block_signals();
    lock_.lock();
    mask_ = mask;
  }
  void unlock() KV_TSA(release_capability()) KV_TSA(no_thread_safety_analysis) {
    const sys::SignalMask mask = mask_;
    lock_.unlock();
    sys::restore_signals(mask);
  }

 private:
  QuickLock lock_;
  sys::SignalMask mask_ = 0;  // of the holder, before it locked
};

template <class L>
class KV_TSA(scoped_lockable) LockGuard {
 public:
  explicit LockGuard(L& lock) KV_TSA(acquire_capability(lock)) : lock_(lock) { lock_.lock(); }
  ~LockGuard() KV_TSA(release_capability()) { lock_.unlock(); }
  LockGuard(const LockGuard&) = delete;
  LockGuard& operator=(const LockGuard&) = delete;

 private:
  L& lock_;
};

}  // namespace kvmem
