// The CUDA driver's calls that kvmem stands before, and the ways by which an engine comes to them:
// linked (these names are found first), dlsym (cuda_loader.cc), and cuGetProcAddress, which the
// runtime uses for all. The real resolver is always asked first, with the caller's own version and
// flags; what it finds is replaced by what is here if it is one of these. So a name the driver does
// not have stays unknown.
#include "preload/cuda.h"

#include <cuda.h>
#include <dlfcn.h>
#include <string.h>

#include "cuda/driver.h"
#include "cuda/loader.h"
#include "region/device_heap.h"

#define KVMEM_INTERPOSED extern "C" __attribute__((visibility("default")))

namespace device = kvmem::device;

namespace {

const kvmem::cuda::Driver& real() {
  (void)kvmem::cuda::load();
  return kvmem::cuda::driver();
}

// A driver without the call cannot have been asked for it: what is null here is never reached.
template <class Call, class... Args>
CUresult pass(Call call, Args... args) {
  return call != nullptr ? call(args...) : CUDA_ERROR_NOT_SUPPORTED;
}

// The driver's own allocations come before what kvmem keeps to use again.
template <class Call>
CUresult allocate_or_shrink(Call call) {
  const CUresult result = call();
  const bool again = result == CUDA_ERROR_OUT_OF_MEMORY && device::is_on() && device::shrink();
  return again ? call() : result;
}

// What cuMemAlloc's memory says of itself, for a region, wherever its pages are; false: the driver
// knows. What it has not is zero, and an error where it alone was asked for.
bool region_attribute(void* data, CUpointer_attribute attribute, CUdeviceptr at, CUresult* result) {
  device::Found found;
  if (data == nullptr || !device::find(at, &found)) return false;
  *result = CUDA_SUCCESS;
  const auto give = [data](auto value) {
    memcpy(data, &value, sizeof value);  // NOLINT(bugprone-sizeof-expression): a handle
    return true;
  };
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      return give(found.context);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return give(CU_MEMORYTYPE_DEVICE);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return give(found.device);
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      *result = CUDA_ERROR_INVALID_VALUE;
      return give(static_cast<void*>(nullptr));
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      return give(found.begin);
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      return give(found.size_bytes);
    default:
      return false;
  }
}

}  // namespace

KVMEM_INTERPOSED CUresult cuMemAlloc(CUdeviceptr* out, std::size_t size) {
  if (size >= device::g_threshold_bytes) {
    const CUresult result = device::allocate(out, size);
    if (result != CUDA_ERROR_NOT_SUPPORTED) return result;
  }
  return allocate_or_shrink([=] { return pass(real().allocate, out, size); });
}

KVMEM_INTERPOSED CUresult cuMemFree(CUdeviceptr at) {
  CUresult result = CUDA_SUCCESS;
  if (device::is_on() && at != 0 && device::release(at, &result)) return result;
  return pass(real().free, at);
}

// Rows apart by what every device takes, for copies as for textures.
KVMEM_INTERPOSED CUresult cuMemAllocPitch(CUdeviceptr* out, std::size_t* pitch, std::size_t width,
                                          std::size_t height, unsigned element) {
  constexpr std::size_t kPitch = 512;
  const std::size_t rounded = (width + kPitch - 1) / kPitch * kPitch;
  const bool is_sane = pitch != nullptr && width > 0 && height > 0 && width <= SIZE_MAX - kPitch &&
                       height <= SIZE_MAX / rounded;
  if (is_sane && rounded * height >= device::g_threshold_bytes) {
    const CUresult result = device::allocate(out, rounded * height);
    if (result == CUDA_SUCCESS) *pitch = rounded;
    if (result != CUDA_ERROR_NOT_SUPPORTED) return result;
  }
  return allocate_or_shrink(
      [=] { return pass(real().allocate_pitch, out, pitch, width, height, element); });
}

namespace {

// What an order of events can be told by: the legacy stream has two names, and each thread's own is
// another one's behind the same name.
CUstream ordered(CUstream stream, bool own) {
  if (stream == CU_STREAM_PER_THREAD || (stream == nullptr && own)) return device::kNoStream;
  return stream == CU_STREAM_LEGACY ? nullptr : stream;
}

// While a stream is captured, memory is a node of its graph: the driver's.
CUresult allocate_async(kvmem::preload::Real& real, CUdeviceptr* out, std::size_t size,
                        CUstream stream, bool own) {
  if (size >= device::g_threshold_bytes &&
      !(device::g_gate.is_capturing() && kvmem::preload::is_captured(stream, own))) {
    const CUresult result = device::allocate_on(ordered(stream, own), out, size);
    if (result != CUDA_ERROR_NOT_SUPPORTED) return result;
  }
  return allocate_or_shrink([&] { return real(out, size, stream); });
}

CUresult free_async(kvmem::preload::Real& real, CUdeviceptr at, CUstream stream, bool own) {
  device::Found found;
  if (device::is_on() && device::find(at, &found) && found.begin == at) {
    if (device::g_gate.is_capturing() && kvmem::preload::is_captured(stream, own)) {
      return CUDA_ERROR_NOT_SUPPORTED;  // a graph would free it again and again
    }
    if (device::release_on(ordered(stream, own), at)) return CUDA_SUCCESS;
  }
  return real(at, stream);
}

}  // namespace

KVMEM_EXPORTED_CALL(kvmem_allocate_async, "cuMemAllocAsync", 3, CUdeviceptr*, std::size_t,
                    CUstream) {
  static constinit kvmem::preload::Real real("cuMemAllocAsync");
  return allocate_async(real, a, b, c, false);
}
KVMEM_EXPORTED_CALL(kvmem_allocate_async_own, "cuMemAllocAsync_ptsz", 3, CUdeviceptr*, std::size_t,
                    CUstream) {
  static constinit kvmem::preload::Real real("cuMemAllocAsync_ptsz");
  return allocate_async(real, a, b, c, true);
}
KVMEM_EXPORTED_CALL(kvmem_free_async, "cuMemFreeAsync", 2, CUdeviceptr, CUstream) {
  static constinit kvmem::preload::Real real("cuMemFreeAsync");
  return free_async(real, a, b, false);
}
KVMEM_EXPORTED_CALL(kvmem_free_async_own, "cuMemFreeAsync_ptsz", 2, CUdeviceptr, CUstream) {
  static constinit kvmem::preload::Real real("cuMemFreeAsync_ptsz");
  return free_async(real, a, b, true);
}

// Not managed, but first come before what kvmem keeps: memory from a named pool, and memory that
// the engine maps itself.
#define KVMEM_FROM_POOL(id, symbol)                                                       \
  KVMEM_EXPORTED_CALL(id, symbol, 4, CUdeviceptr*, std::size_t, CUmemoryPool, CUstream) { \
    static constinit kvmem::preload::Real real(symbol);                                   \
    return allocate_or_shrink([=] { return real(a, b, c, d); });                          \
  }
KVMEM_FROM_POOL(kvmem_allocate_from_pool, "cuMemAllocFromPoolAsync")
KVMEM_FROM_POOL(kvmem_allocate_from_pool_own, "cuMemAllocFromPoolAsync_ptsz")

KVMEM_INTERPOSED CUresult cuMemCreate(CUmemGenericAllocationHandle* out, std::size_t size,
                                      const CUmemAllocationProp* prop, unsigned long long flags) {
  return allocate_or_shrink([=] { return pass(real().create, out, size, prop, flags); });
}

// Another stream may get the same handle.
KVMEM_INTERPOSED CUresult cuStreamDestroy(CUstream stream) {
  if (device::is_on()) device::forget_stream(stream);
  return pass(real().stream_destroy, stream);
}

KVMEM_INTERPOSED CUresult cuMemGetInfo(std::size_t* free, std::size_t* total) {
  const CUresult result = pass(real().memory_info, free, total);
  if (result == CUDA_SUCCESS && device::is_on()) device::adjust_info(free, total);
  return result;
}

KVMEM_INTERPOSED CUresult cuMemGetAddressRange(CUdeviceptr* base, std::size_t* size,
                                               CUdeviceptr at) {
  device::Found found;
  if (!device::is_on() || !device::find(at, &found)) {
    return pass(real().address_range, base, size, at);
  }
  if (base != nullptr) *base = found.begin;
  if (size != nullptr) *size = found.size_bytes;
  return CUDA_SUCCESS;
}

KVMEM_INTERPOSED CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute,
                                                CUdeviceptr at) {
  CUresult result = CUDA_SUCCESS;
  if (device::is_on() && region_attribute(data, attribute, at, &result)) return result;
  return pass(real().pointer_attribute, data, attribute, at);
}

KVMEM_INTERPOSED CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute* attributes,
                                                 void** data, CUdeviceptr at) {
  const CUresult result = pass(real().pointer_attributes, count, attributes, data, at);
  if (result == CUDA_SUCCESS && device::is_on()) {
    for (unsigned i = 0; i < count; ++i) {
      CUresult of_one = CUDA_SUCCESS;
      (void)region_attribute(data[i], attributes[i], at, &of_one);
    }
  }
  return result;
}

namespace {

using Resolver = CUresult (*)(const char*, void**, int, cuuint64_t,
                              CUdriverProcAddressQueryResult*);
using OldResolver = CUresult (*)(const char*, void**, int, cuuint64_t);

}  // namespace

// By the names it has in the library, where cuda.h has made others of them.
KVMEM_INTERPOSED CUresult
kvmem_resolve(const char* name, void** out, int version, cuuint64_t flags,
              CUdriverProcAddressQueryResult* status) __asm__("cuGetProcAddress_v2");
KVMEM_INTERPOSED CUresult kvmem_resolve_old(const char* name, void** out, int version,
                                            cuuint64_t flags) __asm__("cuGetProcAddress");

namespace {

using kvmem::preload::Hook;
using kvmem::preload::Hooks;

Hooks own_hooks() {
  static const Hook table[] = {
      {"cuGetProcAddress", "cuGetProcAddress_v2", reinterpret_cast<void*>(&kvmem_resolve), 12000},
      {"cuGetProcAddress", "cuGetProcAddress", reinterpret_cast<void*>(&kvmem_resolve_old), 11030},
      {"cuMemAlloc", "cuMemAlloc_v2", reinterpret_cast<void*>(&cuMemAlloc), 3020},
      {"cuMemAllocPitch", "cuMemAllocPitch_v2", reinterpret_cast<void*>(&cuMemAllocPitch), 3020},
      {"cuMemAllocAsync", "cuMemAllocAsync", reinterpret_cast<void*>(&kvmem_allocate_async), 11020,
       Hook::Streams::kLegacy},
      {"cuMemAllocAsync", "cuMemAllocAsync_ptsz",
       reinterpret_cast<void*>(&kvmem_allocate_async_own), 11020, Hook::Streams::kPerThread},
      {"cuMemFreeAsync", "cuMemFreeAsync", reinterpret_cast<void*>(&kvmem_free_async), 11020,
       Hook::Streams::kLegacy},
      {"cuMemFreeAsync", "cuMemFreeAsync_ptsz", reinterpret_cast<void*>(&kvmem_free_async_own),
       11020, Hook::Streams::kPerThread},
      {"cuMemAllocFromPoolAsync", "cuMemAllocFromPoolAsync",
       reinterpret_cast<void*>(&kvmem_allocate_from_pool), 11020, Hook::Streams::kLegacy},
      {"cuMemAllocFromPoolAsync", "cuMemAllocFromPoolAsync_ptsz",
       reinterpret_cast<void*>(&kvmem_allocate_from_pool_own), 11020, Hook::Streams::kPerThread},
      {"cuMemCreate", "cuMemCreate", reinterpret_cast<void*>(&cuMemCreate), 10020},
      {"cuStreamDestroy", "cuStreamDestroy_v2", reinterpret_cast<void*>(&cuStreamDestroy), 4000},
      {"cuMemFree", "cuMemFree_v2", reinterpret_cast<void*>(&cuMemFree), 3020},
      {"cuMemGetInfo", "cuMemGetInfo_v2", reinterpret_cast<void*>(&cuMemGetInfo), 3020},
      {"cuMemGetAddressRange", "cuMemGetAddressRange_v2",
       reinterpret_cast<void*>(&cuMemGetAddressRange), 3020},
      {"cuPointerGetAttribute", "cuPointerGetAttribute",
       reinterpret_cast<void*>(&cuPointerGetAttribute), 4000},
      {"cuPointerGetAttributes", "cuPointerGetAttributes",
       reinterpret_cast<void*>(&cuPointerGetAttributes), 7000},
  };
  return {table, sizeof table / sizeof table[0]};
}

// The first hook for which `matches`; null: none.
template <class Matches>
const Hook* find_hook(Matches matches) {
  for (const Hooks& hooks :
       {own_hooks(), kvmem::preload::copy_hooks(), kvmem::preload::shape_hooks(),
        kvmem::preload::share_hooks(), kvmem::preload::work_hooks()}) {
    for (std::size_t i = 0; i < hooks.count; ++i) {
      if (matches(hooks.first[i])) return &hooks.first[i];
    }
  }
  return nullptr;
}

// Puts what stands before the driver's function in its place: `*out` is what the driver gave for
// the name in that version, null where it has none.
void replace_by_hook(const char* name, int version, cuuint64_t flags, void** out) {
  if (!device::is_on() || name == nullptr || *out == nullptr) return;
  const auto other = (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0
                         ? Hook::Streams::kLegacy
                         : Hook::Streams::kPerThread;
  const Hook* hook = find_hook([&](const Hook& h) {
    return version >= h.version && h.streams != other && strcmp(name, h.name) == 0;
  });
  if (hook != nullptr) *out = hook->function;
}

}  // namespace

namespace kvmem::preload {

void* stand_before(const char* name, void* found) {
  if (found == nullptr || cuda::is_loading()) return found;
  const Hook* hook = find_hook([name](const Hook& h) { return strcmp(name, h.symbol) == 0; });
  if (hook == nullptr) return found;
  void* driver = cuda::exported(name);
  // An engine that asks whether there is a driver must not find us instead.
  if (driver == nullptr && found == hook->function) {
    return cuda::real_dlsym()(RTLD_NEXT, name);
  }
  // The driver's own, and nobody else's of the same name.
  return device::is_on() && found == driver ? hook->function : found;
}

}  // namespace kvmem::preload

CUresult kvmem_resolve(const char* name, void** out, int version, cuuint64_t flags,
                       CUdriverProcAddressQueryResult* status) {
  const auto resolver = reinterpret_cast<Resolver>(kvmem::cuda::exported("cuGetProcAddress_v2"));
  const CUresult result = pass(resolver, name, out, version, flags, status);
  if (result == CUDA_SUCCESS) replace_by_hook(name, version, flags, out);
  return result;
}

CUresult kvmem_resolve_old(const char* name, void** out, int version, cuuint64_t flags) {
  const auto resolver = reinterpret_cast<OldResolver>(kvmem::cuda::exported("cuGetProcAddress"));
  const CUresult result = pass(resolver, name, out, version, flags);
  if (result == CUDA_SUCCESS) replace_by_hook(name, version, flags, out);
  return result;
}
