// Entry points: the driver itself, devices, contexts.

#include <algorithm>
#include <cstring>

#include "tests/softgpu/calls.h"
#include "tests/softgpu/memory.h"
#include "tests/softgpu/settings.h"
#include "tests/softgpu/softgpu.h"
#include "tests/softgpu/state.h"

using namespace softgpu;  // NOLINT(google-build-using-namespace)

namespace {

Context& primary() {
  static auto* const kPrimary = [] {
    auto* made = new Context;
    made->primary = true;
    const std::lock_guard lock(state_mu);
    contexts.insert(made);
    return made;
  }();
  return *kPrimary;
}

CUresult check_device(CUdevice device) {
  if (!initialized()) return CUDA_ERROR_NOT_INITIALIZED;
  return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

struct ErrorName {
  CUresult code;
  const char* name;
  const char* text;
};
constexpr ErrorName kErrors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_DEINITIALIZED, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS",
     "an illegal memory access was encountered"},
    {CUDA_ERROR_CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
     "part or all of the requested memory range is already mapped"},
    {CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
     "pointer does not correspond to a registered memory region"},
    {CUDA_ERROR_NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
     "capture was not ended in the same stream as it began"},
    {CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
     "capturing stream has unjoined work"},
    {CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {CUDA_ERROR_CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
    {CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
     "peer access is not supported between these two devices"},
    {CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED",
     "peer access has not been enabled"},
    {CUDA_ERROR_OPERATING_SYSTEM, "CUDA_ERROR_OPERATING_SYSTEM", "OS call failed"},
    {CUDA_ERROR_UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const ErrorName* error_named(CUresult code) {
  const auto* found = std::find_if(std::begin(kErrors), std::end(kErrors),
                                   [code](const ErrorName& e) { return e.code == code; });
  return found != std::end(kErrors) ? found : nullptr;
}

int attribute_of(CUdevice_attribute attribute) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      return 9;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y:
      return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z:
      return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
      return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z:
      return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
      return 49152;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      return 32;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      return 1;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
      return 1000000;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
      return 1;
    default:
      return 0;
  }
}

}  // namespace

extern "C" {

std::uint64_t softgpu_live(softgpu_kind kind) {
  return kind <= SOFTGPU_DEVICE_BYTES ? Memory::get().live(kind) : live(kind);
}

CUresult cuInit(unsigned flags) {
  SOFTGPU_ENTRY(cuInit);
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  (void)settings();
  initialize();
  return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) {
  SOFTGPU_ENTRY(cuDriverGetVersion);
  if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** name) {
  const ErrorName* found = error_named(error);
  *name = found != nullptr ? found->name : nullptr;
  return found != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  const ErrorName* found = error_named(error);
  *text = found != nullptr ? found->text : nullptr;
  return found != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceGetCount(int* count) {
  SOFTGPU_ENTRY(cuDeviceGetCount);
  if (!initialized()) return CUDA_ERROR_NOT_INITIALIZED;
  *count = 1;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  SOFTGPU_ENTRY(cuDeviceGet);
  if (const CUresult bad = check_device(ordinal); bad != CUDA_SUCCESS) return bad;
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int size, CUdevice device) {
  SOFTGPU_ENTRY(cuDeviceGetName);
  if (const CUresult bad = check_device(device); bad != CUDA_SUCCESS) return bad;
  if (name == nullptr || size <= 0) return CUDA_ERROR_INVALID_VALUE;
  std::strncpy(name, "softgpu", static_cast<std::size_t>(size));
  name[size - 1] = '\0';
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
  SOFTGPU_ENTRY(cuDeviceGetUuid);
  if (const CUresult bad = check_device(device); bad != CUDA_SUCCESS) return bad;
  std::memcpy(uuid->bytes, "softgpu-device-0", sizeof uuid->bytes);
  return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(std::size_t* bytes, CUdevice device) {
  SOFTGPU_ENTRY(cuDeviceTotalMem);
  if (const CUresult bad = check_device(device); bad != CUDA_SUCCESS) return bad;
  *bytes = settings().memory_bytes;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  SOFTGPU_ENTRY(cuDeviceGetAttribute);
  if (const CUresult bad = check_device(device); bad != CUDA_SUCCESS) return bad;
  if (value == nullptr || attribute <= 0) return CUDA_ERROR_INVALID_VALUE;
  *value = attribute_of(attribute);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  SOFTGPU_ENTRY(cuDevicePrimaryCtxRetain);
  if (const CUresult bad = check_device(device); bad != CUDA_SUCCESS) return bad;
  if (const CUresult error = device_error(); error != CUDA_SUCCESS) return error;
  Context& made = primary();
  const std::lock_guard lock(state_mu);
  ++made.references;
  *context = reinterpret_cast<CUcontext>(&made);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  SOFTGPU_ENTRY(cuDevicePrimaryCtxRelease);
  if (const CUresult bad = check_device(device); bad != CUDA_SUCCESS) return bad;
  Context& made = primary();
  {
    const std::lock_guard lock(state_mu);
    if (made.references == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (made.references > 1) {
      --made.references;
      return CUDA_SUCCESS;
    }
  }
  (void)synchronize(made);
  const std::lock_guard lock(state_mu);
  --made.references;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  SOFTGPU_ENTRY(cuDevicePrimaryCtxGetState);
  if (const CUresult bad = check_device(device); bad != CUDA_SUCCESS) return bad;
  Context& made = primary();
  const std::lock_guard lock(state_mu);
  if (flags != nullptr) *flags = made.flags;
  if (active != nullptr) *active = made.references > 0 ? 1 : 0;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags) {
  SOFTGPU_ENTRY(cuDevicePrimaryCtxSetFlags);
  if (const CUresult bad = check_device(device); bad != CUDA_SUCCESS) return bad;
  Context& made = primary();
  const std::lock_guard lock(state_mu);
  made.flags = flags;
  return CUDA_SUCCESS;
}

CUresult cuCtxCreate_v4(CUcontext* out, CUctxCreateParams*, unsigned flags, CUdevice device) {
  SOFTGPU_ENTRY(cuCtxCreate);
  if (const CUresult bad = check_device(device); bad != CUDA_SUCCESS) return bad;
  auto* made = new Context;
  made->flags = flags;
  const std::lock_guard lock(state_mu);
  contexts.insert(made);
  context_stack().push_back(made);
  *out = reinterpret_cast<CUcontext>(made);
  return CUDA_SUCCESS;
}

// The ABI of before CUDA 13 still has its own name.
CUresult softgpu_cuCtxCreate_v2(CUcontext* out, unsigned flags,
                                CUdevice device) __asm__("cuCtxCreate_v2");
CUresult softgpu_cuCtxCreate_v2(CUcontext* out, unsigned flags, CUdevice device) {
  return cuCtxCreate_v4(out, nullptr, flags, device);
}

CUresult cuCtxDestroy_v2(CUcontext handle) {
  SOFTGPU_ENTRY(cuCtxDestroy);
  auto* context = reinterpret_cast<Context*>(handle);
  {
    const std::lock_guard lock(state_mu);
    if (contexts.count(context) == 0 || context->primary) return CUDA_ERROR_INVALID_CONTEXT;
  }
  (void)synchronize(*context);
  const std::lock_guard lock(state_mu);
  contexts.erase(context);
  std::erase(context_stack(), context);
  return CUDA_SUCCESS;  // the context itself stays: other threads may still name it
}

CUresult cuCtxSetCurrent(CUcontext context) {
  SOFTGPU_ENTRY(cuCtxSetCurrent);
  if (!initialized()) return CUDA_ERROR_NOT_INITIALIZED;
  auto& stack = context_stack();
  if (!stack.empty()) stack.pop_back();
  if (context != nullptr) stack.push_back(reinterpret_cast<Context*>(context));
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  SOFTGPU_ENTRY(cuCtxGetCurrent);
  if (!initialized()) return CUDA_ERROR_NOT_INITIALIZED;
  const auto& stack = context_stack();
  *context = stack.empty() ? nullptr : reinterpret_cast<CUcontext>(stack.back());
  return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
  SOFTGPU_ENTRY(cuCtxPushCurrent);
  if (!initialized()) return CUDA_ERROR_NOT_INITIALIZED;
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  context_stack().push_back(reinterpret_cast<Context*>(context));
  return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  SOFTGPU_ENTRY(cuCtxPopCurrent);
  auto& stack = context_stack();
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (context != nullptr) *context = reinterpret_cast<CUcontext>(stack.back());
  stack.pop_back();
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
  SOFTGPU_ENTRY(cuCtxGetDevice);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  SOFTGPU_ENTRY(cuCtxGetStreamPriorityRange);
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize() {
  SOFTGPU_ENTRY(cuCtxSynchronize);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  if (const CUresult bad = refuse_capture(); bad != CUDA_SUCCESS) return bad;
  return synchronize(*context);
}

}  // extern "C"
