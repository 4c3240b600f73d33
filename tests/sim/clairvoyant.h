// MIN: what could be had by who knows the future. Of all blocks that might be resident, those stay
// that are asked for soonest; what is asked for later than all of them is not admitted.
//
// An upper bound in practice, not in theory: it takes each block for itself.
#pragma once

#include <cstddef>

#include "tests/sim/trace.h"

namespace kvmem::sim {

struct Hits {
  std::uint64_t hit_blocks = 0;
  std::uint64_t blocks = 0;
  double percent() const {
    return blocks == 0 ? 0 : 100.0 * static_cast<double>(hit_blocks) / static_cast<double>(blocks);
  }
};

Hits run_clairvoyant(const Trace& trace, std::size_t capacity_blocks);
Hits run_policy(const Trace& trace, policy::BlockPolicy& policy);

}  // namespace kvmem::sim
