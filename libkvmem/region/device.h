// DeviceRegion: one range of a GPU's addresses, whose pages have physical memory only while they
// need it. The address never changes; what is behind it does.
//
// A mapped page is in one of two places: the device's own memory, or host memory at the same
// address, where kernels still reach it, over the link.
//
//   absent  -> mapped    map(): a page of that place's pool, readable and writable
//   mapped  -> mapped    move(): in the other place, with the same bytes in it
//   mapped  -> leaving   leave(): not needed; still mapped, nothing is asked of the driver
//   leaving -> mapped    map(): wanted again before it went
//   leaving -> absent    settle(): unmapped, the page is the pool's again
//   mapped  -> absent    move() failed twice over (kCorrupt): who touches the page faults
//
// Page tables are edited in runs: a map() costs one cuMemMap a page and one cuMemSetAccess for each
// contiguous run of new pages, a settle() one cuMemUnmap for each run, a move() both.
//
// The driver orders none of this against kernels that run: map() on an address a kernel may know,
// and every settle() and move() of such pages, is called with the gate closed (gate.h). One thread
// at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/heap.h"
#include "base/status.h"
#include "cuda/handles.h"
#include "region/device_pool.h"

namespace kvmem {

enum class DevicePage : std::uint8_t { kAbsent = 0, kMapped, kLeaving };
enum class DevicePlace : std::uint8_t { kDevice = 0, kHost };

class DeviceRegion {
 public:
  // Addresses for at least `size_bytes`, all pages absent. The pools outlive the region; `host` has
  // pages of the same size, or is null: no place but the device.
  static Result<Owned<DeviceRegion>> create(DevicePool& device, DevicePool* host,
                                            std::size_t size_bytes);
  // REQUIRES: as settle(). Gives everything back.
  ~DeviceRegion();
  DeviceRegion(const DeviceRegion&) = delete;
  DeviceRegion& operator=(const DeviceRegion&) = delete;

  CUdeviceptr address() const { return addresses_.get().at; }
  std::size_t size_bytes() const { return addresses_.get().size_bytes; }
  std::uint32_t page_count() const { return static_cast<std::uint32_t>(pages_.size()); }
  std::size_t page_bytes() const { return pools_[0]->page_bytes(); }
  CUdevice device() const { return pools_[0]->device(); }
  DevicePage page(std::uint32_t page) const { return pages_[page].state; }
  // REQUIRES: the page is not absent.
  DevicePlace place(std::uint32_t page) const { return pages_[page].place; }
  std::uint32_t mapped_pages() const { return mapped_; }

  // Every page of [first, first + count) mapped, or as it was before and why not. What is in a page
  // that was absent is not defined, as with cudaMalloc. Those that are mapped stay where they are.
  // kNoMemory: the pool has no more. REQUIRES: there is a pool for `place`.
  Status map(std::uint32_t first, std::uint32_t count, DevicePlace place = DevicePlace::kDevice);
  // The mapped pages of the range that are not in `place` go there; `*moved` counts them. What
  // could not be moved is where it was, unless the driver then refuses even that: kCorrupt, and who
  // touches the page faults. REQUIRES: there is a pool for `place`.
  Status move(std::uint32_t first, std::uint32_t count, DevicePlace place, std::uint32_t* moved);
  // Mapped pages of the range may go.
  void leave(std::uint32_t first, std::uint32_t count);
  // Those that may go, gone. A run the driver refuses to unmap keeps leaving.
  Status settle();

 private:
  struct Page {  // zero bytes: absent
    DevicePool::Page memory;
    DevicePage state;
    DevicePlace place;
  };

  DeviceRegion(DevicePool& device, DevicePool* host, cuda::Reservation addresses,
               Array<Page> pages);
  DevicePool& pool(DevicePlace place) const { return *pools_[static_cast<int>(place)]; }
  CUdeviceptr at(std::uint32_t page) const { return address() + page * page_bytes(); }
  // Absent pages of [first, end) with the memory at `next`, run by run. When it fails some of them
  // are mapped.
  Status map_absent(std::uint32_t first, std::uint32_t end, DevicePlace place,
                    const DevicePool::Page* next);
  // `count` pages of memory behind the addresses from `first` on, or none.
  Status put(std::uint32_t first, std::uint32_t count, DevicePlace place,
             const DevicePool::Page* next);
  Status unmap_run(std::uint32_t first, std::uint32_t end);
  Status copy_to(std::uint32_t first, std::uint32_t end, DevicePlace place,
                 const DevicePool::Page* next) const;
  Status exchange_run(std::uint32_t first, std::uint32_t end, DevicePlace place,
                      const DevicePool::Page* next);
  bool is_elsewhere(std::uint32_t page, DevicePlace place) const {
    return pages_[page].state == DevicePage::kMapped && pages_[page].place != place;
  }

  DevicePool* const pools_[2];  // by place
  cuda::Reservation addresses_;
  Array<Page> pages_;
  std::uint32_t mapped_ = 0;
  std::uint32_t leaving_ = 0;
};

}  // namespace kvmem
