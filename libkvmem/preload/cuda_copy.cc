// Copies and fills, made piece by piece where a range lies in device memory and in host memory:
// what one call across both does is not defined. A piece after another in one stream is one copy to
// whatever comes behind it.
//
// All have the driver's own names, by label: cuda.h declares some of them with pointers where these
// have addresses, and the forms with a stream of each thread's own not at all.
#include <cuda.h>

#include <algorithm>
#include <cstdint>

#include "preload/cuda.h"
#include "region/device_heap.h"

namespace {

using kvmem::device::fix;
using kvmem::device::g_gate;
using kvmem::device::piece;
using kvmem::preload::Real;

// `copy(to, from, bytes)` for each piece, up to the first that fails.
template <class Copy>
CUresult in_pieces(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, Copy copy) {
  const kvmem::Gate::Pass pass(g_gate);
  // It may be what is captured.
  if (g_gate.is_capturing()) {
    fix(to);
    fix(from);
  }
  for (;;) {
    const std::size_t part = std::min(piece(to, bytes), piece(from, bytes));
    const CUresult result = copy(to, from, part);
    if (result != CUDA_SUCCESS || part == bytes) return result;
    to += part;
    from += part;
    bytes -= part;
  }
}
// `fill(to, count)` likewise; pages are multiples of every element's size.
template <class Fill>
CUresult fill_in_pieces(CUdeviceptr to, std::size_t count, std::size_t element, Fill fill) {
  const kvmem::Gate::Pass pass(g_gate);
  if (g_gate.is_capturing()) fix(to);
  for (;;) {
    std::size_t part = count > SIZE_MAX / element ? count : piece(to, count * element) / element;
    if (part == 0) part = count;  // not aligned to its elements: the driver says so
    const CUresult result = fill(to, part);
    if (result != CUDA_SUCCESS || part == count) return result;
    to += part * element;
    count -= part;
  }
}

}  // namespace

// symbol: exported name; id: a name for it here
#define KVMEM_COPY(id, symbol, ...)                                                              \
  extern "C" __attribute__((visibility("default"))) CUresult id(                                 \
      CUdeviceptr to, CUdeviceptr from, std::size_t bytes) __asm__(symbol);                      \
  CUresult id(CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {                             \
    static constinit Real real(symbol);                                                          \
    return in_pieces(to, from, bytes,                                                            \
                     [](CUdeviceptr t, CUdeviceptr f, std::size_t n) { return real(t, f, n); }); \
  }
#define KVMEM_COPY_ASYNC(id, symbol, ...)                                                     \
  extern "C" __attribute__((visibility("default"))) CUresult id(                              \
      CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) __asm__(symbol);  \
  CUresult id(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {         \
    static constinit Real real(symbol);                                                       \
    return in_pieces(to, from, bytes, [stream](CUdeviceptr t, CUdeviceptr f, std::size_t n) { \
      return real(t, f, n, stream);                                                           \
    });                                                                                       \
  }
#define KVMEM_FILL(id, symbol, Value)                                                           \
  extern "C" __attribute__((visibility("default"))) CUresult id(                                \
      CUdeviceptr to, Value value, std::size_t count) __asm__(symbol);                          \
  CUresult id(CUdeviceptr to, Value value, std::size_t count) {                                 \
    static constinit Real real(symbol);                                                         \
    return fill_in_pieces(to, count, sizeof(Value),                                             \
                          [value](CUdeviceptr t, std::size_t n) { return real(t, value, n); }); \
  }
#define KVMEM_FILL_ASYNC(id, symbol, Value)                                                   \
  extern "C" __attribute__((visibility("default"))) CUresult id(                              \
      CUdeviceptr to, Value value, std::size_t count, CUstream stream) __asm__(symbol);       \
  CUresult id(CUdeviceptr to, Value value, std::size_t count, CUstream stream) {              \
    static constinit Real real(symbol);                                                       \
    return fill_in_pieces(                                                                    \
        to, count, sizeof(Value),                                                             \
        [value, stream](CUdeviceptr t, std::size_t n) { return real(t, value, n, stream); }); \
  }

// What there is, once; a fill with the type of what is filled in.
#define KVMEM_COPIES(X)                                                                    \
  X(KVMEM_COPY, cuMemcpy, 4000, "cuMemcpy", "cuMemcpy_ptds", )                             \
  X(KVMEM_COPY, cuMemcpyHtoD, 3020, "cuMemcpyHtoD_v2", "cuMemcpyHtoD_v2_ptds", )           \
  X(KVMEM_COPY, cuMemcpyDtoH, 3020, "cuMemcpyDtoH_v2", "cuMemcpyDtoH_v2_ptds", )           \
  X(KVMEM_COPY, cuMemcpyDtoD, 3020, "cuMemcpyDtoD_v2", "cuMemcpyDtoD_v2_ptds", )           \
  X(KVMEM_COPY_ASYNC, cuMemcpyAsync, 4000, "cuMemcpyAsync", "cuMemcpyAsync_ptsz", )        \
  X(KVMEM_COPY_ASYNC, cuMemcpyHtoDAsync, 3020, "cuMemcpyHtoDAsync_v2",                     \
    "cuMemcpyHtoDAsync_v2_ptsz", )                                                         \
  X(KVMEM_COPY_ASYNC, cuMemcpyDtoHAsync, 3020, "cuMemcpyDtoHAsync_v2",                     \
    "cuMemcpyDtoHAsync_v2_ptsz", )                                                         \
  X(KVMEM_COPY_ASYNC, cuMemcpyDtoDAsync, 3020, "cuMemcpyDtoDAsync_v2",                     \
    "cuMemcpyDtoDAsync_v2_ptsz", )                                                         \
  X(KVMEM_FILL, cuMemsetD8, 3020, "cuMemsetD8_v2", "cuMemsetD8_v2_ptds", std::uint8_t)     \
  X(KVMEM_FILL, cuMemsetD16, 3020, "cuMemsetD16_v2", "cuMemsetD16_v2_ptds", std::uint16_t) \
  X(KVMEM_FILL, cuMemsetD32, 3020, "cuMemsetD32_v2", "cuMemsetD32_v2_ptds", std::uint32_t) \
  X(KVMEM_FILL_ASYNC, cuMemsetD8Async, 3020, "cuMemsetD8Async", "cuMemsetD8Async_ptsz",    \
    std::uint8_t)                                                                          \
  X(KVMEM_FILL_ASYNC, cuMemsetD16Async, 3020, "cuMemsetD16Async", "cuMemsetD16Async_ptsz", \
    std::uint16_t)                                                                         \
  X(KVMEM_FILL_ASYNC, cuMemsetD32Async, 3020, "cuMemsetD32Async", "cuMemsetD32Async_ptsz", \
    std::uint32_t)

KVMEM_COPIES(KVMEM_BOTH)

namespace kvmem::preload {

Hooks copy_hooks() {
  static const Hook table[] = {KVMEM_COPIES(KVMEM_LIST)};
  return {table, sizeof table / sizeof table[0]};
}

}  // namespace kvmem::preload
