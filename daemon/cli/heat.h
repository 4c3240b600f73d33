// `kvmemctl heat`: looks at a region's pages at an interval and shows their heat over time: a line
// a look in the terminal, and a drawing at the end.
#pragma once

#include <string>

#include "cli/client.h"
#include "cli/render.h"

namespace kvmem::cli {

struct HeatOptions {
  std::string socket;
  Target target;
  double seconds = 30;
  double interval_s = 0.5;
  std::string svg;  // empty: none
  Style style;
  bool json = false;  // at the end, instead of lines
};
inline constexpr double kHeatSecondsMax = 86'400;

// A region or daemon that goes away ends it with what was seen, as an interrupt does; the former
// gives kExitPartly.
struct HeatEnd {
  int exit_code = 0;
  std::string error;
};
HeatEnd run_heat(const HeatOptions& options);

}  // namespace kvmem::cli
