#include "region/device_heap.h"

#include <algorithm>

#include "base/page.h"
#include "client/lock.h"
#include "client/notice.h"
#include "client/settings.h"
#include "region/device.h"

namespace kvmem::device {

constinit std::size_t g_threshold_bytes = SIZE_MAX;

namespace {

constexpr int kDevicesMax = 64;

struct Entry {
  Found found;
  std::size_t reserved_bytes;
  DeviceRegion* region;
};

// Of a device, for the life of the process.
struct Device {
  DevicePool* pool;  // null: none yet
  bool refused;      // and there will be none
  std::size_t allocated_bytes;
};

Lock lock;
Device devices[kDevicesMax] GUARDED_BY(lock);
Array<Entry>& entries() REQUIRES(lock);
Array<Entry>& entries() {
  alignas(Array<Entry>) static constinit unsigned char room[sizeof(Array<Entry>)] = {};
  // All zero bytes are an empty array; no destructor: threads allocate until the very end.
  return *reinterpret_cast<Array<Entry>*>(room);
}

// The entry `at` is in, or the first one behind it.
std::size_t position(CUdeviceptr at) REQUIRES(lock) {
  Array<Entry>& all = entries();
  const Entry* found = std::upper_bound(
      all.begin(), all.end(), at,
      [](CUdeviceptr where, const Entry& e) { return where < e.found.begin + e.reserved_bytes; });
  return static_cast<std::size_t>(found - all.begin());
}

// Null: kvmem cannot serve this device. `context` is current.
DevicePool* pool_of(CUdevice index, CUcontext context) {
  const LockGuard guard(lock);
  Device& device = devices[index];
  if (device.pool != nullptr || device.refused) return device.pool;
  DevicePool::Options options;
  options.context = context;
  options.device = index;
  options.location = {CU_MEM_LOCATION_TYPE_DEVICE, index};
  auto made = DevicePool::create(options);
  if (!made.ok()) {
    device.refused = true;
    notice("the GPU's memory is not managed: ", made.status().what(), " ",
           cuda::error_name(made.status()));
    return nullptr;
  }
  device.pool = (*std::move(made)).release();
  if (g_settings.hbm_bytes != SIZE_MAX) {
    device.pool->set_pages_max(g_settings.hbm_bytes / device.pool->page_bytes());
  }
  return device.pool;
}

bool current_device(CUdevice* device, CUcontext* context) {
  const cuda::Driver& driver = cuda::driver();
  return driver.context_get(context) == CUDA_SUCCESS && *context != nullptr &&
         driver.context_device(device) == CUDA_SUCCESS && *device >= 0 && *device < kDevicesMax;
}

CUresult code_of(const Status& status) {
  return status.code() == Code::kNoMemory ? CUDA_ERROR_OUT_OF_MEMORY
                                          : static_cast<CUresult>(status.detail());
}

}  // namespace

void install() {
  if (g_settings.device) g_threshold_bytes = kPageBytes;
}

CUresult allocate(CUdeviceptr* out, std::size_t size_bytes) {
  CUdevice device = 0;
  CUcontext context = nullptr;
  if (out == nullptr || !cuda::load().ok() || !current_device(&device, &context)) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  DevicePool* pool = pool_of(device, context);
  if (pool == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  auto made = DeviceRegion::create(*pool, size_bytes);
  if (!made.ok()) return code_of(made.status());
  Owned<DeviceRegion> region = *std::move(made);
  // Nobody knows the addresses yet: no gate is needed.
  if (const Status mapped = region->map(0, region->page_count()); !mapped.ok()) {
    return code_of(mapped);
  }
  const LockGuard guard(lock);
  Array<Entry>& all = entries();
  const std::size_t at = position(region->address());
  if (!all.resize(all.size() + 1)) return CUDA_ERROR_OUT_OF_MEMORY;
  std::copy_backward(all.begin() + at, all.end() - 1, all.end());
  devices[device].allocated_bytes += region->size_bytes();
  *out = region->address();
  all[at] = {{*out, size_bytes, context}, region->size_bytes(), region.get()};
  (void)region.release();
  return CUDA_SUCCESS;
}

bool find(CUdeviceptr at, Found* out) {
  const LockGuard guard(lock);
  const std::size_t i = position(at);
  if (i == entries().size() || at < entries()[i].found.begin) return false;
  *out = entries()[i].found;
  return true;
}

bool release(CUdeviceptr at, CUresult* result) {
  Found found;
  if (!find(at, &found) || found.begin != at) return false;
  const cuda::Driver& driver = cuda::driver();
  // What uses it ends first; and while a stream is captured the driver refuses, as it would have.
  *result = driver.context_synchronize();
  if (*result != CUDA_SUCCESS) return true;
  DeviceRegion* region = nullptr;
  CUdevice device = 0;
  {
    const LockGuard guard(lock);
    Array<Entry>& all = entries();
    const std::size_t i = position(at);
    if (i == all.size() || all[i].found.begin != at) return false;  // freed by another thread
    region = all[i].region;
    device = region->device();
    std::copy(all.begin() + i + 1, all.end(), all.begin() + i);
    all.shrink(all.size() - 1);
    devices[device].allocated_bytes -= region->size_bytes();
  }
  HeapDelete{}(region);
  return true;
}

void adjust_info(std::size_t* free_bytes, std::size_t* total_bytes) {
  CUdevice device = 0;
  CUcontext context = nullptr;
  if (!current_device(&device, &context)) return;
  const LockGuard guard(lock);
  const Device& ours = devices[device];
  const std::size_t held =
      ours.pool == nullptr ? 0 : ours.pool->stats().in_existence * ours.pool->page_bytes();
  const std::size_t others = *total_bytes - std::min(*total_bytes, *free_bytes + held);
  const std::size_t used = others + ours.allocated_bytes;
  *total_bytes = std::min(*total_bytes, g_settings.hbm_bytes);
  *free_bytes = *total_bytes - std::min(*total_bytes, used);
}

}  // namespace kvmem::device
