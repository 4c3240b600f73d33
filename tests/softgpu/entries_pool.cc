// Entry points: memory in the order of streams, and the pools it comes from.

#include <algorithm>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "tests/softgpu/calls.h"
#include "tests/softgpu/memory.h"
#include "tests/softgpu/pool.h"
#include "tests/softgpu/state.h"

namespace softgpu {
namespace {

struct Pool {
  std::size_t bytes_max = 0;  // 0: what the device has
  std::size_t used_bytes = 0;
  std::size_t used_high_bytes = 0, reserved_high_bytes = 0;  // since they were reset
  int reuse[3] = {1, 1, 1};
  cuuint64_t release_threshold = 0;
  bool destroyed = false;  // goes with the last of its memory
};

struct Block {
  Pool* pool;
  std::size_t bytes;
  bool freed;  // the stream has not come to it yet
};

std::mutex pool_mu;  // for all of these
auto& pools = *new std::unordered_map<Pool*, std::unique_ptr<Pool>>;
auto& blocks = *new std::unordered_map<CUdeviceptr, Block>;
auto& graph_memory = *new std::unordered_set<CUdeviceptr>;
Pool* current_pool = nullptr;  // null: the default

Pool& default_pool() {
  static auto* const kPool = new Pool;
  return *kPool;
}

CUmemoryPool handle_of(Pool& pool) { return reinterpret_cast<CUmemoryPool>(&pool); }

// Under pool_mu. Null: there is none.
Pool* pool_of(CUmemoryPool handle) {
  auto* pool = reinterpret_cast<Pool*>(handle);
  if (pool == &default_pool()) return pool;
  const auto found = pools.find(pool);
  return found != pools.end() && !pool->destroyed ? pool : nullptr;
}

void free_block(CUdeviceptr at) {
  const std::lock_guard lock(pool_mu);
  const auto block = blocks.find(at);
  Pool* pool = block->second.pool;
  pool->used_bytes -= block->second.bytes;
  blocks.erase(block);
  (void)Memory::get().free(at, Owner::kAlloc);
  if (pool->destroyed && pool->used_bytes == 0) pools.erase(pool);
}

CUresult look_at(CUstream stream, bool per_thread, Context** context, bool* is_captured) {
  if (const CUresult bad = current(context); bad != CUDA_SUCCESS) return bad;
  const std::lock_guard lock(state_mu);
  const Stream* found = stream_of(**context, stream, per_thread);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *is_captured = found->capture != nullptr;
  return CUDA_SUCCESS;
}

// What a captured stream allocates has its address from then on, and here its memory too, until the
// last graph, executable and launch with the node is gone.
CUresult allocate_by_graph(Context& context, CUdeviceptr* out, std::size_t bytes, CUstream stream,
                           bool per_thread) {
  if (const CUresult bad = Memory::get().alloc(out, bytes); bad != CUDA_SUCCESS) return bad;
  {
    const std::lock_guard lock(pool_mu);
    graph_memory.insert(*out);
  }
  const std::shared_ptr<void> memory(nullptr, [at = *out](void*) {
    const std::lock_guard lock(pool_mu);
    graph_memory.erase(at);
    (void)Memory::get().free(at, Owner::kAlloc);
  });
  return enqueue(context, stream, per_thread, CU_GRAPH_NODE_TYPE_MEM_ALLOC, [memory] {});
}

// Memory is had at once; null is the current pool.
CUresult allocate(CUdeviceptr* out, std::size_t bytes, const CUmemoryPool* handle, CUstream stream,
                  bool per_thread) {
  Context* context = nullptr;
  bool is_captured = false;
  if (const CUresult bad = look_at(stream, per_thread, &context, &is_captured);
      bad != CUDA_SUCCESS) {
    return bad;
  }
  if (is_captured) return allocate_by_graph(*context, out, bytes, stream, per_thread);
  const std::lock_guard lock(pool_mu);
  Pool* pool = handle != nullptr         ? pool_of(*handle)
               : current_pool != nullptr ? current_pool
                                         : &default_pool();
  if (pool == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (pool->bytes_max != 0 && bytes > pool->bytes_max - pool->used_bytes) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (const CUresult bad = Memory::get().alloc(out, bytes); bad != CUDA_SUCCESS) return bad;
  blocks[*out] = {pool, bytes, false};
  pool->used_bytes += bytes;
  pool->used_high_bytes = std::max(pool->used_high_bytes, pool->used_bytes);
  pool->reserved_high_bytes = std::max(pool->reserved_high_bytes, pool->used_bytes);
  return CUDA_SUCCESS;
}

CUresult free_in_order(CUdeviceptr at, CUstream stream, bool per_thread) {
  Context* context = nullptr;
  bool is_captured = false;
  if (const CUresult bad = look_at(stream, per_thread, &context, &is_captured);
      bad != CUDA_SUCCESS) {
    return bad;
  }
  {
    const std::lock_guard lock(pool_mu);
    // A graph frees what a graph has allocated; what leaves one to be freed later is not followed.
    if (is_captured != (graph_memory.count(at) != 0)) return CUDA_ERROR_INVALID_VALUE;
  }
  if (is_captured) {
    return enqueue(*context, stream, per_thread, CU_GRAPH_NODE_TYPE_MEM_FREE, [] {});
  }
  {
    const std::lock_guard lock(pool_mu);
    if (const auto block = blocks.find(at); block != blocks.end()) {
      if (std::exchange(block->second.freed, true)) return CUDA_ERROR_INVALID_VALUE;
    } else {
      // Memory of cuMemAlloc is freed so too.
      Place place;
      if (!Memory::get().find(at, &place) || place.base != at || place.owner != Owner::kAlloc) {
        return CUDA_ERROR_INVALID_VALUE;
      }
      blocks[at] = {&default_pool(), 0, true};
    }
  }
  const CUresult queued =
      enqueue(*context, stream, per_thread, CU_GRAPH_NODE_TYPE_MEM_FREE, [at] { free_block(at); });
  if (queued != CUDA_SUCCESS) {
    const std::lock_guard lock(pool_mu);
    blocks.at(at).freed = false;
  }
  return queued;
}

CUresult check_device(CUdevice device) {
  if (!initialized()) return CUDA_ERROR_NOT_INITIALIZED;
  return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

}  // namespace

bool free_pooled(CUdeviceptr at, CUresult* result) {
  {
    const std::lock_guard lock(pool_mu);
    if (graph_memory.count(at) != 0) {
      *result = CUDA_ERROR_INVALID_VALUE;
      return true;
    }
    const auto block = blocks.find(at);
    if (block == blocks.end()) return false;
    *result = std::exchange(block->second.freed, true) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
  }
  if (*result == CUDA_SUCCESS) free_block(at);
  return true;
}

}  // namespace softgpu

using namespace softgpu;  // NOLINT(google-build-using-namespace)

extern "C" {

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* out, CUdevice device) {
  SOFTGPU_ENTRY(cuDeviceGetDefaultMemPool);
  if (const CUresult bad = check_device(device); bad != CUDA_SUCCESS) return bad;
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *out = handle_of(default_pool());
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetMemPool(CUmemoryPool* out, CUdevice device) {
  SOFTGPU_ENTRY(cuDeviceGetMemPool);
  if (const CUresult bad = check_device(device); bad != CUDA_SUCCESS) return bad;
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard lock(pool_mu);
  *out = handle_of(current_pool != nullptr ? *current_pool : default_pool());
  return CUDA_SUCCESS;
}

CUresult cuDeviceSetMemPool(CUdevice device, CUmemoryPool handle) {
  SOFTGPU_ENTRY(cuDeviceSetMemPool);
  if (const CUresult bad = check_device(device); bad != CUDA_SUCCESS) return bad;
  const std::lock_guard lock(pool_mu);
  Pool* pool = pool_of(handle);
  if (pool == nullptr) return CUDA_ERROR_INVALID_VALUE;
  current_pool = pool;
  return CUDA_SUCCESS;
}

CUresult cuMemPoolCreate(CUmemoryPool* out, const CUmemPoolProps* props) {
  SOFTGPU_ENTRY(cuMemPoolCreate);
  if (!initialized()) return CUDA_ERROR_NOT_INITIALIZED;
  if (out == nullptr || props == nullptr || props->allocType != CU_MEM_ALLOCATION_TYPE_PINNED) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  // On the device alone, and nothing that other processes import.
  if (props->location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
      props->handleTypes != CU_MEM_HANDLE_TYPE_NONE) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  if (props->location.id != 0) return CUDA_ERROR_INVALID_VALUE;
  auto made = std::make_unique<Pool>();
  made->bytes_max = props->maxSize;
  *out = handle_of(*made);
  const std::lock_guard lock(pool_mu);
  pools[made.get()] = std::move(made);
  return CUDA_SUCCESS;
}

CUresult cuMemPoolDestroy(CUmemoryPool handle) {
  SOFTGPU_ENTRY(cuMemPoolDestroy);
  const std::lock_guard lock(pool_mu);
  Pool* pool = pool_of(handle);
  if (pool == nullptr || pool == &default_pool()) return CUDA_ERROR_INVALID_VALUE;
  if (current_pool == pool) current_pool = nullptr;
  pool->destroyed = true;
  if (pool->used_bytes == 0) pools.erase(pool);
  return CUDA_SUCCESS;
}

CUresult cuMemPoolTrimTo(CUmemoryPool handle, std::size_t) {
  SOFTGPU_ENTRY(cuMemPoolTrimTo);
  const std::lock_guard lock(pool_mu);
  return pool_of(handle) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemPoolSetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void* value) {
  SOFTGPU_ENTRY(cuMemPoolSetAttribute);
  const std::lock_guard lock(pool_mu);
  Pool* pool = pool_of(handle);
  if (pool == nullptr || value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const auto number = [value] { return *static_cast<const cuuint64_t*>(value); };
  switch (attribute) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
      pool->reuse[attribute - CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES] =
          *static_cast<const int*>(value);
      return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
      pool->release_threshold = number();
      return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
      if (number() != 0) return CUDA_ERROR_INVALID_VALUE;
      (attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH ? pool->used_high_bytes
                                                  : pool->reserved_high_bytes) = pool->used_bytes;
      return CUDA_SUCCESS;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

CUresult cuMemPoolGetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void* value) {
  SOFTGPU_ENTRY(cuMemPoolGetAttribute);
  const std::lock_guard lock(pool_mu);
  const Pool* pool = pool_of(handle);
  if (pool == nullptr || value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const auto give = [value](cuuint64_t number) {
    *static_cast<cuuint64_t*>(value) = number;
    return CUDA_SUCCESS;
  };
  switch (attribute) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
      *static_cast<int*>(value) =
          pool->reuse[attribute - CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES];
      return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
      return give(pool->release_threshold);
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
      return give(pool->used_bytes);
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
      return give(pool->reserved_high_bytes);
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
      return give(pool->used_high_bytes);
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

// The one device has access, and cannot lose it.
CUresult cuMemPoolSetAccess(CUmemoryPool handle, const CUmemAccessDesc* map, std::size_t count) {
  SOFTGPU_ENTRY(cuMemPoolSetAccess);
  const std::lock_guard lock(pool_mu);
  if (pool_of(handle) == nullptr || map == nullptr) return CUDA_ERROR_INVALID_VALUE;
  for (std::size_t i = 0; i < count; ++i) {
    if (map[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        map[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    if (map[i].location.id != 0) return CUDA_ERROR_INVALID_DEVICE;
  }
  return CUDA_SUCCESS;
}

CUresult cuMemPoolGetAccess(CUmemAccess_flags* flags, CUmemoryPool handle,
                            CUmemLocation* location) {
  SOFTGPU_ENTRY(cuMemPoolGetAccess);
  const std::lock_guard lock(pool_mu);
  if (flags == nullptr || pool_of(handle) == nullptr || location == nullptr ||
      location->type != CU_MEM_LOCATION_TYPE_DEVICE || location->id != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  return CUDA_SUCCESS;
}

#define SOFTGPU_POOLED(suffix, per_thread)                                                         \
  CUresult cuMemAllocAsync##suffix(CUdeviceptr* out, std::size_t bytes, CUstream stream) {         \
    SOFTGPU_ENTRY(cuMemAllocAsync);                                                                \
    return allocate(out, bytes, nullptr, stream, per_thread);                                      \
  }                                                                                                \
  CUresult cuMemAllocFromPoolAsync##suffix(CUdeviceptr* out, std::size_t bytes, CUmemoryPool pool, \
                                           CUstream stream) {                                      \
    SOFTGPU_ENTRY(cuMemAllocFromPoolAsync);                                                        \
    return allocate(out, bytes, &pool, stream, per_thread);                                        \
  }                                                                                                \
  CUresult cuMemFreeAsync##suffix(CUdeviceptr at, CUstream stream) {                               \
    SOFTGPU_ENTRY(cuMemFreeAsync);                                                                 \
    return free_in_order(at, stream, per_thread);                                                  \
  }

SOFTGPU_POOLED(, false)
SOFTGPU_POOLED(_ptsz, true)

}  // extern "C"
