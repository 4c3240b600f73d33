// Any bytes as a trace: refused with a reason, or a trace that policies can be told of.
#include "tests/sim/trace.h"

#include <cstdint>
#include <cstdlib>
#include <sstream>

#include "tests/sim/clairvoyant.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::istringstream in(std::string(reinterpret_cast<const char*>(data), size));
  kvmem::sim::Trace trace;
  std::string error;
  if (!kvmem::sim::read_trace(in, &trace, &error)) {
    if (error.empty()) std::abort();
    return 0;
  }
  std::uint64_t before = 0;
  for (const auto& request : trace) {
    if (request.time_ms < before) std::abort();
    before = request.time_ms;
  }
  for (const char* name : {"kvmem", "lru", "lfu-da", "arc", "s3fifo"}) {
    const auto policy = kvmem::policy::make_block_policy(name, 1 + size % 7);
    const auto hits = kvmem::sim::run_policy(trace, *policy);
    if (hits.hit_blocks > hits.blocks) std::abort();
    policy->validate();
  }
  return 0;
}
