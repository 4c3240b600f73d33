// `kvmemctl top`: asks for the daemon's status at an interval and shows what changed.
#pragma once

#include <string>

#include "cli/client.h"
#include "cli/render.h"

namespace kvmem::cli {

struct LiveOptions {
  std::string socket;
  double interval_s = 1;
  Style style;
  bool once = false;  // one text of two answers an interval apart
  bool json = false;  // with it JSON; without, one line of JSON each interval until interrupted
};
inline constexpr double kIntervalMinS = 0.2;
inline constexpr double kIntervalMaxS = 60;

// What went wrong, or nothing with kExitOk. On a terminal it ends with `q`, and at a signal as that
// signal ends programs; a daemon that does not answer is asked again there.
struct LiveEnd {
  int exit_code = 0;
  std::string error;
};
LiveEnd run_live(const LiveOptions& options);

}  // namespace kvmem::cli
