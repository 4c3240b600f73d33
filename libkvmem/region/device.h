// DeviceRegion: one range of a GPU's addresses, whose pages have physical memory only while they
// need it. The address never changes; what is behind it does.
//
// A mapped page is in one of two places: the device's own memory, or host memory at the same
// address, where kernels still reach it, over the link. A stored page is in neither: its bytes are
// in memory of the process, and nothing may touch it.
//
//   absent  -> mapped    map(): a page of that place's pool, readable and writable
//   mapped  -> mapped    a Transfer: in the other place, with the same bytes in it
//   mapped  -> leaving   leave(): not needed; still mapped, nothing is asked of the driver
//   leaving -> mapped    map(): wanted again before it went
//   leaving -> absent    settle(): unmapped, the page is the pool's again; if shared, the driver's
//   mapped  -> stored    store(): its bytes in a bank, its memory the pool's again
//   stored  -> mapped    restore(): with the same bytes in it, checked by their hash
//   stored  -> absent    restore() found other bytes (kCorrupt): who touches the page faults
//   mapped  -> absent    a Transfer failed twice over (kCorrupt): who touches the page faults
//
// Page tables are edited in runs: a map() costs one cuMemMap a page and one cuMemSetAccess for each
// contiguous run of new pages, a settle() one cuMemUnmap for each run, a transfer's end both.
//
// The driver orders none of this against kernels that run: map() on an address a kernel may know,
// and every settle(), finish(), store() and restore() of such pages, is called with the gate closed
// (gate.h). One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/heap.h"
#include "base/status.h"
#include "cuda/carry.h"
#include "cuda/handles.h"
#include "cuda/kernels.h"
#include "region/device_pool.h"

namespace kvmem {

enum class DevicePage : std::uint8_t { kAbsent = 0, kMapped, kLeaving, kStored };
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
  CUcontext context() const { return pools_[0]->context(); }
  DevicePage page(std::uint32_t page) const { return pages_[page].state; }
  // REQUIRES: the page is not absent.
  DevicePlace place(std::uint32_t page) const { return pages_[page].place; }
  std::uint32_t mapped_pages() const { return mapped_; }

  // Every page of [first, first + count) mapped, or as it was before and why not. What is in a page
  // that was absent is not defined, as with cudaMalloc. Those that are mapped stay where they are.
  // kNoMemory: the pool has no more. REQUIRES: there is a pool for `place`.
  Status map(std::uint32_t first, std::uint32_t count, DevicePlace place = DevicePlace::kDevice);

  // The mapped pages of a range that are not in `place`, on their way there. Until it ends nothing
  // else is done to those pages; it ends with finish() or abandon().
  struct Transfer {
    std::uint32_t first = 0;
    std::uint32_t end = 0;
    DevicePlace place = DevicePlace::kDevice;
    Array<DevicePool::Page> fresh;  // for those of [first, end) that are elsewhere, in their order
    Array<std::uint64_t> hashes;    // of what was copied ahead; empty: nothing was
    std::uint32_t moved = 0;        // finish(): how many are there
    std::uint32_t again = 0;  // finish(): copied ahead in vain, the engine has written to them
  };
  // kNoMemory: no room in `place`. REQUIRES: there is a pool for it.
  Status prepare(std::uint32_t first, std::uint32_t count, DevicePlace place, Transfer* out);
  // Copies while the engine works, and may write to what is copied: finish() sees to that. For
  // less to be done behind the gate; need not be called.
  Status copy_ahead(Transfer& transfer, cuda::Kernels& kernels) const;
  // Gate closed. What could not be moved is where it was, unless the driver then refuses even that:
  // kCorrupt, and who touches the page faults. `kernels` as for copy_ahead().
  Status finish(Transfer& transfer, cuda::Kernels* kernels);
  void abandon(Transfer& transfer) const;
  // All of it, where nobody else uses the pages; `*moved` counts them.
  Status move(std::uint32_t first, std::uint32_t count, DevicePlace place, std::uint32_t* moved);

  // What carries pages to and from a bank: `page_count() * page_bytes()` bytes of the process's
  // own, page by page as here, which the caller keeps until nothing is stored.
  struct Bank {
    unsigned char* bytes = nullptr;
    cuda::Carriage carriage;
  };
  // The mapped pages of the range into the bank. What could not be stored is mapped as it was.
  Status store(std::uint32_t first, std::uint32_t count, const Bank& bank);
  // The stored pages of the range back, to the device as far as it has room, else to host memory.
  // kNoMemory: there is no room for all; those that are not back are stored as before. kCorrupt: a
  // page has not come back as it went, and is absent.
  Status restore(std::uint32_t first, std::uint32_t count, const Bank& bank);
  std::uint32_t stored_pages() const { return stored_; }
  // Stored pages that cannot be restored are absent: who touches them faults.
  void drop_stored();

  // Others may have got at its pages: nobody gets them after it. From now on it is neither moved
  // nor stored.
  void set_shared() { shared_ = true; }
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
  // `step(batch, k)` for each batch of pages of a transfer; the first of them is its k-th.
  template <class Step>
  Status in_batches(const Transfer& transfer, Step step) const;
  // Up to a batch of pages that are in `state`, from `*next` on.
  struct Chosen {
    std::uint32_t pages[KVMEM_BATCH_PAGES];
    kvmem_batch batch;
  };
  void choose(DevicePage state, std::uint32_t* next, std::uint32_t end, Chosen* out) const;
  Status store_batch(Chosen& chosen, const Bank& bank);
  Status restore_batch(Chosen& chosen, const Bank& bank);
  Status copy_changed(Transfer& transfer, cuda::Kernels& kernels) const;
  Status copy_all(const Transfer& transfer) const;
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
  std::uint32_t stored_ = 0;
  Array<std::uint64_t> sums_;  // of stored pages; empty until one has been
  bool shared_ = false;
};

}  // namespace kvmem
