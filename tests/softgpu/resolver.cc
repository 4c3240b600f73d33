// Entry points: cuGetProcAddress, in both its forms, over a table of what this library exports:
// which symbol a name stands for since which version, and which one where stream 0 is the thread's
// own.

#include <dlfcn.h>

#include <cstring>
#include <string>

#include "tests/softgpu/calls.h"

namespace {

struct Row {
  const char* name;
  int version;
  const char* symbol;
  const char* per_thread_suffix;  // null: one symbol for both
  int per_thread_version;
};

// Versions are those of cudaTypedefs.h. The last row that fits wins.
constexpr Row kRows[] = {
    {"cuInit", 2000, "cuInit", nullptr, 0},
    {"cuDriverGetVersion", 2020, "cuDriverGetVersion", nullptr, 0},
    {"cuGetErrorName", 6000, "cuGetErrorName", nullptr, 0},
    {"cuGetErrorString", 6000, "cuGetErrorString", nullptr, 0},
    {"cuGetProcAddress", 11030, "cuGetProcAddress", nullptr, 0},
    {"cuGetProcAddress", 12000, "cuGetProcAddress_v2", nullptr, 0},
    {"cuDeviceGetCount", 2000, "cuDeviceGetCount", nullptr, 0},
    {"cuDeviceGet", 2000, "cuDeviceGet", nullptr, 0},
    {"cuDeviceGetName", 2000, "cuDeviceGetName", nullptr, 0},
    {"cuDeviceGetUuid", 9020, "cuDeviceGetUuid_v2", nullptr, 0},
    {"cuDeviceGetUuid", 11040, "cuDeviceGetUuid_v2", nullptr, 0},
    {"cuDeviceTotalMem", 3020, "cuDeviceTotalMem_v2", nullptr, 0},
    {"cuDeviceGetAttribute", 2000, "cuDeviceGetAttribute", nullptr, 0},
    {"cuDevicePrimaryCtxRetain", 7000, "cuDevicePrimaryCtxRetain", nullptr, 0},
    {"cuDevicePrimaryCtxRelease", 11000, "cuDevicePrimaryCtxRelease_v2", nullptr, 0},
    {"cuDevicePrimaryCtxGetState", 7000, "cuDevicePrimaryCtxGetState", nullptr, 0},
    {"cuDevicePrimaryCtxSetFlags", 11000, "cuDevicePrimaryCtxSetFlags_v2", nullptr, 0},
    {"cuCtxCreate", 3020, "cuCtxCreate_v2", nullptr, 0},
    {"cuCtxCreate", 12050, "cuCtxCreate_v4", nullptr, 0},
    {"cuCtxDestroy", 4000, "cuCtxDestroy_v2", nullptr, 0},
    {"cuCtxSetCurrent", 4000, "cuCtxSetCurrent", nullptr, 0},
    {"cuCtxGetCurrent", 4000, "cuCtxGetCurrent", nullptr, 0},
    {"cuCtxPushCurrent", 4000, "cuCtxPushCurrent_v2", nullptr, 0},
    {"cuCtxPopCurrent", 4000, "cuCtxPopCurrent_v2", nullptr, 0},
    {"cuCtxGetDevice", 2000, "cuCtxGetDevice", nullptr, 0},
    {"cuCtxGetStreamPriorityRange", 5050, "cuCtxGetStreamPriorityRange", nullptr, 0},
    {"cuCtxSynchronize", 2000, "cuCtxSynchronize", nullptr, 0},
    {"cuMemGetAllocationGranularity", 10020, "cuMemGetAllocationGranularity", nullptr, 0},
    {"cuMemAddressReserve", 10020, "cuMemAddressReserve", nullptr, 0},
    {"cuMemAddressFree", 10020, "cuMemAddressFree", nullptr, 0},
    {"cuMemCreate", 10020, "cuMemCreate", nullptr, 0},
    {"cuMemRelease", 10020, "cuMemRelease", nullptr, 0},
    {"cuMemRetainAllocationHandle", 11000, "cuMemRetainAllocationHandle", nullptr, 0},
    {"cuMemGetAllocationPropertiesFromHandle", 10020, "cuMemGetAllocationPropertiesFromHandle",
     nullptr, 0},
    {"cuMemExportToShareableHandle", 10020, "cuMemExportToShareableHandle", nullptr, 0},
    {"cuMemImportFromShareableHandle", 10020, "cuMemImportFromShareableHandle", nullptr, 0},
    {"cuMemMap", 10020, "cuMemMap", nullptr, 0},
    {"cuMemUnmap", 10020, "cuMemUnmap", nullptr, 0},
    {"cuMemSetAccess", 10020, "cuMemSetAccess", nullptr, 0},
    {"cuMemGetAccess", 10020, "cuMemGetAccess", nullptr, 0},
    {"cuMemGetInfo", 3020, "cuMemGetInfo_v2", nullptr, 0},
    {"cuMemAlloc", 3020, "cuMemAlloc_v2", nullptr, 0},
    {"cuMemAllocPitch", 3020, "cuMemAllocPitch_v2", nullptr, 0},
    {"cuMemFree", 3020, "cuMemFree_v2", nullptr, 0},
    {"cuMemAllocAsync", 11020, "cuMemAllocAsync", "_ptsz", 11020},
    {"cuMemAllocFromPoolAsync", 11020, "cuMemAllocFromPoolAsync", "_ptsz", 11020},
    {"cuMemFreeAsync", 11020, "cuMemFreeAsync", "_ptsz", 11020},
    {"cuDeviceGetDefaultMemPool", 11020, "cuDeviceGetDefaultMemPool", nullptr, 0},
    {"cuDeviceGetMemPool", 11020, "cuDeviceGetMemPool", nullptr, 0},
    {"cuDeviceSetMemPool", 11020, "cuDeviceSetMemPool", nullptr, 0},
    {"cuMemPoolCreate", 11020, "cuMemPoolCreate", nullptr, 0},
    {"cuMemPoolDestroy", 11020, "cuMemPoolDestroy", nullptr, 0},
    {"cuMemPoolTrimTo", 11020, "cuMemPoolTrimTo", nullptr, 0},
    {"cuMemPoolSetAttribute", 11020, "cuMemPoolSetAttribute", nullptr, 0},
    {"cuMemPoolGetAttribute", 11020, "cuMemPoolGetAttribute", nullptr, 0},
    {"cuMemPoolSetAccess", 11020, "cuMemPoolSetAccess", nullptr, 0},
    {"cuMemPoolGetAccess", 11020, "cuMemPoolGetAccess", nullptr, 0},
    {"cuMemHostAlloc", 2020, "cuMemHostAlloc", nullptr, 0},
    {"cuMemAllocHost", 3020, "cuMemAllocHost_v2", nullptr, 0},
    {"cuMemFreeHost", 2000, "cuMemFreeHost", nullptr, 0},
    {"cuMemHostRegister", 6050, "cuMemHostRegister_v2", nullptr, 0},
    {"cuMemHostUnregister", 4000, "cuMemHostUnregister", nullptr, 0},
    {"cuMemHostGetDevicePointer", 3020, "cuMemHostGetDevicePointer_v2", nullptr, 0},
    {"cuMemGetAddressRange", 3020, "cuMemGetAddressRange_v2", nullptr, 0},
    {"cuPointerGetAttribute", 4000, "cuPointerGetAttribute", nullptr, 0},
    {"cuPointerGetAttributes", 7000, "cuPointerGetAttributes", nullptr, 0},
    {"cuPointerSetAttribute", 6000, "cuPointerSetAttribute", nullptr, 0},
    {"cuMemGetHandleForAddressRange", 11070, "cuMemGetHandleForAddressRange", nullptr, 0},
    {"cuIpcGetMemHandle", 4010, "cuIpcGetMemHandle", nullptr, 0},
    {"cuIpcOpenMemHandle", 11000, "cuIpcOpenMemHandle_v2", nullptr, 0},
    {"cuIpcCloseMemHandle", 4010, "cuIpcCloseMemHandle", nullptr, 0},
    {"cuDeviceCanAccessPeer", 4000, "cuDeviceCanAccessPeer", nullptr, 0},
    {"cuCtxEnablePeerAccess", 4000, "cuCtxEnablePeerAccess", nullptr, 0},
    {"cuCtxDisablePeerAccess", 4000, "cuCtxDisablePeerAccess", nullptr, 0},
    {"cuMemcpy", 4000, "cuMemcpy", "_ptds", 7000},
    {"cuMemcpyAsync", 4000, "cuMemcpyAsync", "_ptsz", 7000},
    {"cuMemcpyHtoD", 3020, "cuMemcpyHtoD_v2", "_ptds", 7000},
    {"cuMemcpyDtoH", 3020, "cuMemcpyDtoH_v2", "_ptds", 7000},
    {"cuMemcpyDtoD", 3020, "cuMemcpyDtoD_v2", "_ptds", 7000},
    {"cuMemcpyHtoDAsync", 3020, "cuMemcpyHtoDAsync_v2", "_ptsz", 7000},
    {"cuMemcpyDtoHAsync", 3020, "cuMemcpyDtoHAsync_v2", "_ptsz", 7000},
    {"cuMemcpyDtoDAsync", 3020, "cuMemcpyDtoDAsync_v2", "_ptsz", 7000},
    {"cuMemcpy2D", 3020, "cuMemcpy2D_v2", "_ptds", 7000},
    {"cuMemcpy2DUnaligned", 3020, "cuMemcpy2DUnaligned_v2", "_ptds", 7000},
    {"cuMemcpy2DAsync", 3020, "cuMemcpy2DAsync_v2", "_ptsz", 7000},
    {"cuMemcpy3D", 3020, "cuMemcpy3D_v2", "_ptds", 7000},
    {"cuMemcpy3DAsync", 3020, "cuMemcpy3DAsync_v2", "_ptsz", 7000},
    {"cuMemsetD2D8", 3020, "cuMemsetD2D8_v2", "_ptds", 7000},
    {"cuMemsetD2D32", 3020, "cuMemsetD2D32_v2", "_ptds", 7000},
    {"cuMemcpyBatchAsync", 13000, "cuMemcpyBatchAsync_v2", "_ptsz", 13000},
    {"cuMemsetD8", 3020, "cuMemsetD8_v2", "_ptds", 7000},
    {"cuMemsetD16", 3020, "cuMemsetD16_v2", "_ptds", 7000},
    {"cuMemsetD32", 3020, "cuMemsetD32_v2", "_ptds", 7000},
    {"cuMemsetD8Async", 3020, "cuMemsetD8Async", "_ptsz", 7000},
    {"cuMemsetD16Async", 3020, "cuMemsetD16Async", "_ptsz", 7000},
    {"cuMemsetD32Async", 3020, "cuMemsetD32Async", "_ptsz", 7000},
    {"cuStreamCreate", 2000, "cuStreamCreate", nullptr, 0},
    {"cuStreamCreateWithPriority", 5050, "cuStreamCreateWithPriority", nullptr, 0},
    {"cuStreamDestroy", 4000, "cuStreamDestroy_v2", nullptr, 0},
    {"cuStreamSynchronize", 2000, "cuStreamSynchronize", "_ptsz", 7000},
    {"cuStreamQuery", 2000, "cuStreamQuery", "_ptsz", 7000},
    {"cuStreamWaitEvent", 3020, "cuStreamWaitEvent", "_ptsz", 7000},
    {"cuStreamGetFlags", 5050, "cuStreamGetFlags", "_ptsz", 7000},
    {"cuStreamGetId", 12000, "cuStreamGetId", "_ptsz", 12000},
    {"cuStreamGetCtx", 9020, "cuStreamGetCtx", "_ptsz", 9020},
    {"cuStreamBeginCapture", 10010, "cuStreamBeginCapture_v2", "_ptsz", 10010},
    {"cuStreamEndCapture", 10000, "cuStreamEndCapture", "_ptsz", 10000},
    {"cuStreamIsCapturing", 10000, "cuStreamIsCapturing", "_ptsz", 10000},
    {"cuStreamGetCaptureInfo", 12030, "cuStreamGetCaptureInfo_v3", "_ptsz", 12030},
    {"cuThreadExchangeStreamCaptureMode", 10010, "cuThreadExchangeStreamCaptureMode", nullptr, 0},
    {"cuEventCreate", 2000, "cuEventCreate", nullptr, 0},
    {"cuEventDestroy", 4000, "cuEventDestroy_v2", nullptr, 0},
    {"cuEventQuery", 2000, "cuEventQuery", nullptr, 0},
    {"cuEventSynchronize", 2000, "cuEventSynchronize", nullptr, 0},
    {"cuEventElapsedTime", 12080, "cuEventElapsedTime_v2", nullptr, 0},
    {"cuEventRecord", 2000, "cuEventRecord", "_ptsz", 7000},
    {"cuEventRecordWithFlags", 11010, "cuEventRecordWithFlags", "_ptsz", 11010},
    {"cuModuleLoadData", 2000, "cuModuleLoadData", nullptr, 0},
    {"cuModuleLoadDataEx", 2010, "cuModuleLoadDataEx", nullptr, 0},
    {"cuModuleLoadFatBinary", 2000, "cuModuleLoadFatBinary", nullptr, 0},
    {"cuModuleUnload", 2000, "cuModuleUnload", nullptr, 0},
    {"cuModuleGetFunction", 2000, "cuModuleGetFunction", nullptr, 0},
    {"cuFuncGetParamInfo", 12040, "cuFuncGetParamInfo", nullptr, 0},
    {"cuFuncGetName", 12030, "cuFuncGetName", nullptr, 0},
    {"cuFuncGetAttribute", 2020, "cuFuncGetAttribute", nullptr, 0},
    {"cuFuncSetAttribute", 9000, "cuFuncSetAttribute", nullptr, 0},
    {"cuLibraryLoadData", 12000, "cuLibraryLoadData", nullptr, 0},
    {"cuLibraryUnload", 12000, "cuLibraryUnload", nullptr, 0},
    {"cuLibraryGetKernel", 12000, "cuLibraryGetKernel", nullptr, 0},
    {"cuKernelGetFunction", 12000, "cuKernelGetFunction", nullptr, 0},
    {"cuKernelGetName", 12030, "cuKernelGetName", nullptr, 0},
    {"cuKernelGetParamInfo", 12040, "cuKernelGetParamInfo", nullptr, 0},
    {"cuKernelGetAttribute", 12000, "cuKernelGetAttribute", nullptr, 0},
    {"cuKernelSetAttribute", 12000, "cuKernelSetAttribute", nullptr, 0},
    {"cuLaunchKernel", 4000, "cuLaunchKernel", "_ptsz", 7000},
    {"cuLaunchKernelEx", 11060, "cuLaunchKernelEx", "_ptsz", 11060},
    {"cuLaunchCooperativeKernel", 9000, "cuLaunchCooperativeKernel", "_ptsz", 9000},
    {"cuLaunchHostFunc", 10000, "cuLaunchHostFunc", "_ptsz", 10000},
    {"cuGraphCreate", 10000, "cuGraphCreate", nullptr, 0},
    {"cuGraphDestroy", 10000, "cuGraphDestroy", nullptr, 0},
    {"cuGraphGetNodes", 10000, "cuGraphGetNodes", nullptr, 0},
    {"cuGraphNodeGetType", 10000, "cuGraphNodeGetType", nullptr, 0},
    {"cuGraphAddKernelNode", 12000, "cuGraphAddKernelNode_v2", nullptr, 0},
    {"cuGraphInstantiateWithFlags", 11040, "cuGraphInstantiateWithFlags", nullptr, 0},
    {"cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags", nullptr, 0},
    {"cuGraphExecDestroy", 10000, "cuGraphExecDestroy", nullptr, 0},
    {"cuGraphLaunch", 10000, "cuGraphLaunch", "_ptsz", 10000},
};

// This library's, whatever else exports the same names or stands before dlsym: a driver does not
// ask others for what is its own.
void* own_symbol(const std::string& name) {
  static void* const kSelf = [] {
    Dl_info info{};
    ::dladdr(reinterpret_cast<const void*>(&own_symbol), &info);
    return ::dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }();
  using Find = void* (*)(void*, const char*);
  static const auto kFind = reinterpret_cast<Find>(::dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34"));
  return kFind(kSelf, name.c_str());
}

CUdriverProcAddressQueryResult resolve(const char* name, int version, cuuint64_t flags,
                                       void** out) {
  *out = nullptr;
  const bool per_thread = (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0;
  bool known = false;
  for (const Row& row : kRows) {
    if (std::strcmp(row.name, name) != 0) continue;
    known = true;
    const bool own = per_thread && row.per_thread_suffix != nullptr;
    if ((own ? row.per_thread_version : row.version) > version) continue;
    *out = own_symbol(std::string(row.symbol) + (own ? row.per_thread_suffix : ""));
  }
  return *out != nullptr ? CU_GET_PROC_ADDRESS_SUCCESS
         : known         ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                         : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
}

}  // namespace

extern "C" {

CUresult cuGetProcAddress_v2(const char* name, void** out, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult* status) {
  SOFTGPU_ENTRY(cuGetProcAddress);
  if (name == nullptr || out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUdriverProcAddressQueryResult found = resolve(name, version, flags, out);
  if (status != nullptr) *status = found;
  return CUDA_SUCCESS;
}

// The form of before CUDA 12 says it by its result.
CUresult softgpu_get_proc_address_v1(const char* name, void** out, int version,
                                     cuuint64_t flags) __asm__("cuGetProcAddress");
CUresult softgpu_get_proc_address_v1(const char* name, void** out, int version, cuuint64_t flags) {
  SOFTGPU_ENTRY(cuGetProcAddress);
  if (name == nullptr || out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return resolve(name, version, flags, out) == CU_GET_PROC_ADDRESS_SUCCESS ? CUDA_SUCCESS
                                                                           : CUDA_ERROR_NOT_FOUND;
}

}  // extern "C"
