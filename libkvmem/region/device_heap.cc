#include "region/device_heap.h"

#include <algorithm>
#include <atomic>

#include "base/page.h"
#include "client/lock.h"
#include "client/notice.h"
#include "client/settings.h"
#include "region/device.h"

namespace kvmem::device {

constinit std::size_t g_threshold_bytes = SIZE_MAX;
constinit Gate g_gate;

namespace {

constexpr int kDevicesMax = 64;
// What is moved while the gate is closed once: 128 MiB, 3 ms at 50 GB/s.
constexpr std::uint32_t kPagesPerClosing = 64;
// How often, and for how long each time, an allocation waits for what is freed before it is out of
// memory.
constexpr int kTriesMax = 20;
constexpr std::uint64_t kTryNs = 100'000'000;

struct Entry {
  Found found;
  std::size_t reserved_bytes;
  DeviceRegion* region;
  bool spills;         // has a page in host memory
  bool moving;         // a thread carries pages of it: it stays
  bool freed;          // by the engine; waits for the gate
  CUstream freed_on;   // or, before that, for an allocation on this stream
  CUcontext freed_in;  // of this context
  bool fixed;          // does not move
};

// Of a device, for the life of the process.
struct Device {
  DevicePool* pool;  // null: none yet
  DevicePool* host;  // null: none, the device is all there is
  bool refused;      // and there will be none
  std::size_t allocated_bytes;
  std::size_t hbm_bytes;  // of its own memory, for the engine
  std::size_t host_bytes;
};

// Regions with a page in host memory. Written under the lock; a reader that sees none sees it for a
// region that it had no right to know yet.
std::atomic<std::size_t> spilled{0};
std::atomic<std::size_t> freed{0};  // regions that wait for the gate; written under the lock

// Taken at any time; nobody closes the gate while holding it.
Lock lock;
Device devices[kDevicesMax] GUARDED_BY(lock);

// Held by a thread that carries pages, for all of it. Taken before `lock`.
Lock carrying;
struct Carrier {
  cuda::Kernels* kernels;  // null: none yet
  bool refused;            // and there will be none
};
Carrier carriers[kDevicesMax] GUARDED_BY(carrying);

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

void make_pools(Device& device, CUdevice index, CUcontext context) REQUIRES(lock) {
  DevicePool::Options options;
  // A context of the engine's own may end before its memory does.
  if (cuda::driver().primary_retain(&options.context, index) != CUDA_SUCCESS) {
    options.context = context;
  }
  options.device = index;
  options.location = {CU_MEM_LOCATION_TYPE_DEVICE, index};
  std::size_t free = 0;
  std::size_t total = 0;
  (void)cuda::driver().memory_info(&free, &total);
  options.bytes_max = device.hbm_bytes = std::min(total, g_settings.hbm_bytes);
  auto made = DevicePool::create(options);
  if (!made.ok()) {
    device.refused = true;
    notice("the GPU's memory is not managed: ", made.status().what(), " ",
           cuda::error_name(made.status()));
    return;
  }
  device.pool = (*std::move(made)).release();
  if (g_settings.gpu_capacity_bytes == 0) return;
  if (g_settings.gpu_capacity_bytes <= device.hbm_bytes) {
    notice("KVMEM_GPU_CAPACITY is no more than the GPU's own memory: set a smaller KVMEM_HBM too");
    return;
  }
  int node = 0;
  (void)cuda::driver().device_get_attribute(&node, CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, index);
  options.location = {CU_MEM_LOCATION_TYPE_HOST_NUMA, node < 0 ? 0 : node};
  options.bytes_max = g_settings.gpu_capacity_bytes - device.hbm_bytes;
  made = DevicePool::create(options);
  if (!made.ok()) {
    // Some drivers refuse it on some nodes (nccl issue 2190).
    notice("no host memory at GPU addresses, KVMEM_GPU_CAPACITY is not had: ", made.status().what(),
           " ", cuda::error_name(made.status()));
    return;
  }
  device.host = (*std::move(made)).release();
  device.host_bytes = options.bytes_max;
}

// The live entry `at` is in; null: none.
Entry* entry_of(CUdeviceptr at) REQUIRES(lock) {
  const std::size_t i = position(at);
  Entry* entry = entries().begin() + i;
  const bool found = i < entries().size() && at >= entry->found.begin && !entry->freed;
  return found ? entry : nullptr;
}

// All that was started on any context that has a region is done.
Status drain(void* /*argument*/) {
  Array<CUcontext> contexts;
  {
    const LockGuard guard(lock);
    for (const Entry& entry : entries()) {
      const CUcontext context = entry.found.context;
      if (std::find(contexts.begin(), contexts.end(), context) != contexts.end()) continue;
      if (!contexts.resize(contexts.size() + 1)) return {Code::kNoMemory, "a list of contexts"};
      contexts[contexts.size() - 1] = context;
    }
  }
  for (const CUcontext context : contexts) {
    const cuda::ContextScope current(context);
    if (!current.status().ok()) continue;  // the engine has destroyed it, and with it its work
    const Status status = cuda::status_of(cuda::driver().context_synchronize(), "cuCtxSynchronize");
    if (status.code() != Code::kPeerGone) KV_TRY(status);
  }
  return {};
}

bool any_freed() { return freed.load(std::memory_order_acquire) != 0; }

// Regions that the engine has freed give addresses and memory back. False: not now.
bool bury() {
  if (!any_freed()) return true;
  if (!g_gate.close(drain, nullptr).ok()) return false;
  for (;;) {
    DeviceRegion* region = nullptr;
    {
      const LockGuard guard(lock);
      Array<Entry>& all = entries();
      Entry* entry =
          std::find_if(all.begin(), all.end(), [](const Entry& e) { return e.freed && !e.moving; });
      if (entry == all.end()) break;
      region = entry->region;
      if (entry->spills) spilled.fetch_sub(1, std::memory_order_relaxed);
      std::copy(entry + 1, all.end(), entry);
      all.shrink(all.size() - 1);
    }
    HeapDelete{}(region);
    freed.fetch_sub(1, std::memory_order_release);  // only now is there room
  }
  g_gate.open();
  return true;
}

// The thread that buries. It alone closes the gate for that: to an engine's thread, waiting for all
// that others have started could be waiting for itself.
sys::FutexWord to_bury{0};  // counted up when there is something to bury
sys::FutexWord buried{0};   // counted up after each try
pthread_once_t reaper_once = PTHREAD_ONCE_INIT;

void* reap(void* /*unused*/) {
  constexpr std::uint64_t kPauseMinNs = 100'000;
  constexpr std::uint64_t kPauseMaxNs = 50'000'000;
  (void)sys::block_signals();
  for (std::uint64_t pause_ns = kPauseMinNs;;) {
    const std::uint32_t seen = to_bury.load(std::memory_order_acquire);
    const bool done = bury();
    buried.fetch_add(1, std::memory_order_release);
    sys::futex_wake(buried, INT32_MAX);
    if (done) {
      pause_ns = kPauseMinNs;
      sys::futex_wait(to_bury, seen);
    } else {
      sys::sleep_ns(pause_ns);
      pause_ns = std::min(2 * pause_ns, kPauseMaxNs);
    }
  }
}

void start_reaper() {
  pthread_attr_t attributes;
  pthread_t thread{};
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  (void)::pthread_create(&thread, &attributes, reap, nullptr);  // none: freed memory stays
  ::pthread_attr_destroy(&attributes);
}

void wake_reaper() {
  ::pthread_once(&reaper_once, start_reaper);
  to_bury.fetch_add(1, std::memory_order_release);
  sys::futex_wake(to_bury, 1);
}

// Waits until `pool` has room for `pages`, or nothing is left that could make room, or too long.
void await_room(const DevicePool& pool, std::uint64_t pages) {
  constexpr std::uint64_t kTooLongNs = 2'000'000'000;
  const std::uint64_t begin_ns = sys::now_ns();
  for (;;) {
    const std::uint32_t seen = buried.load(std::memory_order_acquire);
    if (!any_freed() || pool.available() >= pages) return;
    const std::uint64_t waited_ns = sys::now_ns() - begin_ns;
    if (waited_ns >= kTooLongNs) return;
    wake_reaper();
    sys::futex_wait_for(buried, seen, kTooLongNs - waited_ns);
  }
}

// False: kvmem cannot serve this device. `context` is current.
bool pools_of(CUdevice index, CUcontext context, DevicePool** pool, DevicePool** host) {
  const LockGuard guard(lock);
  Device& device = devices[index];
  if (device.pool == nullptr && !device.refused) make_pools(device, index, context);
  *pool = device.pool;
  *host = device.host;
  return device.pool != nullptr;
}
bool current_device(CUdevice* device, CUcontext* context) {
  const cuda::Driver& driver = cuda::driver();
  return driver.context_get(context) == CUDA_SUCCESS && *context != nullptr &&
         driver.context_device(device) == CUDA_SUCCESS && *device >= 0 && *device < kDevicesMax;
}

CUresult code_of(const Status& status) {
  // A size that cannot be is more than there is; what kvmem cannot serve the driver may.
  if (status.code() == Code::kNoMemory) return CUDA_ERROR_OUT_OF_MEMORY;
  if (status.detail() != 0) return static_cast<CUresult>(status.detail());
  return status.code() == Code::kInvalid ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_NOT_SUPPORTED;
}

// The first pages on the device, as far as it has room, the rest in host memory.
Status map_all(DeviceRegion& region, DevicePool& pool, bool has_host) {
  const std::uint32_t count = region.page_count();
  Status mapped = region.map(0, count);
  if (mapped.ok() || mapped.code() != Code::kNoMemory || !has_host) return mapped;
  // Other threads allocate too: what there was room for may be gone.
  std::uint32_t on_device = 0;
  for (std::uint64_t room = pool.available(); room > 0; room /= 2) {
    const auto more = static_cast<std::uint32_t>(std::min<std::uint64_t>(room, count - on_device));
    if (region.map(on_device, more).ok()) on_device += more;
  }
  return region.map(on_device, count - on_device, DevicePlace::kHost);
}

// Page kernels for a device; null: none here, copies do.
cuda::Kernels* kernels_of(CUdevice device, CUcontext context) REQUIRES(carrying) {
  Carrier& carrier = carriers[device];
  if (carrier.kernels != nullptr || carrier.refused) return carrier.kernels;
  const cuda::ContextScope current(context);
  auto made = cuda::Kernels::create();
  carrier.refused = !made.ok();
  if (made.ok()) carrier.kernels = (*std::move(made)).release();
  return carrier.kernels;
}

// What is asked to move, and how far that is.
struct Range {
  CUdeviceptr at;
  std::size_t size_bytes;
  DevicePlace place;
  std::uint32_t next;  // page of the region; 0: the first of the range
  bool more;
};

// Takes memory for the next pages of a range, as many as one closing of the gate is for. The region
// stays until carried().
Status take_next(Range& range, DeviceRegion** out, DeviceRegion::Transfer* transfer)
    REQUIRES(carrying) {
  const LockGuard guard(lock);
  range.more = false;
  Entry* entry = entry_of(range.at);
  if (entry == nullptr ||
      range.size_bytes > entry->found.begin + entry->reserved_bytes - range.at) {
    return {Code::kNotFound, "no device region"};
  }
  DeviceRegion& region = *entry->region;
  const Device& device = devices[region.device()];
  const DevicePool* pool = range.place == DevicePlace::kDevice ? device.pool : device.host;
  if (pool == nullptr) return {Code::kUnsupported, "no host memory at GPU addresses"};
  if (entry->fixed) return {Code::kUnsupported, "a graph copies it"};
  const std::size_t offset = range.at - region.address();
  const auto first = static_cast<std::uint32_t>(offset / region.page_bytes());
  const auto end =
      static_cast<std::uint32_t>((offset + range.size_bytes - 1) / region.page_bytes()) + 1;
  range.next = std::max(range.next, first);
  const auto room =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(pool->available(), kPagesPerClosing));
  std::uint32_t elsewhere = 0;
  const std::uint32_t begin = range.next;
  for (; range.next < end; ++range.next) {
    const bool moves =
        region.page(range.next) == DevicePage::kMapped && region.place(range.next) != range.place;
    if (moves && elsewhere == room) break;
    elsewhere += moves;
  }
  range.more = range.next < end;
  if (room == 0 && range.more) return {Code::kNoMemory, "no room for the pages"};
  KV_TRY(region.prepare(begin, range.next - begin, range.place, transfer));
  entry->moving = true;
  *out = &region;
  return {};
}

// REQUIRES: the gate is closed, or no page has moved.
void carried(const DeviceRegion& region) {
  const LockGuard guard(lock);
  Entry& entry = entries()[position(region.address())];
  bool spills = false;
  for (std::uint32_t i = 0; i < region.page_count() && !spills; ++i) {
    spills = region.page(i) != DevicePage::kAbsent && region.place(i) == DevicePlace::kHost;
  }
  if (spills != entry.spills) spilled.fetch_add(spills ? 1 : -1, std::memory_order_relaxed);
  entry.spills = spills;
  entry.moving = false;
  if (entry.freed) wake_reaper();
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
  DevicePool* pool = nullptr;
  DevicePool* host = nullptr;
  if (!pools_of(device, context, &pool, &host)) return CUDA_ERROR_NOT_SUPPORTED;
  auto made = DeviceRegion::create(*pool, host, size_bytes);
  if (!made.ok()) return code_of(made.status());
  Owned<DeviceRegion> region = *std::move(made);
  // Nobody knows the addresses yet: no gate is needed.
  // Rather wait for what is being freed than live in host memory.
  await_room(*pool, region->page_count());
  Status mapped = map_all(*region, *pool, host != nullptr);
  // The device may be full although the budget is not.
  for (int n = 0; n < kTriesMax && mapped.code() == Code::kNoMemory && any_freed(); ++n) {
    const std::uint32_t seen = buried.load(std::memory_order_acquire);
    wake_reaper();
    sys::futex_wait_for(buried, seen, kTryNs);
    mapped = map_all(*region, *pool, host != nullptr);
  }
  if (!mapped.ok()) return code_of(mapped);
  const LockGuard guard(lock);
  Array<Entry>& all = entries();
  const std::size_t at = position(region->address());
  if (!all.resize(all.size() + 1)) return CUDA_ERROR_OUT_OF_MEMORY;
  std::copy_backward(all.begin() + at, all.end() - 1, all.end());
  devices[device].allocated_bytes += region->size_bytes();
  *out = region->address();
  const bool spills = region->place(region->page_count() - 1) == DevicePlace::kHost;
  if (spills) spilled.fetch_add(1, std::memory_order_relaxed);
  all[at] = {{*out, size_bytes, context},
             region->size_bytes(),
             region.get(),
             spills,
             false,
             false,
             kNoStream,
             nullptr,
             false};
  (void)region.release();
  return CUDA_SUCCESS;
}

CUresult allocate_on(CUstream stream, CUdeviceptr* out, std::size_t size_bytes) {
  CUdevice device = 0;
  CUcontext context = nullptr;
  int gpus = 0;
  if (!cuda::load().ok() || cuda::driver().device_get_count(&gpus) != CUDA_SUCCESS || gpus != 1) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  if (out != nullptr && stream != kNoStream && freed.load(std::memory_order_relaxed) != 0 &&
      current_device(&device, &context)) {
    const LockGuard guard(lock);
    for (Entry& entry : entries()) {
      const std::size_t over = entry.reserved_bytes - size_bytes;  // or huge
      if (!entry.freed || entry.freed_on != stream || entry.freed_in != context ||
          over >= entry.region->page_bytes()) {
        continue;
      }
      entry.freed = false;
      entry.freed_on = kNoStream;
      entry.found.size_bytes = size_bytes;
      freed.fetch_sub(1, std::memory_order_relaxed);
      devices[device].allocated_bytes += entry.reserved_bytes;
      *out = entry.found.begin;
      return CUDA_SUCCESS;
    }
  }
  return allocate(out, size_bytes);
}

bool find(CUdeviceptr at, Found* out) {
  const LockGuard guard(lock);
  const Entry* entry = entry_of(at);
  if (entry != nullptr) *out = entry->found;
  return entry != nullptr;
}

bool release(CUdeviceptr at, CUresult* result) {
  Found found;
  if (!find(at, &found) || found.begin != at) return false;
  // What uses it ends first. While a stream is captured that must not be asked for; the gate waits
  // for both.
  *result = g_gate.is_capturing() ? CUDA_SUCCESS : cuda::driver().context_synchronize();
  if (*result != CUDA_SUCCESS) return true;
  return release_on(kNoStream, at);  // if not: freed by another thread
}

bool release_on(CUstream stream, CUdeviceptr at) {
  CUcontext context = nullptr;
  (void)cuda::driver().context_get(&context);
  {
    const LockGuard guard(lock);
    Entry* entry = entry_of(at);
    if (entry == nullptr || entry->found.begin != at) return false;
    entry->freed = true;
    entry->freed_on = stream;
    entry->freed_in = context;
    freed.fetch_add(1, std::memory_order_relaxed);
    devices[entry->region->device()].allocated_bytes -= entry->reserved_bytes;
  }
  // What was freed on a stream is kept for that stream until somebody needs the room.
  if (stream == kNoStream) wake_reaper();
  return true;
}

void forget_stream(CUstream stream) {
  if (!any_freed()) return;
  const LockGuard guard(lock);
  for (Entry& entry : entries()) {
    if (entry.freed && entry.freed_on == stream) entry.freed_on = kNoStream;
  }
}

Status move(CUdeviceptr at, std::size_t size_bytes, DevicePlace place, std::uint32_t* moved) {
  const LockGuard alone(carrying);
  *moved = 0;
  for (Range range{at, size_bytes, place, 0, true}; range.more;) {
    DeviceRegion* region = nullptr;
    DeviceRegion::Transfer transfer;
    KV_TRY(take_next(range, &region, &transfer));
    cuda::Kernels* kernels = kernels_of(region->device(), region->context());
    // What cannot be copied ahead is copied behind the gate.
    if (kernels != nullptr) (void)region->copy_ahead(transfer, *kernels);
    Status status = g_gate.close(drain, nullptr);
    const bool closed = status.ok();
    if (closed) {
      status = region->finish(transfer, kernels);
    } else {
      region->abandon(transfer);
    }
    *moved += transfer.moved;
    carried(*region);
    if (closed) g_gate.open();
    KV_TRY(status);
  }
  return {};
}

std::size_t piece(CUdeviceptr at, std::size_t size_bytes) {
  if (spilled.load(std::memory_order_relaxed) == 0) return size_bytes;
  const LockGuard guard(lock);
  const Entry* entry = entry_of(at);
  if (entry == nullptr || !entry->spills) return size_bytes;
  const DeviceRegion& region = *entry->region;
  const std::size_t offset = at - region.address();
  const auto first = static_cast<std::uint32_t>(offset / region.page_bytes());
  std::uint32_t end = first + 1;
  while (end < region.page_count() && end * region.page_bytes() < offset + size_bytes &&
         region.place(end) == region.place(first)) {
    ++end;
  }
  return std::min(size_bytes, end * region.page_bytes() - offset);
}

void fix(CUdeviceptr at) {
  const LockGuard guard(lock);
  if (Entry* entry = entry_of(at); entry != nullptr) entry->fixed = true;
}

bool shrink() {
  CUdevice device = 0;
  CUcontext context = nullptr;
  if (!current_device(&device, &context)) return false;
  DevicePool* pool = nullptr;
  {
    const LockGuard guard(lock);
    pool = devices[device].pool;
  }
  if (pool == nullptr) return false;
  await_room(*pool, UINT64_MAX);  // all that can be had
  return pool->trim(SIZE_MAX) > 0;
}

void adjust_info(std::size_t* free_bytes, std::size_t* total_bytes) {
  CUdevice device = 0;
  CUcontext context = nullptr;
  DevicePool* pool = nullptr;
  DevicePool* host = nullptr;
  // Engines ask before they allocate, and plan by the answer: it must not change with the first
  // allocation.
  if (!cuda::load().ok() || !current_device(&device, &context) ||
      !pools_of(device, context, &pool, &host))
    return;
  const LockGuard guard(lock);
  const Device& ours = devices[device];
  const std::size_t held = pool->stats().in_existence * pool->page_bytes();
  // What others use of the device counts as far as it takes from what is granted.
  const std::size_t lacking = ours.hbm_bytes - std::min(ours.hbm_bytes, *free_bytes + held);
  *total_bytes = ours.hbm_bytes + ours.host_bytes;
  *free_bytes = *total_bytes - std::min(*total_bytes, lacking + ours.allocated_bytes);
}

}  // namespace kvmem::device
