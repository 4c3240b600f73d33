#include "client/notice.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include <atomic>

#include "client/settings.h"
#include "client/sys.h"

namespace kvmem {

namespace {

constexpr std::size_t kLineBytes = 512;  // less than PIPE_BUF: a pipe takes it whole or not at all
constexpr std::int64_t kRoomWaitNs = 1'000'000'000;

// What file a descriptor stands for.
struct Identity {
  dev_t device;
  ino_t inode;
  mode_t type;  // 0: not open

  bool operator==(const Identity&) const = default;
};

constinit std::atomic<bool> said{false};
constinit std::atomic<int> private_tid{0};
constinit std::atomic<int> leader_pid{0};
constinit Identity at_load{};  // constant after remember_stderr

// A line the agent could not write itself. Filled by the agent while left_bytes is 0, emptied by an
// engine thread while it is not.
constinit char left[kLineBytes] = {};
constinit std::atomic<std::size_t> left_bytes{0};

Identity identity_of(int fd) {
  struct stat s {};
  if (sys::call(SYS_fstat, fd, sys::arg(&s)) != 0) return {};
  return {s.st_dev, s.st_ino, s.st_mode & S_IFMT};
}

// One write(2), given up when there is no room in time; never a SIGPIPE.
void put(int fd, const char* line, std::size_t length) {
  // The engine may have closed its standard error, and a file of its data may have the number now.
  if (at_load.type == 0 || identity_of(fd) != at_load) return;
  pollfd room{fd, POLLOUT, 0};
  if (sys::poll(&room, 1, kRoomWaitNs) != 1) return;

  constexpr sys::SignalMask kPipe = sys::SignalMask{1} << (SIGPIPE - 1);
  sys::SignalMask before = 0, pending = 0;
  sys::call(SYS_rt_sigprocmask, SIG_BLOCK, sys::arg(&kPipe), sys::arg(&before), sizeof before);
  sys::call(SYS_rt_sigpending, sys::arg(&pending), sizeof pending);
  const long written = sys::call(SYS_write, fd, sys::arg(line), sys::arg(length));
  if (written == -EPIPE && (pending & kPipe) == 0) {  // ours alone: take it back
    timespec now{};
    sys::call(SYS_rt_sigtimedwait, sys::arg(&kPipe), 0, sys::arg(&now), sizeof kPipe);
  }
  sys::restore_signals(before);
}

// The engine's standard error as a descriptor of the calling agent's; < 0: cannot be had. Kept for
// one write only: a reader of a pipe would never see its end. Not through /proc/PID/fd, which opens
// the file anew: a socket or another user's pipe cannot be.
int borrow_stderr() {
#ifndef SYS_pidfd_open
  constexpr long SYS_pidfd_open = 434;
#endif
#ifndef SYS_pidfd_getfd
  constexpr long SYS_pidfd_getfd = 438;
#endif
  const long leader = sys::call(SYS_pidfd_open, leader_pid.load(std::memory_order_relaxed), 0);
  if (leader < 0) return -1;
  const long fd = sys::call(SYS_pidfd_getfd, leader, 2, 0);
  sys::close(static_cast<int>(leader));
  return static_cast<int>(fd);
}

void write_line(const char* const* parts, int count) {
  char line[kLineBytes];
  std::size_t length = 0;
  for (int i = 0; i < count; ++i) {
    if (parts[i] == nullptr) continue;
    const std::size_t n = strnlen(parts[i], sizeof line - 1 - length);
    memcpy(line + length, parts[i], n);
    length += n;
  }
  line[length++] = '\n';
  if (sys::tid() != private_tid.load(std::memory_order_relaxed)) {
    put(2, line, length);
    return;
  }
  const int fd = borrow_stderr();
  if (fd >= 0) {
    put(fd, line, length);
    sys::close(fd);
  } else if (left_bytes.load(std::memory_order_acquire) == 0) {  // pairs with write_left_line
    memcpy(left, line, length);
    left_bytes.store(length, std::memory_order_release);  // pairs with write_left_line
  }
}

}  // namespace

void notice(const char* a, const char* b, const char* c, const char* d, const char* e) {
  if (said.exchange(true, std::memory_order_relaxed) && !g_settings.verbose) return;
  const char* parts[] = {"kvmem: ", a, b, c, d, e};
  write_line(parts, 6);
}

void alarm(const char* a, const char* b, const char* c) {
  const char* parts[] = {"kvmem: ", a, b, c};
  write_line(parts, 4);
}

void detail(const char* a, const char* b, const char* c) {
  if (!g_settings.verbose) return;
  const char* parts[] = {"kvmem: ", a, b, c};
  write_line(parts, 4);
}

void remember_stderr() { at_load = identity_of(2); }

void descriptors_are_apart(int pid, int agent_tid) {
  left_bytes.store(0, std::memory_order_relaxed);  // in a child of fork, the parent's
  leader_pid.store(pid, std::memory_order_relaxed);
  private_tid.store(agent_tid, std::memory_order_relaxed);
}

void write_left_line() {
  const std::size_t length = left_bytes.load(std::memory_order_acquire);  // pairs with write_line
  if (length == 0) return;
  put(2, left, length);
  left_bytes.store(0, std::memory_order_release);  // pairs with write_line
}

Text& Text::operator<<(const char* part) {
  while (*part != 0 && length_ + 1 < sizeof text_) text_[length_++] = *part++;
  return *this;
}

Decimal decimal(long long value) {
  Decimal d{};
  char reversed[24];
  int n = 0;
  unsigned long long rest = value < 0 ? 0 - static_cast<unsigned long long>(value)
                                      : static_cast<unsigned long long>(value);
  do {
    reversed[n++] = static_cast<char>('0' + rest % 10);
    rest /= 10;
  } while (rest != 0);
  int at = 0;
  if (value < 0) d.text[at++] = '-';
  while (n > 0) d.text[at++] = reversed[--n];
  return d;
}

}  // namespace kvmem
