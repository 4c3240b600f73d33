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
  std::uint64_t written = 0;  // became resident; of run_written() only
  double percent() const {
    return blocks == 0 ? 0 : 100.0 * static_cast<double>(hit_blocks) / static_cast<double>(blocks);
  }
};

Hits run_clairvoyant(const Trace& trace, std::size_t capacity_blocks);
Hits run_policy(const Trace& trace, policy::BlockPolicy& policy);
// Likewise, as if what becomes resident were written to a store that takes so many of each 1,000
// blocks asked for; 0: as many as come. What is saved up is at most what comes in with a 24th of
// the trace, as an hour's in a day.
Hits run_written(const Trace& trace, policy::BlockPolicy& policy, double writes_per_1000);

}  // namespace kvmem::sim
