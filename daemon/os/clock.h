// Monotonic time in nanoseconds.
#pragma once

#include <cstdint>
#include <ctime>

namespace kvmem::os {

inline std::uint64_t now_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(t.tv_nsec);
}

}  // namespace kvmem::os
