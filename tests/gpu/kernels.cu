// The kernels, compiled for the GPU that is there; for the software driver: kernels_softgpu.cc.
// Any grid: threads take every n-th word.
#include "pattern.h"

namespace {

__device__ std::uint64_t thread_index() {
  return static_cast<std::uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ std::uint64_t thread_count() {
  return static_cast<std::uint64_t>(gridDim.x) * blockDim.x;
}
__device__ void add_to(std::uint64_t* sum, std::uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), value);
}

}  // namespace

extern "C" {

__global__ void gpu_empty() {}

__global__ void gpu_fill(std::uint32_t* words, std::uint64_t count, std::uint32_t seed) {
  for (std::uint64_t i = thread_index(); i < count; i += thread_count())
    words[i] = pattern(seed, i);
}

__global__ void gpu_add(std::uint32_t* words, std::uint64_t count, std::uint32_t value) {
  for (std::uint64_t i = thread_index(); i < count; i += thread_count()) words[i] += value;
}

// Words that are not what fill() wrote plus `value`, counted into `*out`.
__global__ void gpu_wrong(const std::uint32_t* words, std::uint64_t count, std::uint32_t seed,
                          std::uint32_t value, std::uint64_t* out) {
  std::uint64_t wrong = 0;
  for (std::uint64_t i = thread_index(); i < count; i += thread_count()) {
    wrong += words[i] != pattern(seed, i) + value;
  }
  if (wrong > 0) add_to(out, wrong);
}

__global__ void gpu_hash(const std::uint32_t* words, std::uint64_t count, std::uint64_t* out) {
  std::uint64_t sum = 0;
  for (std::uint64_t i = thread_index(); i < count; i += thread_count())
    sum += hash_term(words[i], i);
  add_to(out, sum);
}

__global__ void gpu_copy(std::uint32_t* to, const std::uint32_t* from, std::uint64_t count) {
  for (std::uint64_t i = thread_index(); i < count; i += thread_count()) to[i] = from[i];
}

// Writes one word in each `stride` words, so that each page has been used.
__global__ void gpu_touch(std::uint32_t* words, std::uint64_t count, std::uint64_t stride) {
  for (std::uint64_t i = thread_index() * stride; i < count; i += thread_count() * stride)
    words[i] = 1;
}

// Each of `times` adds one to one of `slots` counters of 8 bytes, `stride` bytes apart. How: see
// Atomic in facts_mixed.cc.
__global__ void gpu_count(unsigned char* counters, std::uint64_t slots, std::uint64_t stride,
                          std::uint64_t times, std::uint32_t how) {
  for (std::uint64_t i = thread_index(); i < times; i += thread_count()) {
    unsigned char* const at = counters + i % slots * stride;
    auto* const word = reinterpret_cast<unsigned*>(at);
    auto* const wide = reinterpret_cast<unsigned long long*>(at);
    if (how == 0) {
      atomicAdd(word, 1U);
    } else if (how == 1) {
      atomicAdd(wide, 1ULL);
    } else if (how == 2) {
      unsigned expected = *reinterpret_cast<volatile unsigned*>(word);
      for (unsigned seen; (seen = atomicCAS(word, expected, expected + 1)) != expected;) {
        expected = seen;
      }
    } else {
      atomicAdd_system(wide, 1ULL);
    }
  }
}
}
