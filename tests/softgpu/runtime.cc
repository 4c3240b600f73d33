// The CUDA runtime in software, as far as its tests need it: a drop-in libcudart.so.13, and an
// archive for programs that have their runtime within, over whatever libcuda.so.1 is found. It
// comes to the driver as NVIDIA's does: dlopen, one dlsym, and the resolver for all calls, by
// version, and for each that takes a stream in both its forms.
//
// NVIDIA's own cannot stand here: it has the driver prove that it is NVIDIA's, and ends in
// cudaErrorSoftwareValidityNotEstablished if it is not.

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace {

// Documented name, version.
#define RUNTIME_CALLS(X)              \
  X(cuInit, 2000)                     \
  X(cuGetErrorString, 6000)           \
  X(cuDeviceGetCount, 2000)           \
  X(cuDeviceGet, 2000)                \
  X(cuDevicePrimaryCtxRetain, 7000)   \
  X(cuCtxSetCurrent, 4000)            \
  X(cuCtxSynchronize, 2000)           \
  X(cuMemAlloc, 3020)                 \
  X(cuMemFree, 3020)                  \
  X(cuMemHostAlloc, 2020)             \
  X(cuMemFreeHost, 2000)              \
  X(cuMemGetInfo, 3020)               \
  X(cuPointerGetAttributes, 7000)     \
  X(cuMemPoolCreate, 11020)           \
  X(cuMemPoolDestroy, 11020)          \
  X(cuMemPoolSetAttribute, 11020)     \
  X(cuMemPoolGetAttribute, 11020)     \
  X(cuMemPoolTrimTo, 11020)           \
  X(cuDeviceGetDefaultMemPool, 11020) \
  X(cuStreamCreate, 2000)             \
  X(cuStreamDestroy, 4000)            \
  X(cuEventCreate, 2000)              \
  X(cuEventDestroy, 4000)             \
  X(cuEventQuery, 2000)               \
  X(cuEventSynchronize, 2000)         \
  X(cuLibraryLoadData, 12000)         \
  X(cuLibraryGetKernel, 12000)        \
  X(cuKernelGetFunction, 12000)       \
  X(cuGraphInstantiate, 12000)        \
  X(cuGraphDestroy, 10000)            \
  X(cuGraphExecDestroy, 10000)
// The same, with the version from which on there is a form for each thread's own stream.
#define RUNTIME_STREAM_CALLS(X)            \
  X(cuMemcpy, 4000, 7000)                  \
  X(cuMemcpyHtoD, 3020, 7000)              \
  X(cuMemcpyDtoH, 3020, 7000)              \
  X(cuMemcpyDtoD, 3020, 7000)              \
  X(cuMemcpyAsync, 4000, 7000)             \
  X(cuMemcpyHtoDAsync, 3020, 7000)         \
  X(cuMemcpyDtoHAsync, 3020, 7000)         \
  X(cuMemcpyDtoDAsync, 3020, 7000)         \
  X(cuMemsetD8, 3020, 7000)                \
  X(cuMemsetD8Async, 3020, 7000)           \
  X(cuMemAllocAsync, 11020, 11020)         \
  X(cuMemAllocFromPoolAsync, 11020, 11020) \
  X(cuMemFreeAsync, 11020, 11020)          \
  X(cuStreamSynchronize, 2000, 7000)       \
  X(cuStreamQuery, 2000, 7000)             \
  X(cuStreamWaitEvent, 3020, 7000)         \
  X(cuStreamBeginCapture, 10010, 10010)    \
  X(cuStreamEndCapture, 10000, 10000)      \
  X(cuStreamIsCapturing, 10000, 10000)     \
  X(cuEventRecord, 2000, 7000)             \
  X(cuLaunchKernel, 4000, 7000)            \
  X(cuGraphLaunch, 10000, 10000)

struct Driver {
#define RUNTIME_MEMBER(name, version) decltype(&::name) name##_call = nullptr;
#define RUNTIME_MEMBERS(name, version, own_version) decltype(&::name) name##_call[2] = {};
  RUNTIME_CALLS(RUNTIME_MEMBER)
  RUNTIME_STREAM_CALLS(RUNTIME_MEMBERS)
#undef RUNTIME_MEMBER
#undef RUNTIME_MEMBERS
  decltype(&::cuGetProcAddress) resolve = nullptr;
  CUcontext context = nullptr;
  CUresult status = CUDA_ERROR_NOT_INITIALIZED;
};

template <class Call>
void find(const Driver& driver, const char* name, int version, cuuint64_t flags, Call* out) {
  void* found = nullptr;
  CUdriverProcAddressQueryResult status{};
  if (driver.resolve(name, &found, version, flags, &status) == CUDA_SUCCESS) {
    *out = reinterpret_cast<Call>(found);
  }
}

Driver start() {
  Driver driver;
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW);
  if (library == nullptr) return driver;
  driver.resolve =
      reinterpret_cast<decltype(driver.resolve)>(::dlsym(library, "cuGetProcAddress_v2"));
  if (driver.resolve == nullptr) return driver;
  void* self = nullptr;
  find(driver, "", 0, 0, &self);  // as NVIDIA's asks
  find(driver, "cuGetProcAddress", 12000, 0, &driver.resolve);
#define RUNTIME_FIND(name, version) find(driver, #name, version, 0, &driver.name##_call);
#define RUNTIME_FIND_BOTH(name, version, own_version)                             \
  find(driver, #name, version, 0, &driver.name##_call[0]);                        \
  find(driver, #name, own_version, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, \
       &driver.name##_call[1]);
  RUNTIME_CALLS(RUNTIME_FIND)
  RUNTIME_STREAM_CALLS(RUNTIME_FIND_BOTH)
#undef RUNTIME_FIND
#undef RUNTIME_FIND_BOTH
  driver.status = driver.cuInit_call(0);
  CUdevice device = 0;
  if (driver.status == CUDA_SUCCESS) driver.status = driver.cuDeviceGet_call(&device, 0);
  if (driver.status == CUDA_SUCCESS) {
    driver.status = driver.cuDevicePrimaryCtxRetain_call(&driver.context, device);
  }
  return driver;
}

const Driver& driver() {
  static const auto* const kDriver = new Driver(start());
  return *kDriver;
}

thread_local cudaError_t last_error = cudaSuccess;

// The runtime's codes are the driver's, since CUDA 10.1.
cudaError_t give(CUresult result) {
  if (result == CUDA_SUCCESS) return cudaSuccess;
  const auto error = static_cast<cudaError_t>(result);
  if (error != cudaErrorNotReady) last_error = error;
  return error;
}

// Each thread works in the primary context.
CUresult ready() {
  thread_local bool is_current = false;
  if (driver().status != CUDA_SUCCESS) return driver().status;
  if (std::exchange(is_current, true)) return CUDA_SUCCESS;
  return driver().cuCtxSetCurrent_call(driver().context);
}

template <class Call, class... Args>
cudaError_t call(Call Driver::*member, Args... args) {
  if (const CUresult bad = ready(); bad != CUDA_SUCCESS) return give(bad);
  const Call function = driver().*member;
  return give(function != nullptr ? function(args...) : CUDA_ERROR_NOT_SUPPORTED);
}
template <class Call, class... Args>
cudaError_t call(Call (Driver::*member)[2], bool own, Args... args) {
  if (const CUresult bad = ready(); bad != CUDA_SUCCESS) return give(bad);
  const Call function = (driver().*member)[own ? 1 : 0];
  return give(function != nullptr ? function(args...) : CUDA_ERROR_NOT_SUPPORTED);
}
#define CALL(name, ...) call(&Driver::name##_call __VA_OPT__(, ) __VA_ARGS__)

CUdeviceptr address(const void* at) { return reinterpret_cast<CUdeviceptr>(at); }
CUmemoryPool pool_of(cudaMemPool_t pool) { return reinterpret_cast<CUmemoryPool>(pool); }

// What nvcc makes of a program: its binaries, registered as it starts, and in each the kernels by
// their stubs. Loaded when the first is asked for.
struct Binary {
  const void* code;
  CUlibrary library = nullptr;
};
struct Kernel {
  Binary* binary;
  std::string name;
  CUfunction function = nullptr;
};
std::mutex program_mu;
std::map<const void*, Kernel>& kernels() {  // under program_mu; its elements stay where they are
  static auto* const kKernels = new std::map<const void*, Kernel>;
  return *kKernels;
}

CUresult load(Kernel& kernel, CUfunction* out) {
  const std::lock_guard lock(program_mu);
  if (kernel.function == nullptr) {
    const Driver& d = driver();
    if (kernel.binary->library == nullptr) {
      const CUresult loaded = d.cuLibraryLoadData_call(&kernel.binary->library, kernel.binary->code,
                                                       nullptr, nullptr, 0, nullptr, nullptr, 0);
      if (loaded != CUDA_SUCCESS) return loaded;
    }
    CUkernel found = nullptr;
    CUresult result =
        d.cuLibraryGetKernel_call(&found, kernel.binary->library, kernel.name.c_str());
    if (result == CUDA_SUCCESS) result = d.cuKernelGetFunction_call(&kernel.function, found);
    if (result != CUDA_SUCCESS) return result;
  }
  *out = kernel.function;
  return CUDA_SUCCESS;
}

cudaError_t launch(Kernel* kernel, const dim3& grid, const dim3& block, void** args,
                   std::size_t shared, cudaStream_t stream, bool own) {
  if (const CUresult bad = ready(); bad != CUDA_SUCCESS) return give(bad);
  if (kernel == nullptr) return give(CUDA_ERROR_INVALID_HANDLE);
  CUfunction function = nullptr;
  if (const CUresult bad = load(*kernel, &function); bad != CUDA_SUCCESS) return give(bad);
  return CALL(cuLaunchKernel, own, function, grid.x, grid.y, grid.z, block.x, block.y, block.z,
              static_cast<unsigned>(shared), stream, args, nullptr);
}

Kernel* kernel_of(const void* stub) {
  const std::lock_guard lock(program_mu);
  const auto found = kernels().find(stub);
  return found != kernels().end() ? &found->second : nullptr;
}

cudaError_t copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, bool own) {
  switch (kind) {
    case cudaMemcpyHostToDevice:
      return CALL(cuMemcpyHtoD, own, address(to), from, bytes);
    case cudaMemcpyDeviceToHost:
      return CALL(cuMemcpyDtoH, own, to, address(from), bytes);
    case cudaMemcpyDeviceToDevice:
      return CALL(cuMemcpyDtoD, own, address(to), address(from), bytes);
    default:
      return CALL(cuMemcpy, own, address(to), address(from), bytes);
  }
}

cudaError_t copy_async(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                       cudaStream_t stream, bool own) {
  switch (kind) {
    case cudaMemcpyHostToDevice:
      return CALL(cuMemcpyHtoDAsync, own, address(to), from, bytes, stream);
    case cudaMemcpyDeviceToHost:
      return CALL(cuMemcpyDtoHAsync, own, to, address(from), bytes, stream);
    case cudaMemcpyDeviceToDevice:
      return CALL(cuMemcpyDtoDAsync, own, address(to), address(from), bytes, stream);
    default:
      return CALL(cuMemcpyAsync, own, address(to), address(from), bytes, stream);
  }
}

cudaError_t resolve(const char* name, void** out, unsigned version, unsigned long long flags,
                    cudaDriverEntryPointQueryResult* status, bool own) {
  if (const CUresult bad = ready(); bad != CUDA_SUCCESS) return give(bad);
  if (flags == cudaEnableDefault && own) flags = cudaEnablePerThreadDefaultStream;
  CUdriverProcAddressQueryResult found{};
  const CUresult result = driver().resolve(name, out, static_cast<int>(version), flags, &found);
  if (status != nullptr) *status = static_cast<cudaDriverEntryPointQueryResult>(found);
  return give(result);
}

struct Launch {
  dim3 grid, block;
  std::size_t shared = 0;
  cudaStream_t stream = nullptr;
};
thread_local Launch pushed;

}  // namespace

extern "C" {

// Called by what nvcc makes; declared by its own headers for itself.

void** __cudaRegisterFatBinary(void* wrapper);
void __cudaRegisterFatBinaryEnd(void** handle);
void __cudaUnregisterFatBinary(void** handle);
void __cudaRegisterFunction(void** handle, const char* stub, char* device_stub, const char* name,
                            int thread_limit, uint3* thread, uint3* block_index, dim3* block,
                            dim3* grid, int* warp);
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared,
                                     CUstream_st* stream);
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream);
cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* stub);

void** __cudaRegisterFatBinary(void* wrapper) {
  struct Wrapper {
    int magic, version;
    const void* code;
    void* file;
  };
  return reinterpret_cast<void**>(new Binary{static_cast<const Wrapper*>(wrapper)->code});
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}  // the process ends

void __cudaRegisterFunction(void** handle, const char* stub, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  const std::lock_guard lock(program_mu);
  kernels()[stub] = {reinterpret_cast<Binary*>(handle), name};
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared,
                                     CUstream_st* stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* stub) {
  *out = reinterpret_cast<cudaKernel_t>(kernel_of(stub));
  return *out != nullptr ? cudaSuccess : give(CUDA_ERROR_INVALID_HANDLE);
}

// What has no stream.

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorString(cudaError_t error) {
  const char* text = nullptr;
  if (driver().cuGetErrorString_call != nullptr) {
    (void)driver().cuGetErrorString_call(static_cast<CUresult>(error), &text);
  }
  return text != nullptr ? text : "unrecognized error code";
}

cudaError_t cudaGetDeviceCount(int* count) { return CALL(cuDeviceGetCount, count); }
cudaError_t cudaSetDevice(int device) {
  return give(device == 0 ? ready() : CUDA_ERROR_INVALID_DEVICE);
}
cudaError_t cudaDeviceSynchronize() { return CALL(cuCtxSynchronize); }

cudaError_t cudaMalloc(void** out, std::size_t bytes) {
  CUdeviceptr at = 0;
  const cudaError_t result = bytes != 0 ? CALL(cuMemAlloc, &at, bytes) : cudaSuccess;
  if (result == cudaSuccess) *out = reinterpret_cast<void*>(at);
  return result;
}
cudaError_t cudaFree(void* at) { return CALL(cuMemFree, address(at)); }
cudaError_t cudaHostAlloc(void** out, std::size_t bytes, unsigned flags) {
  return CALL(cuMemHostAlloc, out, bytes, flags);
}
cudaError_t cudaFreeHost(void* at) { return CALL(cuMemFreeHost, at); }
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return CALL(cuMemGetInfo, free, total);
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* out, const void* at) {
  unsigned type = 0;
  int device = -1;
  int is_managed = 0;
  CUpointer_attribute attributes[] = {
      CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
      CU_POINTER_ATTRIBUTE_DEVICE_POINTER, CU_POINTER_ATTRIBUTE_HOST_POINTER,
      CU_POINTER_ATTRIBUTE_IS_MANAGED};
  *out = {};
  void* data[] = {&type, &device, &out->devicePointer, &out->hostPointer, &is_managed};
  const cudaError_t result = CALL(cuPointerGetAttributes, 5, attributes, data, address(at));
  out->device = device;
  out->type = is_managed != 0                ? cudaMemoryTypeManaged
              : type == CU_MEMORYTYPE_DEVICE ? cudaMemoryTypeDevice
              : type == CU_MEMORYTYPE_HOST   ? cudaMemoryTypeHost
                                             : cudaMemoryTypeUnregistered;
  return result;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* out, int device) {
  return CALL(cuDeviceGetDefaultMemPool, reinterpret_cast<CUmemoryPool*>(out), device);
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* out, const cudaMemPoolProps* props) {
  CUmemPoolProps same{};
  same.allocType = static_cast<CUmemAllocationType>(props->allocType);
  same.handleTypes = static_cast<CUmemAllocationHandleType>(props->handleTypes);
  same.location = {static_cast<CUmemLocationType>(props->location.type), props->location.id};
  same.maxSize = props->maxSize;
  same.usage = props->usage;
  return CALL(cuMemPoolCreate, reinterpret_cast<CUmemoryPool*>(out), &same);
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) { return CALL(cuMemPoolDestroy, pool_of(pool)); }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, std::size_t bytes) {
  return CALL(cuMemPoolTrimTo, pool_of(pool), bytes);
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  return CALL(cuMemPoolSetAttribute, pool_of(pool), static_cast<CUmemPool_attribute>(attribute),
              value);
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  return CALL(cuMemPoolGetAttribute, pool_of(pool), static_cast<CUmemPool_attribute>(attribute),
              value);
}

cudaError_t cudaStreamCreate(cudaStream_t* out) { return CALL(cuStreamCreate, out, 0U); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned flags) {
  return CALL(cuStreamCreate, out, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return CALL(cuStreamDestroy, stream); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned flags) {
  return CALL(cuEventCreate, out, flags);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return CALL(cuEventDestroy, event); }
cudaError_t cudaEventQuery(cudaEvent_t event) { return CALL(cuEventQuery, event); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return CALL(cuEventSynchronize, event); }

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph,
                                 unsigned long long flags) {
  return CALL(cuGraphInstantiate, out, graph, flags);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return CALL(cuGraphDestroy, graph); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return CALL(cuGraphExecDestroy, exec); }

// What has one. Suffix _ptds, _ptsz: stream 0 is the calling thread's own.

#define RUNTIME_FORMS(ds, sz, own)                                                                 \
  cudaError_t cudaMemcpy##ds(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);  \
  cudaError_t cudaMemcpy##ds(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) { \
    return copy(to, from, bytes, kind, own);                                                       \
  }                                                                                                \
  cudaError_t cudaMemset##ds(void* to, int value, std::size_t bytes);                              \
  cudaError_t cudaMemset##ds(void* to, int value, std::size_t bytes) {                             \
    return CALL(cuMemsetD8, own, address(to), static_cast<unsigned char>(value), bytes);           \
  }                                                                                                \
  cudaError_t cudaMemcpyAsync##sz(void* to, const void* from, std::size_t bytes,                   \
                                  cudaMemcpyKind kind, cudaStream_t stream);                       \
  cudaError_t cudaMemcpyAsync##sz(void* to, const void* from, std::size_t bytes,                   \
                                  cudaMemcpyKind kind, cudaStream_t stream) {                      \
    return copy_async(to, from, bytes, kind, stream, own);                                         \
  }                                                                                                \
  cudaError_t cudaMemsetAsync##sz(void* to, int value, std::size_t bytes, cudaStream_t stream);    \
  cudaError_t cudaMemsetAsync##sz(void* to, int value, std::size_t bytes, cudaStream_t stream) {   \
    return CALL(cuMemsetD8Async, own, address(to), static_cast<unsigned char>(value), bytes,       \
                stream);                                                                           \
  }                                                                                                \
  cudaError_t cudaMallocAsync##sz(void** out, std::size_t bytes, cudaStream_t stream);             \
  cudaError_t cudaMallocAsync##sz(void** out, std::size_t bytes, cudaStream_t stream) {            \
    return CALL(cuMemAllocAsync, own, reinterpret_cast<CUdeviceptr*>(out), bytes, stream);         \
  }                                                                                                \
  cudaError_t cudaMallocFromPoolAsync##sz(void** out, std::size_t bytes, cudaMemPool_t pool,       \
                                          cudaStream_t stream);                                    \
  cudaError_t cudaMallocFromPoolAsync##sz(void** out, std::size_t bytes, cudaMemPool_t pool,       \
                                          cudaStream_t stream) {                                   \
    return CALL(cuMemAllocFromPoolAsync, own, reinterpret_cast<CUdeviceptr*>(out), bytes,          \
                pool_of(pool), stream);                                                            \
  }                                                                                                \
  cudaError_t cudaFreeAsync##sz(void* at, cudaStream_t stream);                                    \
  cudaError_t cudaFreeAsync##sz(void* at, cudaStream_t stream) {                                   \
    return CALL(cuMemFreeAsync, own, address(at), stream);                                         \
  }                                                                                                \
  cudaError_t cudaStreamSynchronize##sz(cudaStream_t stream);                                      \
  cudaError_t cudaStreamSynchronize##sz(cudaStream_t stream) {                                     \
    return CALL(cuStreamSynchronize, own, stream);                                                 \
  }                                                                                                \
  cudaError_t cudaStreamQuery##sz(cudaStream_t stream);                                            \
  cudaError_t cudaStreamQuery##sz(cudaStream_t stream) {                                           \
    return CALL(cuStreamQuery, own, stream);                                                       \
  }                                                                                                \
  cudaError_t cudaStreamWaitEvent##sz(cudaStream_t stream, cudaEvent_t event, unsigned flags);     \
  cudaError_t cudaStreamWaitEvent##sz(cudaStream_t stream, cudaEvent_t event, unsigned flags) {    \
    return CALL(cuStreamWaitEvent, own, stream, event, flags);                                     \
  }                                                                                                \
  cudaError_t cudaEventRecord##sz(cudaEvent_t event, cudaStream_t stream);                         \
  cudaError_t cudaEventRecord##sz(cudaEvent_t event, cudaStream_t stream) {                        \
    return CALL(cuEventRecord, own, event, stream);                                                \
  }                                                                                                \
  cudaError_t cudaStreamBeginCapture##sz(cudaStream_t stream, cudaStreamCaptureMode mode);         \
  cudaError_t cudaStreamBeginCapture##sz(cudaStream_t stream, cudaStreamCaptureMode mode) {        \
    return CALL(cuStreamBeginCapture, own, stream, static_cast<CUstreamCaptureMode>(mode));        \
  }                                                                                                \
  cudaError_t cudaStreamEndCapture##sz(cudaStream_t stream, cudaGraph_t* out);                     \
  cudaError_t cudaStreamEndCapture##sz(cudaStream_t stream, cudaGraph_t* out) {                    \
    return CALL(cuStreamEndCapture, own, stream, out);                                             \
  }                                                                                                \
  cudaError_t cudaStreamIsCapturing##sz(cudaStream_t stream, cudaStreamCaptureStatus* out);        \
  cudaError_t cudaStreamIsCapturing##sz(cudaStream_t stream, cudaStreamCaptureStatus* out) {       \
    return CALL(cuStreamIsCapturing, own, stream, reinterpret_cast<CUstreamCaptureStatus*>(out));  \
  }                                                                                                \
  cudaError_t cudaGraphLaunch##sz(cudaGraphExec_t exec, cudaStream_t stream);                      \
  cudaError_t cudaGraphLaunch##sz(cudaGraphExec_t exec, cudaStream_t stream) {                     \
    return CALL(cuGraphLaunch, own, exec, stream);                                                 \
  }                                                                                                \
  cudaError_t cudaLaunchKernel##sz(const void* stub, dim3 grid, dim3 block, void** args,           \
                                   std::size_t shared, cudaStream_t stream);                       \
  cudaError_t cudaLaunchKernel##sz(const void* stub, dim3 grid, dim3 block, void** args,           \
                                   std::size_t shared, cudaStream_t stream) {                      \
    return launch(kernel_of(stub), grid, block, args, shared, stream, own);                        \
  }                                                                                                \
  cudaError_t __cudaLaunchKernel##sz(cudaKernel_t kernel, dim3 grid, dim3 block, void** args,      \
                                     std::size_t shared, cudaStream_t stream);                     \
  cudaError_t __cudaLaunchKernel##sz(cudaKernel_t kernel, dim3 grid, dim3 block, void** args,      \
                                     std::size_t shared, cudaStream_t stream) {                    \
    return launch(reinterpret_cast<Kernel*>(kernel), grid, block, args, shared, stream, own);      \
  }                                                                                                \
  cudaError_t cudaGetDriverEntryPointByVersion##sz(const char* name, void** out, unsigned version, \
                                                   unsigned long long flags,                       \
                                                   cudaDriverEntryPointQueryResult* status);       \
  cudaError_t cudaGetDriverEntryPointByVersion##sz(const char* name, void** out, unsigned version, \
                                                   unsigned long long flags,                       \
                                                   cudaDriverEntryPointQueryResult* status) {      \
    return resolve(name, out, version, flags, status, own);                                        \
  }

RUNTIME_FORMS(, , false)
RUNTIME_FORMS(_ptds, _ptsz, true)

}  // extern "C"
