// DeviceRegion: one range of a GPU's addresses, whose pages have physical memory only while they
// need it. The address never changes; what is behind it does.
//
//   absent  -> mapped    map(): a page of the pool, readable and writable
//   mapped  -> leaving   leave(): not needed; still mapped, nothing is asked of the driver
//   leaving -> mapped    map(): wanted again before it went
//   leaving -> absent    settle(): unmapped, the page is the pool's again
//
// Page tables are edited in runs: a map() costs one cuMemMap a page and one cuMemSetAccess for each
// contiguous run of new pages, a settle() one cuMemUnmap for each run.
//
// The driver orders none of this against kernels that run: map() on an address a kernel may know,
// and every settle(), is called with the gate closed (nothing launched that could touch the range
// is unfinished, and nothing new is launched). One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/heap.h"
#include "base/status.h"
#include "cuda/handles.h"
#include "region/device_pool.h"

namespace kvmem {

enum class DevicePage : std::uint8_t { kAbsent = 0, kMapped, kLeaving };

class DeviceRegion {
 public:
  // Addresses for at least `size_bytes`, all pages absent. `pool` outlives the region.
  static Result<Owned<DeviceRegion>> create(DevicePool& pool, std::size_t size_bytes);
  // REQUIRES: as settle(). Gives everything back.
  ~DeviceRegion();
  DeviceRegion(const DeviceRegion&) = delete;
  DeviceRegion& operator=(const DeviceRegion&) = delete;

  CUdeviceptr address() const { return addresses_.get().at; }
  std::size_t size_bytes() const { return addresses_.get().size_bytes; }
  std::uint32_t page_count() const { return static_cast<std::uint32_t>(pages_.size()); }
  std::size_t page_bytes() const { return pool_.page_bytes(); }
  CUdevice device() const { return pool_.device(); }
  DevicePage page(std::uint32_t page) const { return pages_[page].state; }
  std::uint32_t mapped_pages() const { return mapped_; }

  // Every page of [first, first + count) mapped, or as it was before and why not. What is in a page
  // that was absent is not defined, as with cudaMalloc. kNoMemory: the pool has no more.
  Status map(std::uint32_t first, std::uint32_t count);
  // Mapped pages of the range may go.
  void leave(std::uint32_t first, std::uint32_t count);
  // Those that may go, gone. A run the driver refuses to unmap keeps leaving.
  Status settle();

 private:
  struct Page {  // zero bytes: absent
    DevicePool::Handle handle;
    DevicePage state;
  };

  DeviceRegion(DevicePool& pool, cuda::Reservation addresses, Array<Page> pages);
  CUdeviceptr at(std::uint32_t page) const { return address() + page * page_bytes(); }
  // Absent pages of [first, end) with the handles at `next`, run by run; `mapped` of them when it
  // fails, each still without access.
  Status map_absent(std::uint32_t first, std::uint32_t end, const DevicePool::Handle* next);
  Status give_access(std::uint32_t first, std::uint32_t end);
  Status unmap_run(std::uint32_t first, std::uint32_t end);

  DevicePool& pool_;
  cuda::Reservation addresses_;
  Array<Page> pages_;
  std::uint32_t mapped_ = 0;
  std::uint32_t leaving_ = 0;
};

}  // namespace kvmem
