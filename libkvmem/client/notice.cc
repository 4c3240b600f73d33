#include "client/notice.h"

#include <fcntl.h>
#include <string.h>

#include <atomic>

#include "client/settings.h"
#include "client/sys.h"

namespace kvmem {

namespace {

constinit std::atomic<bool> said{false};
constinit std::atomic<int> private_tid{0};
constinit std::atomic<int> leader_pid{0};

void write_line(const char* const* parts, int count) {
  char line[512];
  std::size_t length = 0;
  for (int i = 0; i < count; ++i) {
    if (parts[i] == nullptr) continue;
    const std::size_t n = strnlen(parts[i], sizeof line - 1 - length);
    memcpy(line + length, parts[i], n);
    length += n;
  }
  line[length++] = '\n';
  if (sys::tid() != private_tid.load(std::memory_order_relaxed)) {
    sys::call(SYS_write, 2, sys::arg(line), sys::arg(length));
    return;
  }
  // The agent holds no copy of the engine's standard error: a reader of a pipe would never see its
  // end. It opens what the engine has there now.
  Text path;
  path << "/proc/" << decimal(leader_pid.load(std::memory_order_relaxed)).text << "/fd/2";
  const long fd = sys::open(path.get(), O_WRONLY | O_APPEND | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return;
  sys::call(SYS_write, fd, sys::arg(line), sys::arg(length));
  sys::close(static_cast<int>(fd));
}

}  // namespace

void notice(const char* a, const char* b, const char* c, const char* d, const char* e) {
  if (said.exchange(true, std::memory_order_relaxed) && !g_settings.verbose) return;
  const char* parts[] = {"kvmem: ", a, b, c, d, e};
  write_line(parts, 6);
}

void detail(const char* a, const char* b, const char* c) {
  if (!g_settings.verbose) return;
  const char* parts[] = {"kvmem: ", a, b, c};
  write_line(parts, 4);
}

void notice_through_proc(int pid, int agent_tid) {
  leader_pid.store(pid, std::memory_order_relaxed);
  private_tid.store(agent_tid, std::memory_order_relaxed);
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
