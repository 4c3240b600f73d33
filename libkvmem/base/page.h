// The unit of residency and migration, and arithmetic on it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvmem {

inline constexpr unsigned kPageShift = 21;
inline constexpr std::size_t kPageBytes = std::size_t{1} << kPageShift;  // 2 MiB
inline constexpr std::size_t kOsPageBytes = 4096;

constexpr std::uint64_t align_up(std::uint64_t value, std::uint64_t power_of_two) {
  return (value + power_of_two - 1) & ~(power_of_two - 1);
}
constexpr std::uint64_t align_down(std::uint64_t value, std::uint64_t power_of_two) {
  return value & ~(power_of_two - 1);
}
constexpr bool is_aligned(std::uint64_t value, std::uint64_t power_of_two) {
  return (value & (power_of_two - 1)) == 0;
}
// Pages that `size_bytes` bytes need.
constexpr std::uint64_t pages_for(std::uint64_t size_bytes) {
  return (size_bytes + kPageBytes - 1) >> kPageShift;
}

}  // namespace kvmem
