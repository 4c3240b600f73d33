// Driver: the CUDA driver's entry points, looked up in libcuda.so.1 at run time; the same binary
// runs with a GPU's driver, with the software one, or with none. Versions are asked for by number
// (cuGetProcAddress), so that what is called has the form that cuda.h says.
//
// Any thread. Nothing here initialises the driver before the engine has.
#pragma once

#include <cuda.h>

#include "base/status.h"

namespace kvmem::cuda {

// member, documented name, first version with the form used here
#define KV_CUDA_ENTRIES(X)                                           \
  X(driver_get_version, cuDriverGetVersion, 2020)                    \
  X(get_error_name, cuGetErrorName, 6000)                            \
  X(device_get_count, cuDeviceGetCount, 2000)                        \
  X(device_get_attribute, cuDeviceGetAttribute, 2000)                \
  X(device_uuid, cuDeviceGetUuid, 11040)                             \
  X(primary_retain, cuDevicePrimaryCtxRetain, 7000)                  \
  X(primary_release, cuDevicePrimaryCtxRelease, 11000)               \
  X(stream_create, cuStreamCreate, 2000)                             \
  X(stream_destroy, cuStreamDestroy, 4000)                           \
  X(stream_synchronize, cuStreamSynchronize, 2000)                   \
  X(context_push, cuCtxPushCurrent, 4000)                            \
  X(context_pop, cuCtxPopCurrent, 4000)                              \
  X(context_get, cuCtxGetCurrent, 4000)                              \
  X(context_synchronize, cuCtxSynchronize, 2000)                     \
  X(exchange_capture_mode, cuThreadExchangeStreamCaptureMode, 10010) \
  X(allocation_granularity, cuMemGetAllocationGranularity, 10020)    \
  X(address_reserve, cuMemAddressReserve, 10020)                     \
  X(address_free, cuMemAddressFree, 10020)                           \
  X(create, cuMemCreate, 10020)                                      \
  X(release, cuMemRelease, 10020)                                    \
  X(map, cuMemMap, 10020)                                            \
  X(unmap, cuMemUnmap, 10020)                                        \
  X(set_access, cuMemSetAccess, 10020)                               \
  X(context_device, cuCtxGetDevice, 2000)                            \
  X(copy_async, cuMemcpyDtoDAsync, 3020)                             \
  X(copy_out_async, cuMemcpyDtoHAsync, 3020)                         \
  X(copy_in_async, cuMemcpyHtoDAsync, 3020)                          \
  X(host_allocate, cuMemHostAlloc, 2020)                             \
  X(host_free, cuMemFreeHost, 2000)                                  \
  X(module_load, cuModuleLoadData, 2000)                             \
  X(module_unload, cuModuleUnload, 2000)                             \
  X(module_function, cuModuleGetFunction, 2000)                      \
  X(launch, cuLaunchKernel, 4000)                                    \
  X(allocate, cuMemAlloc, 3020)                                      \
  X(allocate_pitch, cuMemAllocPitch, 3020)                           \
  X(free, cuMemFree, 3020)                                           \
  X(address_range, cuMemGetAddressRange, 3020)                       \
  X(pointer_attribute, cuPointerGetAttribute, 4000)                  \
  X(pointer_attributes, cuPointerGetAttributes, 7000)                \
  X(memory_info, cuMemGetInfo, 3020)

struct Driver {
// NOLINTNEXTLINE(bugprone-macro-parentheses): `member` is declared
#define KV_CUDA_MEMBER(member, name, version) decltype(&::name) member = nullptr;
  KV_CUDA_ENTRIES(KV_CUDA_MEMBER)
#undef KV_CUDA_MEMBER
};

// True on a thread that fills the table: what it looks up must be the driver's own.
bool is_loading();
// The table, filled at the first call. kNotFound: no libcuda.so.1 here; kUnsupported: one that
// lacks what is needed (detail: its version, 0 if it does not even say that). The answer never
// changes.
Result<const Driver*> load();
// The table; what load() did not find in it is null.
const Driver& driver();
// What the real libcuda.so.1 exports under a name; null: nothing, or no engine has loaded it yet.
void* exported(const char* name);

// CUDA_SUCCESS, or a Status with the driver's code as detail. `what` names the call.
Status status_of(CUresult result, const char* what);
// The driver's name for what status_of() made, "" where it has none or the Status is another one's.
const char* error_name(const Status& status);

}  // namespace kvmem::cuda
