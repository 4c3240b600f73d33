// System calls, raw: they return -errno, touch no thread-local storage, are no cancellation points
// and are never another library's interposition. Everything libkvmem asks of the kernel comes
// through here, so that it may be asked from inside malloc, from a fork handler and from the agent.
#pragma once

#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace kvmem::sys {

#if defined(__x86_64__)
inline long call(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0,
                 long f = 0) {
  long result = number;
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  asm volatile("syscall"
               : "+a"(result)
               : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}
#elif defined(__aarch64__)
inline long call(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0,
                 long f = 0) {
  register long x8 asm("x8") = number;
  register long x0 asm("x0") = a;
  register long x1 asm("x1") = b;
  register long x2 asm("x2") = c;
  register long x3 asm("x3") = d;
  register long x4 asm("x4") = e;
  register long x5 asm("x5") = f;
  asm volatile("svc 0"
               : "+r"(x0)
               : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
               : "memory");
  return x0;
}
#else
#error "libkvmem knows the system calls of x86-64 and aarch64"
#endif

inline long arg(const void* p) { return static_cast<long>(reinterpret_cast<std::uintptr_t>(p)); }
inline long arg(std::uint64_t v) { return static_cast<long>(v); }
inline bool is_error(long result) { return result < 0 && result >= -4095; }

// Address or -errno.
inline long mmap(std::uint64_t address, std::uint64_t size_bytes, int prot, int flags, int fd,
                 std::uint64_t offset) {
  return call(SYS_mmap, arg(address), arg(size_bytes), prot, flags, fd, arg(offset));
}
inline long munmap(std::uint64_t address, std::uint64_t size_bytes) {
  return call(SYS_munmap, arg(address), arg(size_bytes));
}
inline long mprotect(std::uint64_t address, std::uint64_t size_bytes, int prot) {
  return call(SYS_mprotect, arg(address), arg(size_bytes), prot);
}
inline long madvise(std::uint64_t address, std::uint64_t size_bytes, int advice) {
  return call(SYS_madvise, arg(address), arg(size_bytes), advice);
}
inline long mremap(std::uint64_t old_address, std::uint64_t old_bytes, std::uint64_t new_bytes,
                   int flags, std::uint64_t new_address) {
  return call(SYS_mremap, arg(old_address), arg(old_bytes), arg(new_bytes), flags,
              arg(new_address));
}
inline long ioctl(int fd, unsigned long request, void* argument) {
  return call(SYS_ioctl, fd, arg(request), arg(argument));
}
inline long close(int fd) { return call(SYS_close, fd); }
inline long open(const char* path, int flags) {
  return call(SYS_openat, -100 /* AT_FDCWD */, arg(path), flags, 0);
}
inline int pid() { return static_cast<int>(call(SYS_getpid)); }
inline int tid() { return static_cast<int>(call(SYS_gettid)); }

inline std::uint64_t now_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);  // vDSO; no errno on success
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000u +
         static_cast<std::uint64_t>(t.tv_nsec);
}
inline void sleep_ns(std::uint64_t ns) {
  timespec t{static_cast<time_t>(ns / 1'000'000'000u), static_cast<long>(ns % 1'000'000'000u)};
  call(SYS_nanosleep, arg(&t));
}
// Ready count, 0 at the timeout, or -errno. A negative timeout waits for ever.
inline long poll(pollfd* fds, unsigned count, std::int64_t timeout_ns) {
  timespec t{static_cast<time_t>(timeout_ns / 1'000'000'000), timeout_ns % 1'000'000'000};
  return call(SYS_ppoll, arg(fds), count, timeout_ns < 0 ? 0 : arg(&t));
}

using FutexWord = std::atomic<std::uint32_t>;
static_assert(sizeof(FutexWord) == 4 && FutexWord::is_always_lock_free);
// Returns when woken, when *word is no longer `expected`, or spuriously.
inline void futex_wait(FutexWord& word, std::uint32_t expected) {
  call(SYS_futex, arg(&word), FUTEX_WAIT_PRIVATE, expected);
}
// As above, or when `timeout_ns` has passed.
inline void futex_wait_for(FutexWord& word, std::uint32_t expected, std::uint64_t timeout_ns) {
  timespec t{static_cast<time_t>(timeout_ns / 1'000'000'000u),
             static_cast<long>(timeout_ns % 1'000'000'000u)};
  call(SYS_futex, arg(&word), FUTEX_WAIT_PRIVATE, expected, arg(&t));
}
inline void futex_wake(FutexWord& word, int waiters) {
  call(SYS_futex, arg(&word), FUTEX_WAKE_PRIVATE, waiters);
}

// All signals, as the kernel counts them (glibc's sigset_t is wider and hides two).
using SignalMask = std::uint64_t;
inline SignalMask block_signals() {
  // All but glibc's own: setuid(2) in another thread waits until every thread has handled it.
  constexpr int kSigSetXid = 33;
  SignalMask all = ~(SignalMask{1} << (kSigSetXid - 1)), old = 0;
  call(SYS_rt_sigprocmask, SIG_SETMASK, arg(&all), arg(&old), sizeof all);
  return old;
}
inline void restore_signals(SignalMask mask) {
  call(SYS_rt_sigprocmask, SIG_SETMASK, arg(&mask), 0, sizeof mask);
}

}  // namespace kvmem::sys
