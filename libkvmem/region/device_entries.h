// What the device heap and its keeper share: the regions of this process on its GPUs, and the pools
// they take pages from. Nobody else's.
#pragma once

#include <cuda.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/heap.h"
#include "client/lock.h"
#include "cuda/kernels.h"
#include "cuda/staging.h"
#include "region/device.h"
#include "region/device_heap.h"
#include "region/device_ledger.h"

namespace kvmem::device {

inline constexpr int kDevicesMax = 64;

struct Entry {
  Found found;
  std::size_t reserved_bytes;
  DeviceRegion* region;
  unsigned char* bank;  // a host region for what is stored; null: nothing is
  bool spills;          // has a page in host memory
  bool moving;          // a thread carries pages of it: it stays
  bool freed;           // by the engine; waits for the gate
  CUstream freed_on;    // or, before that, for an allocation on this stream
  CUcontext freed_in;   // of this context
  bool fixed;           // does not move
  bool stays_away;      // from the device, though it is shared
  unsigned shares;      // what others were given of it: it does not leave the device
  bool changed;         // since the daemon was told of it
  const char* why;      // its pages were moved last; static
  char tag[64];
};

// Of a device, for the life of the process.
struct Device {
  DevicePool* pool;  // null: none yet
  DevicePool* host;  // null: none, the device is all there is
  bool refused;      // and there will be none
  Gpu gpu;
  std::size_t allocated_bytes;
  std::size_t hbm_bytes;  // of its own memory, for the engine
  std::size_t host_bytes;
};

// Taken at any time; nobody closes the gate while holding it.
extern Lock g_entries_lock;
extern Device g_devices[kDevicesMax] GUARDED_BY(g_entries_lock);
// In order of their addresses.
Array<Entry>& entries() REQUIRES(g_entries_lock);
// The entry `at` is in, or the first one behind it.
std::size_t position(CUdeviceptr at) REQUIRES(g_entries_lock);

// Held by a thread that carries pages, for all of it. Taken before g_entries_lock.
extern Lock g_carrying;
struct Carrier {
  cuda::Kernels* kernels;  // null: none yet
  cuda::Staging* staging;  // likewise
  bool no_kernels;         // and there will be none
};
// What carries pages of a device; what cannot be had is null.
Carrier& carrier_of(CUdevice device, CUcontext context) REQUIRES(g_carrying);
// The process is parked: who would carry pages passes the gate first, which wakes it.
extern bool g_parked GUARDED_BY(g_carrying);

// The entry's pages have changed places, or the engine has freed it. REQUIRES: the gate is closed,
// or no page has moved.
void settle_entry(Entry& entry) REQUIRES(g_entries_lock);

// Claims what `pages` more take of a device, as far as the engine may have it. True: it is worth
// asking again. REQUIRES: it has a pool.
bool claim_room(CUdevice device, std::uint64_t pages);
// Claims what is held, and no more.
void claim_held(CUdevice device);

// Regions with a page in host memory. Written under the lock; a reader that sees none sees it for a
// region that it had no right to know yet.
inline std::atomic<std::size_t> g_spilled{0};
// Regions that wait for the gate; written under the lock.
inline std::atomic<std::size_t> g_freed{0};

// A Gate's `drain`: all that was started on any context that has a region is done.
Status drain(void* argument);

}  // namespace kvmem::device
