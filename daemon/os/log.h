// One line to standard error, with the priority prefix that systemd reads ("<4>"). The daemon logs
// where it decides; libraries return errors.
#pragma once

#include <string>

#include "base/status.h"

namespace kvmem::os {

enum class Severity : int { kError = 3, kWarning = 4, kInfo = 6, kDebug = 7 };

void set_log_level(Severity least_severe);
[[gnu::format(printf, 2, 3)]] void log(Severity severity, const char* format, ...);

// What failed, and for a system call why. Loop thread only.
std::string reason_of(const Status& status);

}  // namespace kvmem::os
