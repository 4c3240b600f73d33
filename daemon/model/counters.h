// What the daemon counts, since its start.
#pragma once

#include <cstdint>

namespace kvmem::model {

struct Counters {
  std::uint64_t faults_missing = 0;
  std::uint64_t faults_minor = 0;
  std::uint64_t faults_wp = 0;
  std::uint64_t fresh_pages = 0;
  std::uint64_t origin_read_bytes = 0;
  std::uint64_t store_read_bytes = 0;
  std::uint64_t store_write_bytes = 0;
  std::uint64_t pages_dropped = 0;  // left DRAM without a write
  std::uint64_t promotions = 0;     // pages brought into DRAM
  std::uint64_t demotions = 0;      // pages that left DRAM
  std::uint64_t prefetches = 0;     // promotions ahead of a fault
  std::uint64_t samples = 0;
  std::uint64_t writes_cancelled = 0;  // demotions given up because the engine came back
  std::uint64_t store_corrupt = 0;     // reads refused
  std::uint64_t store_write_errors = 0;
  std::uint64_t origin_read_errors = 0;
  std::uint64_t pages_lost = 0;
  std::uint64_t pages_forked = 0;        // copied for a forked child
  std::uint64_t frames_over_budget = 0;  // granted because nothing could be demoted
  std::uint64_t read_busy_ns = 0;        // time with at least one page being read
  std::uint64_t read_depth_ns = 0;   // pages being read, summed over that time: / busy is the depth
  std::uint64_t pages_aside = 0;     // moved to ordinary memory for want of a huge page
  std::uint64_t pages_to_dram = 0;   // resident pages whose frame moved from CXL memory to DRAM
  std::uint64_t pages_to_cxl = 0;    // and the other way
  std::uint64_t place_failures = 0;  // such moves that the kernel refused
  std::uint64_t populate_failures = 0;  // the machine had no memory for a frame within the budget
};

}  // namespace kvmem::model
