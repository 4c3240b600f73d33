#include "os/log.h"

#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace kvmem::os {
namespace {

Severity least_severe = Severity::kInfo;  // loop only

// Only a manager that reads the prefix gets one.
const char* prefix(Severity severity, char* buffer, std::size_t size) {
  static const bool managed =
      ::getenv("JOURNAL_STREAM") != nullptr;  // NOLINT(concurrency-mt-unsafe)
  if (!managed) return "kvmemd: ";
  std::snprintf(buffer, size, "<%d>", static_cast<int>(severity));
  return buffer;
}

}  // namespace

void set_log_level(Severity level) { least_severe = level; }

void log(Severity severity, const char* format, ...) {
  if (severity > least_severe) return;
  char line[512];
  char head[8];
  int n = std::snprintf(line, sizeof line, "%s", prefix(severity, head, sizeof head));
  std::va_list arguments;
  va_start(arguments, format);
  n += std::vsnprintf(line + n, sizeof line - static_cast<std::size_t>(n) - 1, format, arguments);
  va_end(arguments);
  std::size_t length = static_cast<std::size_t>(n);
  if (length > sizeof line - 1) length = sizeof line - 1;
  line[length] = '\n';
  (void)!::write(STDERR_FILENO, line, length + 1);
}

std::string reason_of(const Status& status) {
  std::string reason = status.what();
  if (status.code() == Code::kErrno) {
    reason += ": ";
    reason += std::strerror(status.detail());  // NOLINT(concurrency-mt-unsafe): the loop's thread
  }
  return reason;
}

}  // namespace kvmem::os
