// The kernels; see kernels.h. Memory-bound: 16 bytes a thread and step, neighbours side by side.
#include "kernels/kernels.h"

namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kLanes = 32;

struct alignas(16) Pair {
  unsigned long long low, high;
};

// This thread's pairs of its block's page, with their positions.
template <class Step>
__device__ void for_each_pair(const kvmem_batch& batch, Step step) {
  const auto pairs = static_cast<unsigned>(batch.page_bytes / sizeof(Pair));
  for (unsigned i = blockIdx.x * kThreads + threadIdx.x; i < pairs; i += gridDim.x * kThreads) {
    step(i);
  }
}

__device__ const Pair* from(const kvmem_batch& batch) {
  return reinterpret_cast<const Pair*>(batch.from[blockIdx.y]);
}
__device__ Pair* to(const kvmem_batch& batch) {
  return reinterpret_cast<Pair*>(batch.to[blockIdx.y]);
}

__device__ unsigned long long hash_of(const Pair& pair, unsigned i) {
  const auto word = static_cast<uint64_t>(i) * 2;
  return kvmem_hash_word(pair.low, word) + kvmem_hash_word(pair.high, word + 1);
}

// The threads' parts together are the block's.
__device__ void sum_up(unsigned long long part, unsigned long long* sums) {
  __shared__ unsigned long long warps[kThreads / kLanes];
  for (unsigned width = kLanes / 2; width > 0; width /= 2) {
    part += __shfl_down_sync(~0U, part, width);
  }
  if (threadIdx.x % kLanes == 0) warps[threadIdx.x / kLanes] = part;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned warp = 1; warp < kThreads / kLanes; ++warp) part += warps[warp];
  sums[blockIdx.y * gridDim.x + blockIdx.x] = part;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    kvmem_copy(const __grid_constant__ kvmem_batch batch) {
  for_each_pair(batch, [&](unsigned i) { to(batch)[i] = from(batch)[i]; });
}

extern "C" __global__ void __launch_bounds__(kThreads)
    kvmem_fill(const __grid_constant__ kvmem_batch batch, uint64_t value) {
  for_each_pair(batch, [&](unsigned i) { to(batch)[i] = {value, value}; });
}

extern "C" __global__ void __launch_bounds__(kThreads)
    kvmem_hash(const __grid_constant__ kvmem_batch batch, unsigned long long* sums) {
  unsigned long long sum = 0;
  for_each_pair(batch, [&](unsigned i) { sum += hash_of(from(batch)[i], i); });
  sum_up(sum, sums);
}

// The hash is of what was read and written, whatever else happens to the page meanwhile.
extern "C" __global__ void __launch_bounds__(kThreads)
    kvmem_copy_hash(const __grid_constant__ kvmem_batch batch, unsigned long long* sums) {
  unsigned long long sum = 0;
  for_each_pair(batch, [&](unsigned i) {
    const Pair pair = from(batch)[i];
    to(batch)[i] = pair;
    sum += hash_of(pair, i);
  });
  sum_up(sum, sums);
}
