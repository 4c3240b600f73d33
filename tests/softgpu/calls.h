// Calls: every entry point counts its calls here and may be told to fail. Any thread.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace softgpu {

// Named by the driver's documented name, without version or stream suffix; entries of one name
// share one count.
class Calls;
Calls& calls_of(const char* entry);
// Counts; the result an injected failure asks for, or what the device died of, which every call
// answers that asks something of a context; else CUDA_SUCCESS.
CUresult count(Calls& calls);

}  // namespace softgpu

// First line of an entry point.
#define SOFTGPU_ENTRY(name)                                      \
  static softgpu::Calls& entry_calls = softgpu::calls_of(#name); \
  if (const CUresult failure = softgpu::count(entry_calls); failure != CUDA_SUCCESS) return failure
