// What is written and how it is summed up, for kernels and for the processor alike.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define GPU_BOTH __host__ __device__
#else
#define GPU_BOTH
#endif

// The i-th word of what fill() writes.
GPU_BOTH constexpr std::uint32_t pattern(std::uint32_t seed, std::uint64_t i) {
  const auto low = static_cast<std::uint32_t>(i);
  const auto high = static_cast<std::uint32_t>(i >> 32);
  std::uint32_t x = low * 2654435761U + high * 0x85ebca6bU + seed;
  x ^= x >> 15;
  x *= 0x2c1b3c6dU;
  return x ^ x >> 12;
}

// What the i-th word adds to a hash: sums of these do not depend on the order of threads, and a
// word in another's place is seen.
GPU_BOTH constexpr std::uint64_t hash_term(std::uint32_t word, std::uint64_t i) {
  std::uint64_t x = (i + 1) * 0x9e3779b97f4a7c15U + word;
  x = (x ^ x >> 31) * 0xbf58476d1ce4e5b9U;
  return x ^ x >> 27;
}
