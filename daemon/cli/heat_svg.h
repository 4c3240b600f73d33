// A HeatMap as a drawing that needs nothing else: axes, legend, colours for light and dark. Pure.
//
// A cell of a heat is a <rect> of class "h1".."h9" (0 is the ground), where a bin is in DRAM a line
// of class "dram" runs along the cell's foot; neighbours alike are one.
#pragma once

#include <string>

#include "cli/heat_map.h"

namespace kvmem::cli {

// `name` is text of any kind: what XML cannot hold is replaced.
std::string heat_svg(const HeatMap& map, const std::string& name);

}  // namespace kvmem::cli
