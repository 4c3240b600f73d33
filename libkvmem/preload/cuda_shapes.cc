// Copies and fills with a shape, and batches of copies: made as several where a part lies in device
// memory and a part in host memory (see cuda_copy.cc).
//
// All have the driver's own names, by label, as in cuda_copy.cc.
#include <cuda.h>

#include <algorithm>

#include "base/heap.h"
#include "preload/cuda.h"
#include "region/device_heap.h"

namespace {

using kvmem::device::fix;
using kvmem::device::g_gate;
using kvmem::device::piece;
using kvmem::preload::Real;

// `depth` planes of `height` rows of `width` bytes.
struct Extent {
  std::size_t width, height, depth;
};

// One end of a copy, in memory that may be a region's: where its first byte is, and how far apart
// rows and planes are.
struct Side {
  bool is_device;
  CUdeviceptr at;
  std::size_t pitch, plane;

  std::size_t span(const Extent& e) const {
    return (e.depth - 1) * plane + (e.height - 1) * pitch + e.width;
  }
  bool in_one_place(const Extent& e) const { return !is_device || piece(at, span(e)) == span(e); }
};

bool is_device(CUmemorytype type) {
  return type == CU_MEMORYTYPE_DEVICE || type == CU_MEMORYTYPE_UNIFIED;
}

Extent extent_of(const CUDA_MEMCPY2D& c) { return {c.WidthInBytes, c.Height, 1}; }
template <class Copy3D>
Extent extent_of(const Copy3D& c) {
  return {c.WidthInBytes, c.Height, c.Depth};
}
Side source_of(const CUDA_MEMCPY2D& c) {
  return {is_device(c.srcMemoryType), c.srcDevice + c.srcY * c.srcPitch + c.srcXInBytes, c.srcPitch,
          0};
}
Side target_of(const CUDA_MEMCPY2D& c) {
  return {is_device(c.dstMemoryType), c.dstDevice + c.dstY * c.dstPitch + c.dstXInBytes, c.dstPitch,
          0};
}
template <class Copy3D>
Side source_of(const Copy3D& c) {
  const std::size_t plane = c.srcPitch * c.srcHeight;
  return {is_device(c.srcMemoryType),
          c.srcDevice + c.srcZ * plane + c.srcY * c.srcPitch + c.srcXInBytes, c.srcPitch, plane};
}
template <class Copy3D>
Side target_of(const Copy3D& c) {
  const std::size_t plane = c.dstPitch * c.dstHeight;
  return {is_device(c.dstMemoryType),
          c.dstDevice + c.dstZ * plane + c.dstY * c.dstPitch + c.dstXInBytes, c.dstPitch, plane};
}

// The part of a copy that begins at `x, y, z` and has that extent.
CUDA_MEMCPY2D part_of(CUDA_MEMCPY2D c, std::size_t x, std::size_t y, std::size_t, Extent e) {
  c.srcXInBytes += x;
  c.dstXInBytes += x;
  c.srcY += y;
  c.dstY += y;
  c.WidthInBytes = e.width;
  c.Height = e.height;
  return c;
}
template <class Copy3D>
Copy3D part_of(Copy3D c, std::size_t x, std::size_t y, std::size_t z, Extent e) {
  c.srcXInBytes += x;
  c.dstXInBytes += x;
  c.srcY += y;
  c.dstY += y;
  c.srcZ += z;
  c.dstZ += z;
  c.WidthInBytes = e.width;
  c.Height = e.height;
  c.Depth = e.depth;
  return c;
}

// `call(part)` for parts that lie in one place at either end: half the planes at a time, then half
// the rows, then of one row what lies together.
template <class Copy, class Call>
CUresult in_parts(const Copy& copy, Call call) {
  const Extent e = extent_of(copy);
  const Side from = source_of(copy);
  const Side to = target_of(copy);
  const bool is_nothing = e.width == 0 || e.height == 0 || e.depth == 0;
  if (is_nothing || (from.in_one_place(e) && to.in_one_place(e))) return call(&copy);
  Extent first = e;
  std::size_t x = 0;
  std::size_t y = 0;
  std::size_t z = 0;
  Extent rest = e;
  if (e.depth > 1) {
    first.depth = z = e.depth / 2;
    rest.depth -= z;
  } else if (e.height > 1) {
    first.height = y = e.height / 2;
    rest.height -= y;
  } else {
    first.width = x = std::min(from.is_device ? piece(from.at, e.width) : e.width,
                               to.is_device ? piece(to.at, e.width) : e.width);
    rest.width -= x;
  }
  const CUresult result = in_parts(part_of(copy, 0, 0, 0, first), call);
  return result == CUDA_SUCCESS ? in_parts(part_of(copy, x, y, z, rest), call) : result;
}

template <class Copy, class Call>
CUresult copy_shape(const Copy* copy, Call call) {
  const kvmem::Gate::Pass pass(g_gate);
  if (copy == nullptr) return call(copy);  // the driver says what it thinks of that
  if (g_gate.is_capturing()) {
    if (const Side from = source_of(*copy); from.is_device) fix(from.at);
    if (const Side to = target_of(*copy); to.is_device) fix(to.at);
  }
  return in_parts(*copy, call);
}

// `call(at, width, height)` likewise; width counts elements.
template <class Call>
CUresult fill_parts(CUdeviceptr at, std::size_t pitch, std::size_t element, std::size_t width,
                    std::size_t height, Call call) {
  const Side to{true, at, pitch, 0};
  const Extent e{width * element, height, 1};
  if (width == 0 || height == 0 || to.in_one_place(e)) return call(at, width, height);
  if (height > 1) {
    const std::size_t half = height / 2;
    const CUresult result = fill_parts(at, pitch, element, width, half, call);
    if (result != CUDA_SUCCESS) return result;
    return fill_parts(at + half * pitch, pitch, element, width, height - half, call);
  }
  const std::size_t first = piece(at, e.width) / element;
  if (first == 0) return call(at, width, height);  // not aligned to its elements
  const CUresult result = call(at, first, height);
  if (result != CUDA_SUCCESS) return result;
  return fill_parts(at + first * element, pitch, element, width - first, height, call);
}

template <class Call>
CUresult fill_shape(CUdeviceptr at, std::size_t pitch, std::size_t element, std::size_t width,
                    std::size_t height, Call call) {
  const kvmem::Gate::Pass pass(g_gate);
  if (g_gate.is_capturing()) fix(at);
  return fill_parts(at, pitch, element, width, height, call);
}

// A batch with every copy cut where it must be; the attributes of copy i go with its parts.
struct Batch {
  kvmem::Array<CUdeviceptr> to, from;
  kvmem::Array<std::size_t> bytes;
  kvmem::Array<std::size_t> attribute_from;

  bool add(CUdeviceptr t, CUdeviceptr f, std::size_t n) {
    const std::size_t count = to.size();
    if (!to.resize(count + 1) || !from.resize(count + 1) || !bytes.resize(count + 1)) return false;
    to[count] = t;
    from[count] = f;
    bytes[count] = n;
    return true;
  }
  // False: no memory.
  bool cut(const CUdeviceptr* tos, const CUdeviceptr* froms, const std::size_t* sizes,
           std::size_t count, const std::size_t* attributes, std::size_t attribute_count) {
    std::size_t next = 0;
    if (!attribute_from.resize(attribute_count)) return false;
    for (std::size_t i = 0; i < count; ++i) {
      for (; next < attribute_count && attributes[next] == i; ++next) {
        attribute_from[next] = to.size();
      }
      for (std::size_t done = 0; done < sizes[i];) {
        const std::size_t left = sizes[i] - done;
        const std::size_t part = std::min(piece(tos[i] + done, left), piece(froms[i] + done, left));
        if (!add(tos[i] + done, froms[i] + done, part)) return false;
        done += part;
      }
      if (sizes[i] == 0 && !add(tos[i], froms[i], 0)) return false;  // the driver's to refuse
    }
    for (; next < attribute_count; ++next) attribute_from[next] = attributes[next];
    return true;
  }
};

// `call(to, from, bytes, count, attributes' indices)`
template <class Call>
CUresult copy_batch(CUdeviceptr* to, CUdeviceptr* from, std::size_t* bytes, std::size_t count,
                    std::size_t* attributes, std::size_t attribute_count, Call call) {
  const kvmem::Gate::Pass pass(g_gate);
  bool is_whole = true;
  for (std::size_t i = 0; i < count && to != nullptr && from != nullptr && bytes != nullptr; ++i) {
    is_whole =
        is_whole && piece(to[i], bytes[i]) == bytes[i] && piece(from[i], bytes[i]) == bytes[i];
    if (!g_gate.is_capturing()) continue;
    fix(to[i]);
    fix(from[i]);
  }
  if (is_whole || attributes == nullptr) return call(to, from, bytes, count, attributes);
  Batch batch;
  if (!batch.cut(to, from, bytes, count, attributes, attribute_count)) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  return call(batch.to.data(), batch.from.data(), batch.bytes.data(), batch.to.size(),
              batch.attribute_from.data());
}

}  // namespace

// With the type of the shape, or of what is filled in.
#define KVMEM_SHAPES(X)                                                                            \
  X(KVMEM_COPY, cuMemcpy2D, 3020, "cuMemcpy2D_v2", "cuMemcpy2D_v2_ptds", CUDA_MEMCPY2D)            \
  X(KVMEM_COPY, cuMemcpy2DUnaligned, 3020, "cuMemcpy2DUnaligned_v2",                               \
    "cuMemcpy2DUnaligned_v2_ptds", CUDA_MEMCPY2D)                                                  \
  X(KVMEM_COPY, cuMemcpy3D, 3020, "cuMemcpy3D_v2", "cuMemcpy3D_v2_ptds", CUDA_MEMCPY3D)            \
  X(KVMEM_COPY, cuMemcpy3DPeer, 4000, "cuMemcpy3DPeer", "cuMemcpy3DPeer_ptds", CUDA_MEMCPY3D_PEER) \
  X(KVMEM_COPY_ASYNC, cuMemcpy2DAsync, 3020, "cuMemcpy2DAsync_v2", "cuMemcpy2DAsync_v2_ptsz",      \
    CUDA_MEMCPY2D)                                                                                 \
  X(KVMEM_COPY_ASYNC, cuMemcpy3DAsync, 3020, "cuMemcpy3DAsync_v2", "cuMemcpy3DAsync_v2_ptsz",      \
    CUDA_MEMCPY3D)                                                                                 \
  X(KVMEM_COPY_ASYNC, cuMemcpy3DPeerAsync, 4000, "cuMemcpy3DPeerAsync",                            \
    "cuMemcpy3DPeerAsync_ptsz", CUDA_MEMCPY3D_PEER)                                                \
  X(KVMEM_FILL, cuMemsetD2D8, 3020, "cuMemsetD2D8_v2", "cuMemsetD2D8_v2_ptds", unsigned char)      \
  X(KVMEM_FILL, cuMemsetD2D16, 3020, "cuMemsetD2D16_v2", "cuMemsetD2D16_v2_ptds", unsigned short)  \
  X(KVMEM_FILL, cuMemsetD2D32, 3020, "cuMemsetD2D32_v2", "cuMemsetD2D32_v2_ptds", unsigned)        \
  X(KVMEM_FILL_ASYNC, cuMemsetD2D8Async, 3020, "cuMemsetD2D8Async", "cuMemsetD2D8Async_ptsz",      \
    unsigned char)                                                                                 \
  X(KVMEM_FILL_ASYNC, cuMemsetD2D16Async, 3020, "cuMemsetD2D16Async", "cuMemsetD2D16Async_ptsz",   \
    unsigned short)                                                                                \
  X(KVMEM_FILL_ASYNC, cuMemsetD2D32Async, 3020, "cuMemsetD2D32Async", "cuMemsetD2D32Async_ptsz",   \
    unsigned)                                                                                      \
  X(KVMEM_BATCH, cuMemcpyBatchAsync, 13000, "cuMemcpyBatchAsync_v2",                               \
    "cuMemcpyBatchAsync_v2_ptsz", )                                                                \
  X(KVMEM_OLD_BATCH, cuMemcpyBatchAsync, 12080, "cuMemcpyBatchAsync", "cuMemcpyBatchAsync_ptsz", )

#define KVMEM_COPY(id, symbol, Copy)                                   \
  KVMEM_EXPORTED_CALL(id, symbol, 1, const Copy*) {                    \
    static constinit Real real(symbol);                                \
    return copy_shape(a, [](const Copy* part) { return real(part); }); \
  }
#define KVMEM_COPY_ASYNC(id, symbol, Copy)                                 \
  KVMEM_EXPORTED_CALL(id, symbol, 2, const Copy*, CUstream) {              \
    static constinit Real real(symbol);                                    \
    return copy_shape(a, [b](const Copy* part) { return real(part, b); }); \
  }
#define KVMEM_FILL(id, symbol, Value)                                                             \
  KVMEM_EXPORTED_CALL(id, symbol, 5, CUdeviceptr, std::size_t, Value, std::size_t, std::size_t) { \
    static constinit Real real(symbol);                                                           \
    return fill_shape(a, b, sizeof(Value), d, e,                                                  \
                      [b, c](CUdeviceptr at, std::size_t width, std::size_t height) {             \
                        return real(at, b, c, width, height);                                     \
                      });                                                                         \
  }
#define KVMEM_FILL_ASYNC(id, symbol, Value)                                                     \
  KVMEM_EXPORTED_CALL(id, symbol, 6, CUdeviceptr, std::size_t, Value, std::size_t, std::size_t, \
                      CUstream) {                                                               \
    static constinit Real real(symbol);                                                         \
    return fill_shape(a, b, sizeof(Value), d, e,                                                \
                      [b, c, f](CUdeviceptr at, std::size_t width, std::size_t height) {        \
                        return real(at, b, c, width, height, f);                                \
                      });                                                                       \
  }
#define KVMEM_BATCH(id, symbol, unused)                                                     \
  KVMEM_EXPORTED_CALL(id, symbol, 8, CUdeviceptr*, CUdeviceptr*, std::size_t*, std::size_t, \
                      CUmemcpyAttributes*, std::size_t*, std::size_t, CUstream) {           \
    static constinit Real real(symbol);                                                     \
    return copy_batch(a, b, c, d, f, g,                                                     \
                      [e, g, h](CUdeviceptr* to, CUdeviceptr* from, std::size_t* bytes,     \
                                std::size_t count, std::size_t* attributes) {               \
                        return real(to, from, bytes, count, e, attributes, g, h);           \
                      });                                                                   \
  }
#define KVMEM_OLD_BATCH(id, symbol, unused)                                                     \
  KVMEM_EXPORTED_CALL(id, symbol, 9, CUdeviceptr*, CUdeviceptr*, std::size_t*, std::size_t,     \
                      CUmemcpyAttributes*, std::size_t*, std::size_t, std::size_t*, CUstream) { \
    static constinit Real real(symbol);                                                         \
    return copy_batch(a, b, c, d, f, g,                                                         \
                      [e, g, h, i](CUdeviceptr* to, CUdeviceptr* from, std::size_t* bytes,      \
                                   std::size_t count, std::size_t* attributes) {                \
                        return real(to, from, bytes, count, e, attributes, g, h, i);            \
                      });                                                                       \
  }

KVMEM_SHAPES(KVMEM_BOTH)

namespace kvmem::preload {

Hooks shape_hooks() {
  static const Hook table[] = {KVMEM_SHAPES(KVMEM_LIST)};
  return {table, sizeof table / sizeof table[0]};
}

}  // namespace kvmem::preload
