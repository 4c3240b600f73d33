// Entry points: memory shared with other processes and devices. There is one device: it has no
// peer.

#include "tests/softgpu/calls.h"
#include "tests/softgpu/memory.h"
#include "tests/softgpu/state.h"

using namespace softgpu;  // NOLINT(google-build-using-namespace)

namespace {

// Another context, of the same device: no peer of the current one.
CUresult check_peer(CUcontext peer) {
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  const std::lock_guard lock(state_mu);
  auto* other = reinterpret_cast<Context*>(peer);
  if (contexts.count(other) == 0 || other == context) return CUDA_ERROR_INVALID_CONTEXT;
  return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

CUresult cuIpcGetMemHandle(CUipcMemHandle* handle, CUdeviceptr at) {
  SOFTGPU_ENTRY(cuIpcGetMemHandle);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  return Memory::get().ipc_handle(handle, at);
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr* out, CUipcMemHandle handle, unsigned flags) {
  SOFTGPU_ENTRY(cuIpcOpenMemHandle);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  if (const CUresult bad = refuse_capture(); bad != CUDA_SUCCESS) return bad;
  if (flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) return CUDA_ERROR_INVALID_VALUE;
  return Memory::get().ipc_open(out, handle);
}

CUresult cuIpcCloseMemHandle(CUdeviceptr at) {
  SOFTGPU_ENTRY(cuIpcCloseMemHandle);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  if (const CUresult bad = refuse_capture(); bad != CUDA_SUCCESS) return bad;
  if (const CUresult error = synchronize(*context); error != CUDA_SUCCESS) return error;
  return Memory::get().ipc_close(at);
}

CUresult cuMemGetHandleForAddressRange(void* handle, CUdeviceptr at, std::size_t bytes,
                                       CUmemRangeHandleType type, unsigned long long flags) {
  SOFTGPU_ENTRY(cuMemGetHandleForAddressRange);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  if (type != CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD) return CUDA_ERROR_INVALID_VALUE;
  if (flags != 0) return CUDA_ERROR_NOT_SUPPORTED;
  return Memory::get().dma_buf(static_cast<int*>(handle), at, bytes);
}

CUresult cuDeviceCanAccessPeer(int* can, CUdevice device, CUdevice peer) {
  SOFTGPU_ENTRY(cuDeviceCanAccessPeer);
  if (!initialized()) return CUDA_ERROR_NOT_INITIALIZED;
  if (device != 0 || peer != 0) return CUDA_ERROR_INVALID_DEVICE;
  if (can == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *can = 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned flags) {
  SOFTGPU_ENTRY(cuCtxEnablePeerAccess);
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  const CUresult bad = check_peer(peer);
  return bad != CUDA_SUCCESS ? bad : CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
}

CUresult cuCtxDisablePeerAccess(CUcontext peer) {
  SOFTGPU_ENTRY(cuCtxDisablePeerAccess);
  const CUresult bad = check_peer(peer);
  return bad != CUDA_SUCCESS ? bad : CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
}

}  // extern "C"
