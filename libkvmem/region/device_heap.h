// Device heap: what an engine allocates on its GPUs, as device regions; behind cuMemAlloc and its
// kin. Each GPU has a pool, made at the first allocation there.
//
// Any thread. Nothing here starts, loads or asks anything before an engine's first large
// allocation.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>

namespace kvmem::device {

// The size from which an allocation is worth a region; SIZE_MAX: none, the device path is off.
// Constant after install().
extern std::size_t g_threshold_bytes __attribute__((visibility("hidden")));
void install();
inline bool is_on() { return g_threshold_bytes != SIZE_MAX; }

// As cuMemAlloc. CUDA_ERROR_NOT_SUPPORTED: kvmem cannot serve, make the real call.
CUresult allocate(CUdeviceptr* out, std::size_t size_bytes);

struct Found {
  CUdeviceptr begin = 0;
  std::size_t size_bytes = 0;   // as asked for
  CUcontext context = nullptr;  // current when it was allocated
};
// False: not in a region.
bool find(CUdeviceptr at, Found* out);

// As cuMemFree: waits for the context's work. False: `at` is not where a region begins.
bool release(CUdeviceptr at, CUresult* result);

// The longest piece of [at, at + size_bytes), from its start, that lies in one place: what a copy
// across both would do is not defined, so copies are made piece by piece. Cheap while nothing is in
// host memory.
std::size_t piece(CUdeviceptr at, std::size_t size_bytes);

// What the driver says of the current device's memory, as it would be if the device had what
// KVMEM_HBM grants and the pool held nothing.
void adjust_info(std::size_t* free_bytes, std::size_t* total_bytes);

}  // namespace kvmem::device
