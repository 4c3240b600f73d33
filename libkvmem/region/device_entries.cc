#include "region/device_entries.h"

#include <algorithm>

#include "region/device_keeper.h"

namespace kvmem::device {

constinit Lock g_entries_lock;
constinit Device g_devices[kDevicesMax] = {};
constinit Lock g_carrying;
constinit bool g_parked = false;

namespace {

constinit Carrier carriers[kDevicesMax] GUARDED_BY(g_carrying) = {};

}  // namespace

Array<Entry>& entries() {
  alignas(Array<Entry>) static constinit unsigned char room[sizeof(Array<Entry>)] = {};
  // All zero bytes are an empty array; no destructor: threads allocate until the very end.
  return *reinterpret_cast<Array<Entry>*>(room);
}

std::size_t position(CUdeviceptr at) {
  Array<Entry>& all = entries();
  const Entry* found = std::upper_bound(
      all.begin(), all.end(), at,
      [](CUdeviceptr where, const Entry& e) { return where < e.found.begin + e.reserved_bytes; });
  return static_cast<std::size_t>(found - all.begin());
}

Carrier& carrier_of(CUdevice device, CUcontext context) {
  Carrier& carrier = carriers[device];
  const cuda::ContextScope current(context);
  if (carrier.kernels == nullptr && !carrier.no_kernels) {
    auto made = cuda::Kernels::create();
    carrier.no_kernels = !made.ok() && made.status().code() != Code::kNoMemory;
    if (made.ok()) carrier.kernels = (*std::move(made)).release();
  }
  return carrier;
}

void settle_entry(Entry& entry) {
  const DeviceRegion& region = *entry.region;
  bool spills = false;
  for (std::uint32_t i = 0; i < region.page_count() && !spills; ++i) {
    spills = region.page(i) == DevicePage::kMapped && region.place(i) == DevicePlace::kHost;
  }
  if (spills != entry.spills) g_spilled.fetch_add(spills ? 1 : -1, std::memory_order_relaxed);
  entry.spills = spills;
  entry.changed = true;
  if (entry.freed || entry.shares != 0) wake_keeper();  // who shares it waits
}

Status drain(void* /*argument*/) {
  Array<CUcontext> contexts;
  {
    const LockGuard guard(g_entries_lock);
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

}  // namespace kvmem::device
