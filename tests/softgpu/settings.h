// Settings: what SOFTGPU in the environment says. Constant after the first call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace softgpu {

struct Settings {
  std::size_t memory_bytes = std::size_t{8} << 30;
  std::size_t granularity = std::size_t{2} << 20;
  std::uint64_t late_us = 200;
  std::uint64_t seed = 1;
  std::uint64_t refuse_numa = 0;

  struct Failure {
    std::string entry;
    std::uint64_t nth;
    int result;
  };
  std::vector<Failure> failures;
};

// Ends the process, with a line, where SOFTGPU cannot be understood: a test must not run otherwise
// than it was told to.
const Settings& settings();

}  // namespace softgpu
