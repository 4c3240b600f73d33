// Pools: where memory in the order of streams comes from. What is freed goes back to the device
// when its stream has come to it, whatever release threshold is set: what is reserved is what is
// used. What a captured stream allocates and frees are nodes of its graph. Any thread.
#pragma once

#include <cuda.h>

namespace softgpu {

// As cuMemFree, which for such memory waits for nothing: its users are to have done with it. False:
// `at` is not where memory from a pool begins.
bool free_pooled(CUdeviceptr at, CUresult* result);

}  // namespace softgpu
