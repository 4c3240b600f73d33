// Entry points: memory, and copies between places of it.

#include <unistd.h>

#include <cstring>

#include "tests/softgpu/calls.h"
#include "tests/softgpu/memory.h"
#include "tests/softgpu/pool.h"
#include "tests/softgpu/settings.h"
#include "tests/softgpu/state.h"

using namespace softgpu;  // NOLINT(google-build-using-namespace)

namespace {

// A current context, and no capture that forbids the call.
CUresult usable(Context** context) {
  if (const CUresult bad = current(context); bad != CUDA_SUCCESS) return bad;
  return refuse_capture();
}

CUresult usable() {
  Context* context = nullptr;
  return usable(&context);
}

// Given back once all the context's work is done.
CUresult free_after_work(Context& context, CUdeviceptr at, Owner owner) {
  if (const CUresult error = synchronize(context); error != CUDA_SUCCESS) return error;
  return Memory::get().free(at, owner);
}

void* pointer(CUdeviceptr at) { return reinterpret_cast<void*>(at); }

enum class Wait : std::uint8_t { kNever, kAlways };

// When the bytes move, which in a graph is long after the copy was made: pages may be others by
// then.
void require_one_place(CUdeviceptr at, std::size_t bytes) {
  if (!Memory::get().in_one_place(at, bytes)) fault();
}

// memmove: a copy within one range is not defined to go either way.
CUresult copy(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream, bool per_thread,
              Wait how) {
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  if (bytes == 0) return CUDA_SUCCESS;
  if (to == 0 || from == 0) return CUDA_ERROR_INVALID_VALUE;
  if (!Memory::get().in_one_place(to, bytes) || !Memory::get().in_one_place(from, bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (how == Wait::kAlways) {
    if (const CUresult bad = refuse_capture(); bad != CUDA_SUCCESS) return bad;
  }
  OpRef op;
  const CUresult queued = enqueue(
      *context, stream, per_thread, CU_GRAPH_NODE_TYPE_MEMCPY,
      [to, from, bytes] {
        require_one_place(to, bytes);
        require_one_place(from, bytes);
        std::memmove(pointer(to), pointer(from), bytes);
      },
      &op);
  if (queued != CUDA_SUCCESS || how == Wait::kNever) return queued;
  wait(op);
  return device_error();
}

// From pageable memory the driver takes the bytes before it returns.
CUresult copy_from_host(CUdeviceptr to, const void* from, std::size_t bytes, CUstream stream,
                        bool per_thread) {
  Place place;
  const auto at = reinterpret_cast<CUdeviceptr>(from);
  if (Memory::get().find(at, &place)) return copy(to, at, bytes, stream, per_thread, Wait::kNever);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  if (bytes == 0) return CUDA_SUCCESS;
  if (to == 0 || from == nullptr || !Memory::get().in_one_place(to, bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const auto* begin = static_cast<const unsigned char*>(from);
  std::vector<unsigned char> staged(begin, begin + bytes);
  return enqueue(
      *context, stream, per_thread, CU_GRAPH_NODE_TYPE_MEMCPY,
      [to, staged = std::move(staged)] { std::memcpy(pointer(to), staged.data(), staged.size()); });
}

// To pageable memory it returns when they are there.
CUresult copy_to_host(void* to, CUdeviceptr from, std::size_t bytes, CUstream stream,
                      bool per_thread) {
  Place place;
  const auto at = reinterpret_cast<CUdeviceptr>(to);
  const Wait how = Memory::get().find(at, &place) ? Wait::kNever : Wait::kAlways;
  return copy(at, from, bytes, stream, per_thread, how);
}

template <class Value>
CUresult set(CUdeviceptr to, Value value, std::size_t count, CUstream stream, bool per_thread) {
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  if (count == 0) return CUDA_SUCCESS;
  if (to == 0 || to % sizeof(Value) != 0) return CUDA_ERROR_INVALID_VALUE;
  if (!Memory::get().in_one_place(to, count * sizeof(Value))) return CUDA_ERROR_INVALID_VALUE;
  return enqueue(*context, stream, per_thread, CU_GRAPH_NODE_TYPE_MEMSET, [to, value, count] {
    require_one_place(to, count * sizeof(Value));
    auto* words = static_cast<volatile Value*>(pointer(to));
    for (std::size_t i = 0; i < count; ++i) words[i] = value;
  });
}

// Rows and planes of a copy with a shape; one end's first byte, and how far apart they are.
struct End {
  CUdeviceptr at;
  std::size_t pitch, plane;
};

// From or to pageable memory the driver may return early or late: here it always waits, so that the
// bytes are taken before the caller changes them.
CUresult copy_shape(const End& to, const End& from, std::size_t width, std::size_t height,
                    std::size_t depth, bool pageable, CUstream stream, bool per_thread, Wait how) {
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  if (width == 0 || height == 0 || depth == 0) return CUDA_SUCCESS;
  const auto span = [=](const End& end) {
    return (depth - 1) * end.plane + (height - 1) * end.pitch + width;
  };
  for (const End& end : {to, from}) {
    if (end.at == 0 || (height > 1 && end.pitch < width)) return CUDA_ERROR_INVALID_VALUE;
    if (!Memory::get().in_one_place(end.at, span(end))) return CUDA_ERROR_INVALID_VALUE;
  }
  if (pageable) how = Wait::kAlways;
  if (how == Wait::kAlways) {
    if (const CUresult bad = refuse_capture(); bad != CUDA_SUCCESS) return bad;
  }
  OpRef op;
  const CUresult queued = enqueue(
      *context, stream, per_thread, CU_GRAPH_NODE_TYPE_MEMCPY,
      [=] {
        for (const End& end : {to, from}) require_one_place(end.at, span(end));
        for (std::size_t z = 0; z < depth; ++z) {
          for (std::size_t y = 0; y < height; ++y) {
            std::memmove(pointer(to.at + z * to.plane + y * to.pitch),
                         pointer(from.at + z * from.plane + y * from.pitch), width);
          }
        }
      },
      &op);
  if (queued != CUDA_SUCCESS || how == Wait::kNever) return queued;
  wait(op);
  return device_error();
}

bool is_pageable(CUdeviceptr at) {
  Place place;
  return !Memory::get().find(at, &place);
}

template <class Copy>
CUresult copy_2d(const Copy* c, CUstream stream, bool per_thread, Wait how) {
  if (c == nullptr || c->srcMemoryType == CU_MEMORYTYPE_ARRAY ||
      c->dstMemoryType == CU_MEMORYTYPE_ARRAY) {
    return CUDA_ERROR_INVALID_VALUE;  // there are no arrays here
  }
  const bool from_host = c->srcMemoryType == CU_MEMORYTYPE_HOST;
  const bool to_host = c->dstMemoryType == CU_MEMORYTYPE_HOST;
  End from{from_host ? reinterpret_cast<CUdeviceptr>(c->srcHost) : c->srcDevice, c->srcPitch, 0};
  End to{to_host ? reinterpret_cast<CUdeviceptr>(c->dstHost) : c->dstDevice, c->dstPitch, 0};
  from.at += c->srcY * c->srcPitch + c->srcXInBytes;
  to.at += c->dstY * c->dstPitch + c->dstXInBytes;
  if constexpr (std::is_same_v<Copy, CUDA_MEMCPY3D>) {
    from.plane = c->srcPitch * c->srcHeight;
    to.plane = c->dstPitch * c->dstHeight;
    from.at += c->srcZ * from.plane;
    to.at += c->dstZ * to.plane;
    return copy_shape(to, from, c->WidthInBytes, c->Height, c->Depth,
                      is_pageable(from.at) || is_pageable(to.at), stream, per_thread, how);
  } else {
    return copy_shape(to, from, c->WidthInBytes, c->Height, 1,
                      is_pageable(from.at) || is_pageable(to.at), stream, per_thread, how);
  }
}

template <class Value>
CUresult set_2d(CUdeviceptr to, std::size_t pitch, Value value, std::size_t width,
                std::size_t height, CUstream stream, bool per_thread) {
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  if (width == 0 || height == 0) return CUDA_SUCCESS;
  const std::size_t span = (height - 1) * pitch + width * sizeof(Value);
  if (to == 0 || to % sizeof(Value) != 0 || pitch % sizeof(Value) != 0 ||
      (height > 1 && pitch < width * sizeof(Value)) || !Memory::get().in_one_place(to, span)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  return enqueue(*context, stream, per_thread, CU_GRAPH_NODE_TYPE_MEMSET, [=] {
    require_one_place(to, span);
    for (std::size_t y = 0; y < height; ++y) {
      auto* row = static_cast<volatile Value*>(pointer(to + y * pitch));
      for (std::size_t x = 0; x < width; ++x) row[x] = value;
    }
  });
}

CUresult copy_batch(const CUdeviceptr* to, const CUdeviceptr* from, const std::size_t* bytes,
                    std::size_t count, const std::size_t* attributes, std::size_t attribute_count,
                    CUstream stream, bool per_thread) {
  if (to == nullptr || from == nullptr || bytes == nullptr || count == 0 || attributes == nullptr ||
      attribute_count == 0 || attribute_count > count || attributes[0] != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  for (std::size_t i = 1; i < attribute_count; ++i) {
    if (attributes[i] <= attributes[i - 1] || attributes[i] >= count) {
      return CUDA_ERROR_INVALID_VALUE;
    }
  }
  if ((stream == nullptr && !per_thread) || stream == CU_STREAM_LEGACY) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (bytes[i] == 0) return CUDA_ERROR_INVALID_VALUE;
    const CUresult queued = copy(to[i], from[i], bytes[i], stream, per_thread, Wait::kNever);
    if (queued != CUDA_SUCCESS) return queued;
  }
  return CUDA_SUCCESS;
}

CUresult pointer_attribute(void* data, CUpointer_attribute attribute, CUdeviceptr at) {
  if (data == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Place place;
  if (!Memory::get().find(at, &place)) return CUDA_ERROR_INVALID_VALUE;
  const bool host =
      place.owner == Owner::kHost || (place.physical != nullptr && !place.physical->on_device());
  const auto give = [data](auto value) {
    std::memcpy(data, &value, sizeof value);
    return CUDA_SUCCESS;
  };
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: {
      Context* context = nullptr;
      (void)current(&context);
      // Memory of the virtual memory calls belongs to no context.
      return give(place.owner == Owner::kVmm ? nullptr : reinterpret_cast<CUcontext>(context));
    }
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      if (place.owner == Owner::kVmm && place.physical == nullptr) return CUDA_ERROR_INVALID_VALUE;
      return give(host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE);
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      return give(at);
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      return host ? give(pointer(at)) : CUDA_ERROR_INVALID_VALUE;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      return give(place.base);
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      return give(place.bytes);
    case CU_POINTER_ATTRIBUTE_MAPPED:
      return give(static_cast<int>(place.owner != Owner::kVmm || place.physical != nullptr));
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
      return give(static_cast<int>(place.owner == Owner::kAlloc));
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
      return give(static_cast<int>(place.sync_memops));
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      return give(0);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return give(0);
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
      return give(static_cast<unsigned long long>(place.id));
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
      return give(place.physical != nullptr
                      ? static_cast<unsigned long long>(place.physical->prop.requestedHandleTypes)
                      : 0ULL);
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
}

}  // namespace

extern "C" {

// Virtual memory management.

CUresult cuMemGetAllocationGranularity(std::size_t* granularity, const CUmemAllocationProp* prop,
                                       CUmemAllocationGranularity_flags) {
  SOFTGPU_ENTRY(cuMemGetAllocationGranularity);
  if (granularity == nullptr || prop == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *granularity = settings().granularity;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr* out, std::size_t bytes, std::size_t alignment,
                             CUdeviceptr hint, unsigned long long flags) {
  SOFTGPU_ENTRY(cuMemAddressReserve);
  if (const CUresult bad = usable(); bad != CUDA_SUCCESS) return bad;
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  return Memory::get().reserve(out, bytes, alignment, hint);
}

CUresult cuMemAddressFree(CUdeviceptr at, std::size_t bytes) {
  SOFTGPU_ENTRY(cuMemAddressFree);
  if (const CUresult bad = usable(); bad != CUDA_SUCCESS) return bad;
  return Memory::get().free_reservation(at, bytes);
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* out, std::size_t bytes,
                     const CUmemAllocationProp* prop, unsigned long long flags) {
  SOFTGPU_ENTRY(cuMemCreate);
  if (const CUresult bad = usable(); bad != CUDA_SUCCESS) return bad;
  if (prop == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  return Memory::get().create(out, bytes, *prop);
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  SOFTGPU_ENTRY(cuMemRelease);
  if (const CUresult bad = usable(); bad != CUDA_SUCCESS) return bad;
  return Memory::get().release(handle);
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle* out, void* at) {
  SOFTGPU_ENTRY(cuMemRetainAllocationHandle);
  return Memory::get().retain(out, reinterpret_cast<CUdeviceptr>(at));
}

CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp* prop,
                                                CUmemGenericAllocationHandle handle) {
  SOFTGPU_ENTRY(cuMemGetAllocationPropertiesFromHandle);
  return Memory::get().properties(handle, prop);
}

CUresult cuMemExportToShareableHandle(void* out, CUmemGenericAllocationHandle handle,
                                      CUmemAllocationHandleType type, unsigned long long flags) {
  SOFTGPU_ENTRY(cuMemExportToShareableHandle);
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  return Memory::get().export_fd(handle, static_cast<int*>(out));
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* out, void* os_handle,
                                        CUmemAllocationHandleType type) {
  SOFTGPU_ENTRY(cuMemImportFromShareableHandle);
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_INVALID_VALUE;
  return Memory::get().import_fd(out, static_cast<int>(reinterpret_cast<std::intptr_t>(os_handle)));
}

CUresult cuMemMap(CUdeviceptr at, std::size_t bytes, std::size_t offset,
                  CUmemGenericAllocationHandle handle, unsigned long long flags) {
  SOFTGPU_ENTRY(cuMemMap);
  if (const CUresult bad = usable(); bad != CUDA_SUCCESS) return bad;
  if (offset != 0 || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  return Memory::get().map(at, bytes, handle);
}

CUresult cuMemUnmap(CUdeviceptr at, std::size_t bytes) {
  SOFTGPU_ENTRY(cuMemUnmap);
  if (const CUresult bad = usable(); bad != CUDA_SUCCESS) return bad;
  return Memory::get().unmap(at, bytes);
}

CUresult cuMemSetAccess(CUdeviceptr at, std::size_t bytes, const CUmemAccessDesc* desc,
                        std::size_t count) {
  SOFTGPU_ENTRY(cuMemSetAccess);
  if (const CUresult bad = usable(); bad != CUDA_SUCCESS) return bad;
  return Memory::get().set_access(at, bytes, desc, count);
}

CUresult cuMemGetAccess(unsigned long long* flags, const CUmemLocation* location, CUdeviceptr at) {
  SOFTGPU_ENTRY(cuMemGetAccess);
  if (location == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return Memory::get().access(flags, *location, at);
}

// Plain allocations.

CUresult cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  SOFTGPU_ENTRY(cuMemGetInfo);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  *total = settings().memory_bytes;
  *free = *total - Memory::get().device_bytes();
  return CUDA_SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr* out, std::size_t bytes) {
  SOFTGPU_ENTRY(cuMemAlloc);
  if (const CUresult bad = usable(); bad != CUDA_SUCCESS) return bad;
  return Memory::get().alloc(out, bytes);
}

CUresult cuMemAllocPitch_v2(CUdeviceptr* out, std::size_t* pitch, std::size_t width,
                            std::size_t height, unsigned) {
  SOFTGPU_ENTRY(cuMemAllocPitch);
  if (const CUresult bad = usable(); bad != CUDA_SUCCESS) return bad;
  if (pitch == nullptr || width == 0 || height == 0) return CUDA_ERROR_INVALID_VALUE;
  *pitch = (width + 511) / 512 * 512;
  return Memory::get().alloc(out, *pitch * height);
}

CUresult cuMemFree_v2(CUdeviceptr at) {
  SOFTGPU_ENTRY(cuMemFree);
  Context* context = nullptr;
  if (const CUresult bad = usable(&context); bad != CUDA_SUCCESS) return bad;
  if (at == 0) return CUDA_SUCCESS;
  if (CUresult result{}; free_pooled(at, &result)) return result;
  return free_after_work(*context, at, Owner::kAlloc);
}

CUresult cuMemHostAlloc(void** out, std::size_t bytes, unsigned) {
  SOFTGPU_ENTRY(cuMemHostAlloc);
  if (const CUresult bad = usable(); bad != CUDA_SUCCESS) return bad;
  return Memory::get().alloc_host(out, bytes);
}

CUresult cuMemAllocHost_v2(void** out, std::size_t bytes) {
  SOFTGPU_ENTRY(cuMemAllocHost);
  if (const CUresult bad = usable(); bad != CUDA_SUCCESS) return bad;
  return Memory::get().alloc_host(out, bytes);
}

CUresult cuMemFreeHost(void* at) {
  SOFTGPU_ENTRY(cuMemFreeHost);
  Context* context = nullptr;
  if (const CUresult bad = usable(&context); bad != CUDA_SUCCESS) return bad;
  return free_after_work(*context, reinterpret_cast<CUdeviceptr>(at), Owner::kHost);
}

CUresult cuMemHostRegister_v2(void* at, std::size_t bytes, unsigned) {
  SOFTGPU_ENTRY(cuMemHostRegister);
  if (const CUresult bad = usable(); bad != CUDA_SUCCESS) return bad;
  return Memory::get().register_host(at, bytes);
}

CUresult cuMemHostUnregister(void* at) {
  SOFTGPU_ENTRY(cuMemHostUnregister);
  if (const CUresult bad = usable(); bad != CUDA_SUCCESS) return bad;
  return Memory::get().unregister_host(at);
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* out, void* at, unsigned flags) {
  SOFTGPU_ENTRY(cuMemHostGetDevicePointer);
  Place place;
  if (out == nullptr || flags != 0 ||
      !Memory::get().find(reinterpret_cast<CUdeviceptr>(at), &place) ||
      place.owner != Owner::kHost) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *out = reinterpret_cast<CUdeviceptr>(at);
  return CUDA_SUCCESS;
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, std::size_t* bytes, CUdeviceptr at) {
  SOFTGPU_ENTRY(cuMemGetAddressRange);
  Place place;
  if (!Memory::get().find(at, &place)) return CUDA_ERROR_NOT_FOUND;
  if (place.owner == Owner::kVmm) {
    // One mapping, not the reservation.
    if (place.physical == nullptr) return CUDA_ERROR_NOT_FOUND;
    place.base = place.mapping;
    place.bytes = place.physical->bytes;
  }
  if (base != nullptr) *base = place.base;
  if (bytes != nullptr) *bytes = place.bytes;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr at) {
  SOFTGPU_ENTRY(cuPointerGetAttribute);
  return pointer_attribute(data, attribute, at);
}

CUresult cuPointerSetAttribute(const void* value, CUpointer_attribute attribute, CUdeviceptr at) {
  SOFTGPU_ENTRY(cuPointerSetAttribute);
  if (value == nullptr || attribute != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  return Memory::get().set_sync_memops(at, *static_cast<const unsigned*>(value) != 0);
}

CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute* attributes, void** data,
                                CUdeviceptr at) {
  SOFTGPU_ENTRY(cuPointerGetAttributes);
  if (attributes == nullptr || data == nullptr) return CUDA_ERROR_INVALID_VALUE;
  for (unsigned i = 0; i < count; ++i) {
    // What is not known of a pointer is zero here, and no error.
    if (pointer_attribute(data[i], attributes[i], at) != CUDA_SUCCESS) {
      const bool wide = attributes[i] != CU_POINTER_ATTRIBUTE_MEMORY_TYPE &&
                        attributes[i] != CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE &&
                        attributes[i] != CU_POINTER_ATTRIBUTE_IS_MANAGED &&
                        attributes[i] != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS &&
                        attributes[i] != CU_POINTER_ATTRIBUTE_MAPPED;
      std::memset(data[i], attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL ? 0xfe : 0,
                  wide && attributes[i] != CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL ? 8 : 4);
    }
  }
  return CUDA_SUCCESS;
}

// Copies and sets. Suffix _ptds, _ptsz: stream 0 is the calling thread's own.

#define SOFTGPU_COPIES(suffix_ds, suffix_sz, per_thread)                                        \
  CUresult cuMemcpy##suffix_ds(CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {           \
    SOFTGPU_ENTRY(cuMemcpy);                                                                    \
    return copy(to, from, bytes, nullptr, per_thread, Wait::kAlways);                           \
  }                                                                                             \
  CUresult cuMemcpyAsync##suffix_sz(CUdeviceptr to, CUdeviceptr from, std::size_t bytes,        \
                                    CUstream stream) {                                          \
    SOFTGPU_ENTRY(cuMemcpyAsync);                                                               \
    return copy(to, from, bytes, stream, per_thread, Wait::kNever);                             \
  }                                                                                             \
  CUresult cuMemcpyHtoD_v2##suffix_ds(CUdeviceptr to, const void* from, std::size_t bytes) {    \
    SOFTGPU_ENTRY(cuMemcpyHtoD);                                                                \
    return copy(to, reinterpret_cast<CUdeviceptr>(from), bytes, nullptr, per_thread,            \
                Wait::kAlways);                                                                 \
  }                                                                                             \
  CUresult cuMemcpyDtoH_v2##suffix_ds(void* to, CUdeviceptr from, std::size_t bytes) {          \
    SOFTGPU_ENTRY(cuMemcpyDtoH);                                                                \
    return copy(reinterpret_cast<CUdeviceptr>(to), from, bytes, nullptr, per_thread,            \
                Wait::kAlways);                                                                 \
  }                                                                                             \
  CUresult cuMemcpyDtoD_v2##suffix_ds(CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {    \
    SOFTGPU_ENTRY(cuMemcpyDtoD);                                                                \
    if (const CUresult bad = refuse_capture(); bad != CUDA_SUCCESS) return bad;                 \
    return copy(to, from, bytes, nullptr, per_thread, Wait::kNever);                            \
  }                                                                                             \
  CUresult cuMemcpy2D_v2##suffix_ds(const CUDA_MEMCPY2D* c) {                                   \
    SOFTGPU_ENTRY(cuMemcpy2D);                                                                  \
    return copy_2d(c, nullptr, per_thread, Wait::kAlways);                                      \
  }                                                                                             \
  CUresult cuMemcpy2DUnaligned_v2##suffix_ds(const CUDA_MEMCPY2D* c) {                          \
    SOFTGPU_ENTRY(cuMemcpy2DUnaligned);                                                         \
    return copy_2d(c, nullptr, per_thread, Wait::kAlways);                                      \
  }                                                                                             \
  CUresult cuMemcpy2DAsync_v2##suffix_sz(const CUDA_MEMCPY2D* c, CUstream stream) {             \
    SOFTGPU_ENTRY(cuMemcpy2DAsync);                                                             \
    return copy_2d(c, stream, per_thread, Wait::kNever);                                        \
  }                                                                                             \
  CUresult cuMemcpy3D_v2##suffix_ds(const CUDA_MEMCPY3D* c) {                                   \
    SOFTGPU_ENTRY(cuMemcpy3D);                                                                  \
    return copy_2d(c, nullptr, per_thread, Wait::kAlways);                                      \
  }                                                                                             \
  CUresult cuMemcpy3DAsync_v2##suffix_sz(const CUDA_MEMCPY3D* c, CUstream stream) {             \
    SOFTGPU_ENTRY(cuMemcpy3DAsync);                                                             \
    return copy_2d(c, stream, per_thread, Wait::kNever);                                        \
  }                                                                                             \
  CUresult cuMemsetD2D8_v2##suffix_ds(CUdeviceptr to, std::size_t pitch, unsigned char value,   \
                                      std::size_t width, std::size_t height) {                  \
    SOFTGPU_ENTRY(cuMemsetD2D8);                                                                \
    return set_2d<std::uint8_t>(to, pitch, value, width, height, nullptr, per_thread);          \
  }                                                                                             \
  CUresult cuMemsetD2D32_v2##suffix_ds(CUdeviceptr to, std::size_t pitch, unsigned value,       \
                                       std::size_t width, std::size_t height) {                 \
    SOFTGPU_ENTRY(cuMemsetD2D32);                                                               \
    return set_2d<std::uint32_t>(to, pitch, value, width, height, nullptr, per_thread);         \
  }                                                                                             \
  CUresult cuMemcpyBatchAsync_v2##suffix_sz(CUdeviceptr* to, CUdeviceptr* from,                 \
                                            std::size_t* bytes, std::size_t count,              \
                                            CUmemcpyAttributes*, std::size_t* attributes,       \
                                            std::size_t attribute_count, CUstream stream) {     \
    SOFTGPU_ENTRY(cuMemcpyBatchAsync);                                                          \
    return copy_batch(to, from, bytes, count, attributes, attribute_count, stream, per_thread); \
  }                                                                                             \
  CUresult cuMemcpyHtoDAsync_v2##suffix_sz(CUdeviceptr to, const void* from, std::size_t bytes, \
                                           CUstream stream) {                                   \
    SOFTGPU_ENTRY(cuMemcpyHtoDAsync);                                                           \
    return copy_from_host(to, from, bytes, stream, per_thread);                                 \
  }                                                                                             \
  CUresult cuMemcpyDtoHAsync_v2##suffix_sz(void* to, CUdeviceptr from, std::size_t bytes,       \
                                           CUstream stream) {                                   \
    SOFTGPU_ENTRY(cuMemcpyDtoHAsync);                                                           \
    return copy_to_host(to, from, bytes, stream, per_thread);                                   \
  }                                                                                             \
  CUresult cuMemcpyDtoDAsync_v2##suffix_sz(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, \
                                           CUstream stream) {                                   \
    SOFTGPU_ENTRY(cuMemcpyDtoDAsync);                                                           \
    return copy(to, from, bytes, stream, per_thread, Wait::kNever);                             \
  }                                                                                             \
  CUresult cuMemsetD8_v2##suffix_ds(CUdeviceptr to, unsigned char value, std::size_t count) {   \
    SOFTGPU_ENTRY(cuMemsetD8);                                                                  \
    return set<std::uint8_t>(to, value, count, nullptr, per_thread);                            \
  }                                                                                             \
  CUresult cuMemsetD16_v2##suffix_ds(CUdeviceptr to, unsigned short value, std::size_t count) { \
    SOFTGPU_ENTRY(cuMemsetD16);                                                                 \
    return set<std::uint16_t>(to, value, count, nullptr, per_thread);                           \
  }                                                                                             \
  CUresult cuMemsetD32_v2##suffix_ds(CUdeviceptr to, unsigned value, std::size_t count) {       \
    SOFTGPU_ENTRY(cuMemsetD32);                                                                 \
    return set<std::uint32_t>(to, value, count, nullptr, per_thread);                           \
  }                                                                                             \
  CUresult cuMemsetD8Async##suffix_sz(CUdeviceptr to, unsigned char value, std::size_t count,   \
                                      CUstream stream) {                                        \
    SOFTGPU_ENTRY(cuMemsetD8Async);                                                             \
    return set<std::uint8_t>(to, value, count, stream, per_thread);                             \
  }                                                                                             \
  CUresult cuMemsetD16Async##suffix_sz(CUdeviceptr to, unsigned short value, std::size_t count, \
                                       CUstream stream) {                                       \
    SOFTGPU_ENTRY(cuMemsetD16Async);                                                            \
    return set<std::uint16_t>(to, value, count, stream, per_thread);                            \
  }                                                                                             \
  CUresult cuMemsetD32Async##suffix_sz(CUdeviceptr to, unsigned value, std::size_t count,       \
                                       CUstream stream) {                                       \
    SOFTGPU_ENTRY(cuMemsetD32Async);                                                            \
    return set<std::uint32_t>(to, value, count, stream, per_thread);                            \
  }

SOFTGPU_COPIES(, , false)
SOFTGPU_COPIES(_ptds, _ptsz, true)

}  // extern "C"
