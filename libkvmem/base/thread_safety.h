// Mutex, MutexLock, CondVar: std types with clang thread-safety annotations.
// libstdc++'s std::mutex carries none, so GUARDED_BY needs these. Daemon and tests only.
#pragma once

#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define KV_TSA(x) __attribute__((x))
#else
#define KV_TSA(x)
#endif
#define GUARDED_BY(x) KV_TSA(guarded_by(x))
#define REQUIRES(...) KV_TSA(requires_capability(__VA_ARGS__))
#define EXCLUDES(...) KV_TSA(locks_excluded(__VA_ARGS__))

namespace kvmem {

class KV_TSA(capability("mutex")) Mutex {
 public:
  void lock() KV_TSA(acquire_capability()) { m_.lock(); }
  void unlock() KV_TSA(release_capability()) { m_.unlock(); }

 private:
  std::mutex m_;
};

class KV_TSA(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& m) KV_TSA(acquire_capability(m)) : m_(m) { m_.lock(); }
  ~MutexLock() KV_TSA(release_capability()) { m_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& m_;
};

class CondVar {
 public:
  void wait(Mutex& m) REQUIRES(m) { c_.wait(m); }
  void notify_one() { c_.notify_one(); }
  void notify_all() { c_.notify_all(); }

 private:
  std::condition_variable_any c_;
};

}  // namespace kvmem
