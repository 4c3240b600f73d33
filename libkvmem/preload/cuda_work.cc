// Calls that start work on a GPU, other than plain copies: launches, graphs, operations on memory
// by a stream, functions of the host behind them, copies between devices and arrays. They pass the
// gate, and nothing else (so the copies among them are not cut where a range lies in two places).
// And the begin and end of captures, during which the gate cannot be closed.
//
// All have the driver's own names, by label, as in cuda_copy.cc.
#include <cuda.h>

#include "preload/cuda.h"
#include "region/device_heap.h"

namespace {

using kvmem::device::g_gate;
using kvmem::preload::is_captured;
using kvmem::preload::Real;

}  // namespace

// What only passes the gate, once: CALL(documented name, version, its exported name, that of each
// thread's own, number of parameters, their types)
#define KVMEM_CALLS(X)                                                                             \
  X(KVMEM_GATED, cuLaunchKernel, 4000, "cuLaunchKernel", "cuLaunchKernel_ptsz", 11, CUfunction,    \
    unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**,        \
    void**)                                                                                        \
  X(KVMEM_GATED, cuLaunchKernelEx, 11060, "cuLaunchKernelEx", "cuLaunchKernelEx_ptsz", 4,          \
    const CUlaunchConfig*, CUfunction, void**, void**)                                             \
  X(KVMEM_GATED, cuLaunchCooperativeKernel, 9000, "cuLaunchCooperativeKernel",                     \
    "cuLaunchCooperativeKernel_ptsz", 10, CUfunction, unsigned, unsigned, unsigned, unsigned,      \
    unsigned, unsigned, unsigned, CUstream, void**)                                                \
  X(KVMEM_GATED, cuLaunchHostFunc, 10000, "cuLaunchHostFunc", "cuLaunchHostFunc_ptsz", 3,          \
    CUstream, CUhostFn, void*)                                                                     \
  X(KVMEM_GATED, cuStreamAddCallback, 5000, "cuStreamAddCallback", "cuStreamAddCallback_ptsz", 4,  \
    CUstream, CUstreamCallback, void*, unsigned)                                                   \
  X(KVMEM_GATED, cuGraphLaunch, 10000, "cuGraphLaunch", "cuGraphLaunch_ptsz", 2, CUgraphExec,      \
    CUstream)                                                                                      \
  X(KVMEM_GATED, cuGraphUpload, 11010, "cuGraphUpload", "cuGraphUpload_ptsz", 2, CUgraphExec,      \
    CUstream)                                                                                      \
  X(KVMEM_GATED, cuStreamBatchMemOp, 11070, "cuStreamBatchMemOp_v2", "cuStreamBatchMemOp_v2_ptsz", \
    4, CUstream, unsigned, CUstreamBatchMemOpParams*, unsigned)                                    \
  X(KVMEM_GATED, cuStreamBatchMemOp, 8000, "cuStreamBatchMemOp", "cuStreamBatchMemOp_ptsz", 4,     \
    CUstream, unsigned, CUstreamBatchMemOpParams*, unsigned)                                       \
  X(KVMEM_GATED, cuStreamWriteValue32, 11070, "cuStreamWriteValue32_v2",                           \
    "cuStreamWriteValue32_v2_ptsz", 4, CUstream, CUdeviceptr, cuuint32_t, unsigned)                \
  X(KVMEM_GATED, cuStreamWriteValue32, 8000, "cuStreamWriteValue32", "cuStreamWriteValue32_ptsz",  \
    4, CUstream, CUdeviceptr, cuuint32_t, unsigned)                                                \
  X(KVMEM_GATED, cuStreamWriteValue64, 11070, "cuStreamWriteValue64_v2",                           \
    "cuStreamWriteValue64_v2_ptsz", 4, CUstream, CUdeviceptr, cuuint64_t, unsigned)                \
  X(KVMEM_GATED, cuStreamWriteValue64, 9000, "cuStreamWriteValue64", "cuStreamWriteValue64_ptsz",  \
    4, CUstream, CUdeviceptr, cuuint64_t, unsigned)                                                \
  X(KVMEM_GATED, cuStreamWaitValue32, 11070, "cuStreamWaitValue32_v2",                             \
    "cuStreamWaitValue32_v2_ptsz", 4, CUstream, CUdeviceptr, cuuint32_t, unsigned)                 \
  X(KVMEM_GATED, cuStreamWaitValue32, 8000, "cuStreamWaitValue32", "cuStreamWaitValue32_ptsz", 4,  \
    CUstream, CUdeviceptr, cuuint32_t, unsigned)                                                   \
  X(KVMEM_GATED, cuStreamWaitValue64, 11070, "cuStreamWaitValue64_v2",                             \
    "cuStreamWaitValue64_v2_ptsz", 4, CUstream, CUdeviceptr, cuuint64_t, unsigned)                 \
  X(KVMEM_GATED, cuStreamWaitValue64, 9000, "cuStreamWaitValue64", "cuStreamWaitValue64_ptsz", 4,  \
    CUstream, CUdeviceptr, cuuint64_t, unsigned)                                                   \
  X(KVMEM_GATED, cuMemcpyPeer, 4000, "cuMemcpyPeer", "cuMemcpyPeer_ptds", 5, CUdeviceptr,          \
    CUcontext, CUdeviceptr, CUcontext, std::size_t)                                                \
  X(KVMEM_GATED, cuMemcpyPeerAsync, 4000, "cuMemcpyPeerAsync", "cuMemcpyPeerAsync_ptsz", 6,        \
    CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, std::size_t, CUstream)                         \
  X(KVMEM_GATED, cuMemcpyDtoA, 3020, "cuMemcpyDtoA_v2", "cuMemcpyDtoA_v2_ptds", 4, CUarray,        \
    std::size_t, CUdeviceptr, std::size_t)                                                         \
  X(KVMEM_GATED, cuMemcpyAtoD, 3020, "cuMemcpyAtoD_v2", "cuMemcpyAtoD_v2_ptds", 4, CUdeviceptr,    \
    CUarray, std::size_t, std::size_t)                                                             \
  X(KVMEM_GATED, cuMemcpy3DBatchAsync, 13000, "cuMemcpy3DBatchAsync_v2",                           \
    "cuMemcpy3DBatchAsync_v2_ptsz", 4, std::size_t, CUDA_MEMCPY3D_BATCH_OP*, unsigned long long,   \
    CUstream)                                                                                      \
  X(KVMEM_GATED, cuMemcpy3DBatchAsync, 12080, "cuMemcpy3DBatchAsync", "cuMemcpy3DBatchAsync_ptsz", \
    5, std::size_t, CUDA_MEMCPY3D_BATCH_OP*, std::size_t*, unsigned long long, CUstream)           \
  X(KVMEM_GATED, cuMemBatchDecompressAsync, 12060, "cuMemBatchDecompressAsync",                    \
    "cuMemBatchDecompressAsync_ptsz", 5, CUmemDecompressParams*, std::size_t, unsigned,            \
    std::size_t*, CUstream)

// And those without a form for each thread's own stream.
#define KVMEM_PLAIN_CALLS(CALL)                                                               \
  CALL(cuLaunchCooperativeKernelMultiDevice, 9000, "cuLaunchCooperativeKernelMultiDevice", 3, \
       CUDA_LAUNCH_PARAMS*, unsigned, unsigned)                                               \
  CALL(cuLaunch, 2000, "cuLaunch", 1, CUfunction)                                             \
  CALL(cuLaunchGrid, 2000, "cuLaunchGrid", 3, CUfunction, int, int)                           \
  CALL(cuLaunchGridAsync, 2000, "cuLaunchGridAsync", 4, CUfunction, int, int, CUstream)

// The same for what begins a capture.
#define KVMEM_CAPTURES(X)                                                               \
  X(KVMEM_CAPTURING, cuStreamBeginCapture, 10010, "cuStreamBeginCapture_v2",            \
    "cuStreamBeginCapture_v2_ptsz", 2, CUstream, CUstreamCaptureMode)                   \
  X(KVMEM_CAPTURING, cuStreamBeginCapture, 10000, "cuStreamBeginCapture",               \
    "cuStreamBeginCapture_ptsz", 1, CUstream)                                           \
  X(KVMEM_CAPTURING, cuStreamBeginCaptureToGraph, 12030, "cuStreamBeginCaptureToGraph", \
    "cuStreamBeginCaptureToGraph_ptsz", 6, CUstream, CUgraph, const CUgraphNode*,       \
    const CUgraphEdgeData*, std::size_t, CUstreamCaptureMode)

#define KVMEM_GATED(id, symbol, count, ...)             \
  KVMEM_EXPORTED_CALL(id, symbol, count, __VA_ARGS__) { \
    static constinit Real real(symbol);                 \
    const kvmem::Gate::Pass pass(g_gate);               \
    return real(KVMEM_ARGUMENTS_##count);               \
  }
#define KVMEM_CAPTURING(id, symbol, count, ...)            \
  KVMEM_EXPORTED_CALL(id, symbol, count, __VA_ARGS__) {    \
    static constinit Real real(symbol);                    \
    const kvmem::Gate::Pass pass(g_gate);                  \
    const CUresult result = real(KVMEM_ARGUMENTS_##count); \
    if (result == CUDA_SUCCESS) g_gate.capture_begun();    \
    return result;                                         \
  }
#define KVMEM_DEFINE_PLAIN(name, version, symbol, ...) \
  KVMEM_GATED(kvmem_##name##_##version, symbol, __VA_ARGS__)
KVMEM_CALLS(KVMEM_BOTH)
KVMEM_PLAIN_CALLS(KVMEM_DEFINE_PLAIN)
KVMEM_CAPTURES(KVMEM_BOTH)

// A capture has ended when its stream says so: the call can fail and end it, or fail and not.
#define KVMEM_CAPTURE_END(id, symbol, own)                            \
  KVMEM_EXPORTED_CALL(id, symbol, 2, CUstream, CUgraph*) {            \
    static constinit Real real(symbol);                               \
    const bool was_captured = is_captured(a, own);                    \
    const CUresult result = real(a, b);                               \
    if (was_captured && !is_captured(a, own)) g_gate.capture_ended(); \
    return result;                                                    \
  }
KVMEM_CAPTURE_END(kvmem_cuStreamEndCapture_10000, "cuStreamEndCapture", false)
KVMEM_CAPTURE_END(kvmem_own_cuStreamEndCapture_10000, "cuStreamEndCapture_ptsz", true)

namespace kvmem::preload {

bool is_captured(CUstream stream, bool own) {
  static constinit Real legacy_form("cuStreamIsCapturing");
  static constinit Real own_form("cuStreamIsCapturing_ptsz");
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  CUstreamCaptureStatus* out = &status;
  const CUresult result = own ? own_form(stream, out) : legacy_form(stream, out);
  return result == CUDA_SUCCESS && status != CU_STREAM_CAPTURE_STATUS_NONE;
}

Hooks work_hooks() {
#define KVMEM_LIST_PLAIN(name, version, symbol, ...) \
  {#name, symbol, reinterpret_cast<void*>(&kvmem_##name##_##version), version},
  static const Hook table[] = {KVMEM_PLAIN_CALLS(KVMEM_LIST_PLAIN) KVMEM_CALLS(KVMEM_LIST)
                                   KVMEM_CAPTURES(KVMEM_LIST)
                                       KVMEM_LIST(, cuStreamEndCapture, 10000, "cuStreamEndCapture",
                                                  "cuStreamEndCapture_ptsz", )};
  return {table, sizeof table / sizeof table[0]};
}

}  // namespace kvmem::preload
