#include "region/device_heap.h"

#include <algorithm>
#include <cstring>

#include "base/page.h"
#include "client/notice.h"
#include "client/settings.h"
#include "region/device_entries.h"
#include "region/device_keeper.h"
#include "region/tag.h"

namespace kvmem::device {

constinit std::size_t g_threshold_bytes = SIZE_MAX;
constinit Gate g_gate;

namespace {

// What is moved while the gate is closed once: 128 MiB, 3 ms at 50 GB/s.
constexpr std::uint32_t kPagesPerClosing = 64;
// How often, and for how long each time, an allocation waits for what is freed before it is out of
// memory.
constexpr int kTriesMax = 20;
constexpr std::uint64_t kTryNs = 100'000'000;
// So much more is claimed than is needed, if nobody else needs it: a claim is a message to the
// daemon.
constexpr std::size_t kClaimBytes = std::size_t{64} << 20;

// One claim at a time: the last one said is the one that holds.
Lock claiming;

void make_pools(Device& device, CUdevice index, CUcontext context) REQUIRES(g_entries_lock) {
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
  device.hbm_bytes = std::min(total, g_settings.hbm_bytes);
  options.bytes_max = std::min(device.hbm_bytes, kPageBytes);  // more is claimed when it is needed
  CUuuid uuid{};
  (void)cuda::driver().device_uuid(&uuid, index);
  std::memcpy(device.gpu.uuid, uuid.bytes, sizeof device.gpu.uuid);
  device.gpu.total_bytes = total;
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
Entry* entry_of(CUdeviceptr at) REQUIRES(g_entries_lock) {
  const std::size_t i = position(at);
  Entry* entry = entries().begin() + i;
  const bool found = i < entries().size() && at >= entry->found.begin && !entry->freed;
  return found ? entry : nullptr;
}

// Waits until the device has room for `pages`, or nothing is left that could make room, or too
// long.
void await_room(CUdevice device, const DevicePool& pool, std::uint64_t pages) {
  constexpr std::uint64_t kTooLongNs = 2'000'000'000;
  constexpr std::uint64_t kAskAgainNs = 10'000'000;
  const std::uint64_t begin_ns = sys::now_ns();
  for (;;) {
    const bool ask_again = claim_room(device, pages);
    if (pool.available() >= pages) return;
    const std::uint64_t waited_ns = sys::now_ns() - begin_ns;
    if (waited_ns >= kTooLongNs) return;
    if (any_freed()) {
      await_keeper(kTooLongNs - waited_ns);
    } else if (ask_again) {
      sys::sleep_ns(kAskAgainNs);
    } else {
      return;
    }
  }
}

// False: kvmem cannot serve this device. `context` is current.
bool pools_of(CUdevice index, CUcontext context, DevicePool** pool, DevicePool** host) {
  const LockGuard guard(g_entries_lock);
  Device& device = g_devices[index];
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
Status map_split(DeviceRegion& region, DevicePool& pool) {
  const std::uint32_t count = region.page_count();
  // Other threads allocate too: what there was room for may be gone.
  std::uint32_t on_device = 0;
  for (std::uint64_t room = pool.available(); room > 0; room /= 2) {
    const auto more = static_cast<std::uint32_t>(std::min<std::uint64_t>(room, count - on_device));
    if (region.map(on_device, more).ok()) on_device += more;
  }
  return region.map(on_device, count - on_device, DevicePlace::kHost);
}

// All of it on the device, or where that has no room also in host memory, if there is any.
Status map_all(DeviceRegion& region, DevicePool& pool, bool has_host) {
  const std::uint32_t count = region.page_count();
  // Rather wait for what is being freed than live in host memory.
  await_room(region.device(), pool, count);
  Status mapped = region.map(0, count);
  // Between the two another thread may have taken what was claimed, or the claim have been set
  // anew; or the device may be full although the budget is not (the driver says so).
  for (int n = 0; n < kTriesMax && mapped.code() == Code::kNoMemory; ++n) {
    const bool is_full = mapped.detail() != 0;
    if (is_full && has_host) break;
    if (is_full && any_freed()) {
      await_keeper(kTryNs);
    } else {
      await_room(region.device(), pool, count);
      if (pool.available() < count) break;
    }
    mapped = region.map(0, count);
  }
  return mapped.code() == Code::kNoMemory && has_host ? map_split(region, pool) : mapped;
}

// What is asked to move, and how far that is.
struct Range {
  CUdeviceptr at;
  std::size_t size_bytes;
  DevicePlace place;
  std::uint32_t pages_max;  // that may still move
  std::uint32_t next;       // page of the region; 0: the first of the range
  bool more;
};

Status may_move(const Entry& entry, DevicePlace place) {
  if (entry.fixed) return {Code::kUnsupported, "a graph copies it"};
  const bool may = entry.shares == 0 || place == DevicePlace::kDevice;
  return may ? Status() : Status(Code::kUnsupported, "it is shared");
}

// Takes memory for the next pages of a range, as many as one closing of the gate is for. The region
// stays until carried().
Status take_next(Range& range, DeviceRegion** out, DeviceRegion::Transfer* transfer)
    REQUIRES(g_carrying) {
  const LockGuard guard(g_entries_lock);
  range.more = false;
  Entry* entry = entry_of(range.at);
  if (entry == nullptr ||
      range.size_bytes > entry->found.begin + entry->reserved_bytes - range.at) {
    return {Code::kNotFound, "no device region"};
  }
  DeviceRegion& region = *entry->region;
  const Device& device = g_devices[region.device()];
  const DevicePool* pool = range.place == DevicePlace::kDevice ? device.pool : device.host;
  if (pool == nullptr) return {Code::kUnsupported, "no host memory at GPU addresses"};
  KV_TRY(may_move(*entry, range.place));
  const std::size_t offset = range.at - region.address();
  const auto first = static_cast<std::uint32_t>(offset / region.page_bytes());
  const auto end =
      static_cast<std::uint32_t>((offset + range.size_bytes - 1) / region.page_bytes()) + 1;
  range.next = std::max(range.next, first);
  const auto room =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(pool->available(), kPagesPerClosing));
  const std::uint32_t at_most = std::min(room, range.pages_max);
  std::uint32_t elsewhere = 0;
  const std::uint32_t begin = range.next;
  for (; range.next < end; ++range.next) {
    const bool moves =
        region.page(range.next) == DevicePage::kMapped && region.place(range.next) != range.place;
    if (moves && elsewhere == at_most) break;
    elsewhere += moves;
  }
  range.pages_max -= elsewhere;
  range.more = range.next < end && range.pages_max > 0;
  if (room == 0 && range.more) return {Code::kNoMemory, "no room for the pages"};
  KV_TRY(region.prepare(begin, range.next - begin, range.place, transfer));
  entry->moving = true;
  *out = &region;
  return {};
}

// REQUIRES: the gate is closed, or no page has moved.
void carried(const DeviceRegion& region) {
  const LockGuard guard(g_entries_lock);
  Entry& entry = entries()[position(region.address())];
  entry.moving = false;
  settle_entry(entry);
}

bool add(const Entry& entry) {
  const LockGuard guard(g_entries_lock);
  Array<Entry>& all = entries();
  const std::size_t at = position(entry.found.begin);
  if (!all.resize(all.size() + 1)) return false;
  std::copy_backward(all.begin() + at, all.end() - 1, all.end());
  all[at] = entry;
  g_devices[entry.region->device()].allocated_bytes += entry.reserved_bytes;
  settle_entry(all[at]);
  return true;
}

Status move_alone(CUdeviceptr at, std::size_t size_bytes, DevicePlace place, std::uint32_t* moved,
                  std::uint32_t pages_max) REQUIRES(g_carrying) {
  for (Range range{at, size_bytes, place, pages_max, 0, true}; range.more;) {
    DeviceRegion* region = nullptr;
    DeviceRegion::Transfer transfer;
    KV_TRY(take_next(range, &region, &transfer));
    cuda::Kernels* kernels = carrier_of(region->device(), region->context()).kernels;
    // What cannot be copied ahead is copied behind the gate.
    if (kernels != nullptr) (void)region->copy_ahead(transfer, *kernels);
    Status status = g_gate.close(drain, nullptr);
    const bool closed = status.ok();
    // While it was copied a graph may have been captured.
    if (closed) {
      const LockGuard guard(g_entries_lock);
      status = may_move(entries()[position(region->address())], place);
    }
    if (closed && status.ok()) {
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

}  // namespace

void install() {
  if (g_settings.device) g_threshold_bytes = std::max(kPageBytes, g_settings.gpu_threshold_bytes);
}

bool claim_room(CUdevice device, std::uint64_t pages) {
  const LockGuard alone(claiming);
  DevicePool* pool = nullptr;
  Gpu gpu{};
  std::size_t hbm_bytes = 0;
  {
    const LockGuard guard(g_entries_lock);
    pool = g_devices[device].pool;
    gpu = g_devices[device].gpu;
    hbm_bytes = g_devices[device].hbm_bytes;
  }
  if (pool->available() >= pages) return false;
  start_keeper();  // it gives back what others need
  const DevicePool::Stats stats = pool->stats();
  const std::size_t used = (stats.in_existence - stats.idle) * pool->page_bytes();
  const std::size_t needed = used + pages * pool->page_bytes();
  const Claim got =
      claim(gpu, std::min(needed, hbm_bytes), std::min(needed + kClaimBytes, hbm_bytes));
  pool->set_bytes_max(got.bytes);
  return got.others_asked;
}

void claim_held(CUdevice device) {
  const LockGuard alone(claiming);
  DevicePool* pool = nullptr;
  Gpu gpu{};
  {
    const LockGuard guard(g_entries_lock);
    pool = g_devices[device].pool;
    gpu = g_devices[device].gpu;
  }
  if (pool == nullptr) return;
  pool->set_bytes_max(claim_existing(gpu, pool->stop_growing()));
}

void forget() {
  if (!is_on()) return;
  g_threshold_bytes = SIZE_MAX;
  ::new (&g_gate) Gate;
  // Whoever held them is not here.
  ::new (&g_entries_lock) Lock;
  ::new (&g_carrying) Lock;
  ::new (&claiming) Lock;
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
  { const Gate::Pass awake(g_gate); }
  auto made = DeviceRegion::create(*pool, host, size_bytes);
  if (!made.ok()) return code_of(made.status());
  Owned<DeviceRegion> region = *std::move(made);
  // Nobody knows the addresses yet: no gate is needed.
  const Status mapped = map_all(*region, *pool, host != nullptr);
  if (!mapped.ok()) return code_of(mapped);
  Entry entry{};
  entry.found = {region->address(), size_bytes, context, device};
  entry.reserved_bytes = region->size_bytes();
  entry.region = region.get();
  entry.freed_on = kNoStream;
  std::memcpy(entry.tag, tag(), sizeof entry.tag);
  if (!add(entry)) return CUDA_ERROR_OUT_OF_MEMORY;
  *out = region.release()->address();
  wake_keeper();  // to tell the daemon
  return CUDA_SUCCESS;
}

CUresult allocate_on(CUstream stream, CUdeviceptr* out, std::size_t size_bytes) {
  CUdevice device = 0;
  CUcontext context = nullptr;
  int gpus = 0;
  if (!cuda::load().ok() || cuda::driver().device_get_count(&gpus) != CUDA_SUCCESS || gpus != 1) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  if (out != nullptr && stream != kNoStream && g_freed.load(std::memory_order_relaxed) != 0 &&
      current_device(&device, &context)) {
    const LockGuard guard(g_entries_lock);
    for (Entry& entry : entries()) {
      const std::size_t over = entry.reserved_bytes - size_bytes;  // or huge
      if (!entry.freed || entry.moving || entry.bank != nullptr || entry.shares != 0 ||
          entry.freed_on != stream || entry.freed_in != context ||
          over >= entry.region->page_bytes()) {
        continue;
      }
      entry.freed = false;
      entry.freed_on = kNoStream;
      entry.found.size_bytes = size_bytes;
      std::memcpy(entry.tag, tag(), sizeof entry.tag);
      entry.changed = true;
      g_freed.fetch_sub(1, std::memory_order_relaxed);
      g_devices[device].allocated_bytes += entry.reserved_bytes;
      *out = entry.found.begin;
      return CUDA_SUCCESS;
    }
  }
  return allocate(out, size_bytes);
}

bool find(CUdeviceptr at, Found* out) {
  const LockGuard guard(g_entries_lock);
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
    const LockGuard guard(g_entries_lock);
    Entry* entry = entry_of(at);
    if (entry == nullptr || entry->found.begin != at) return false;
    entry->freed = true;
    entry->freed_on = stream;
    entry->freed_in = context;
    g_freed.fetch_add(1, std::memory_order_relaxed);
    g_devices[entry->region->device()].allocated_bytes -= entry->reserved_bytes;
  }
  // What was freed on a stream is kept for that stream until somebody needs the room.
  if (stream == kNoStream) wake_keeper();
  return true;
}

void forget_stream(CUstream stream) {
  if (!any_freed()) return;
  const LockGuard guard(g_entries_lock);
  for (Entry& entry : entries()) {
    if (entry.freed && entry.freed_on == stream) entry.freed_on = kNoStream;
  }
}

Status move(CUdeviceptr at, std::size_t size_bytes, DevicePlace place, std::uint32_t* moved,
            std::uint32_t pages_max) {
  *moved = 0;
  for (;;) {
    {
      const LockGuard alone(g_carrying);
      if (!g_parked) {
        const Status status = move_alone(at, size_bytes, place, moved, pages_max);
        if (*moved > 0) wake_keeper();  // to tell the daemon
        if (status.code() == Code::kCorrupt) alarm("GPU memory is lost: ", status.what());
        return status;
      }
    }
    const Gate::Pass awake(g_gate);
  }
}

std::size_t piece(CUdeviceptr at, std::size_t size_bytes) {
  if (g_spilled.load(std::memory_order_relaxed) == 0) return size_bytes;
  const LockGuard guard(g_entries_lock);
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
  const LockGuard guard(g_entries_lock);
  if (Entry* entry = entry_of(at); entry != nullptr) entry->fixed = true;
}

CUresult share(CUdeviceptr at) {
  constexpr std::uint64_t kTooLongNs = 2'000'000'000;
  const std::uint64_t begin_ns = sys::now_ns();
  for (bool is_counted = false;; is_counted = true) {
    const std::uint64_t waited_ns = sys::now_ns() - begin_ns;
    bool is_stored = false;
    {
      const LockGuard guard(g_entries_lock);
      Entry* entry = entry_of(at);
      if (entry == nullptr) return CUDA_SUCCESS;
      if (!is_counted) ++entry->shares;
      is_stored = entry->bank != nullptr;
      if (!entry->spills && !entry->moving && !is_stored) return CUDA_SUCCESS;
      const bool is_stuck = entry->fixed || g_gate.is_capturing() || waited_ns >= kTooLongNs;
      if (is_stuck || (is_counted && entry->stays_away)) {
        --entry->shares;
        return is_stuck ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_OUT_OF_MEMORY;
      }
      if (!is_counted) entry->stays_away = false;  // it may go by now
    }
    if (is_stored) const Gate::Pass awake(g_gate);
    await_keeper(kTooLongNs - waited_ns);
  }
}

void unshare(CUdeviceptr at) {
  const LockGuard guard(g_entries_lock);
  Entry* entry = entry_of(at);
  if (entry != nullptr && entry->shares > 0) --entry->shares;
}

void explain_ipc(CUdeviceptr at) {
  Found found;
  if (!find(at, &found)) return;
  notice("GPU memory that kvmem manages has no cudaIpcMemHandle: KVMEM_GPU_THRESHOLD=",
         decimal(static_cast<long long>(found.size_bytes) + 1).text,
         " leaves allocations like it, of ", decimal(static_cast<long long>(found.size_bytes)).text,
         " bytes, to the driver");
}

Status residency(CUdeviceptr at, std::size_t size_bytes, const PageNames& names,
                 unsigned char* states) {
  const LockGuard still(g_carrying);  // nothing moves meanwhile
  const LockGuard guard(g_entries_lock);
  const Entry* entry = entry_of(at);
  if (entry == nullptr || size_bytes == 0 ||
      size_bytes > entry->found.begin + entry->reserved_bytes - at) {
    return {Code::kNotFound, "no device region"};
  }
  const DeviceRegion& region = *entry->region;
  const auto farness = [&](std::uint32_t page) -> int {
    switch (region.page(page)) {
      case DevicePage::kAbsent:
        return 3;
      case DevicePage::kStored:
        return 2;
      default:
        return region.place(page) == DevicePlace::kHost ? 1 : 0;
    }
  };
  const unsigned char by_farness[] = {names.device, names.host, names.stored, names.lost};
  const CUdeviceptr first = align_down(at, kPageBytes);
  for (CUdeviceptr page = first; page < at + size_bytes; page += kPageBytes) {
    const CUdeviceptr begin = std::max(page, entry->found.begin) - entry->found.begin;
    const CUdeviceptr end =
        std::min(page + kPageBytes, entry->found.begin + entry->reserved_bytes) -
        entry->found.begin;
    int farthest = 0;
    for (std::size_t i = begin / region.page_bytes(); i * region.page_bytes() < end; ++i) {
      farthest = std::max(farthest, farness(static_cast<std::uint32_t>(i)));
    }
    states[(page - first) / kPageBytes] = by_farness[farthest];
  }
  return {};
}

bool shrink() {
  CUdevice device = 0;
  CUcontext context = nullptr;
  if (!current_device(&device, &context)) return false;
  DevicePool* pool = nullptr;
  {
    const LockGuard guard(g_entries_lock);
    pool = g_devices[device].pool;
  }
  if (pool == nullptr) return false;
  for (int n = 0; n < kTriesMax && any_freed(); ++n) await_keeper(kTryNs);
  return pool->trim(SIZE_MAX) > 0;
}

void passes_by(const char* file, const char* how) {
  if (!is_on()) return;
  notice(file != nullptr ? file : "the program", how, ": kvmem does not see what it allocates");
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
  const LockGuard guard(g_entries_lock);
  const Device& ours = g_devices[device];
  const std::size_t held = pool->stats().in_existence * pool->page_bytes();
  // What others use of the device counts as far as it takes from what is granted.
  const std::size_t lacking = ours.hbm_bytes - std::min(ours.hbm_bytes, *free_bytes + held);
  *total_bytes = ours.hbm_bytes + ours.host_bytes;
  *free_bytes = *total_bytes - std::min(*total_bytes, lacking + ours.allocated_bytes);
}

}  // namespace kvmem::device
