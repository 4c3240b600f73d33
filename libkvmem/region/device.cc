#include "region/device.h"

#include <algorithm>

namespace kvmem {

Result<Owned<DeviceRegion>> DeviceRegion::create(DevicePool& device, DevicePool* host,
                                                 std::size_t size_bytes) {
  const std::size_t page = device.page_bytes();
  if (host != nullptr && host->page_bytes() != page) {
    return Status(Code::kUnsupported, "pages of host memory have another size");
  }
  const std::size_t pages = size_bytes / page + (size_bytes % page != 0 ? 1 : 0);
  if (pages == 0 || pages > UINT32_MAX) return Status(Code::kInvalid, "size of a device region");
  const cuda::ContextScope current(device.context());
  if (!current.status().ok()) return current.status();
  const cuda::OutsideCapture outside;
  CUdeviceptr at = 0;
  KV_TRY(cuda::status_of(cuda::driver().address_reserve(&at, pages * page, 0, 0, 0),
                         "cuMemAddressReserve"));
  cuda::Reservation addresses({at, pages * page});
  Array<Page> table;
  void* room = table.resize(pages) ? heap_room<DeviceRegion>() : nullptr;
  if (room == nullptr) return Status(Code::kNoMemory, "a device region");
  return Owned<DeviceRegion>(
      ::new (room) DeviceRegion(device, host, std::move(addresses), std::move(table)));
}

DeviceRegion::DeviceRegion(DevicePool& device, DevicePool* host, cuda::Reservation addresses,
                           Array<Page> pages)
    : pools_{&device, host}, addresses_(std::move(addresses)), pages_(std::move(pages)) {}

DeviceRegion::~DeviceRegion() {
  leave(0, page_count());
  // Addresses the driver still knows as mapped cannot be given back; their memory is the process's
  // until it ends.
  if (!settle().ok()) (void)addresses_.release();
  const cuda::ContextScope current(pools_[0]->context());
  const cuda::OutsideCapture outside;
  addresses_.reset();
}

Status DeviceRegion::give_access(std::uint32_t first, std::uint32_t end, DevicePlace place) {
  CUmemAccessDesc access[2]{};
  access[0].location = {CU_MEM_LOCATION_TYPE_DEVICE, device()};
  access[0].flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  // Host memory is the processor's too, or an engine that follows the pointer crashes.
  access[1].location = pool(place).location();
  access[1].flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  const std::size_t count = place == DevicePlace::kDevice ? 1 : 2;
  return cuda::status_of(
      cuda::driver().set_access(at(first), (end - first) * page_bytes(), access, count),
      "cuMemSetAccess");
}

Status DeviceRegion::unmap_run(std::uint32_t first, std::uint32_t end) {
  KV_TRY(
      cuda::status_of(cuda::driver().unmap(at(first), (end - first) * page_bytes()), "cuMemUnmap"));
  for (std::uint32_t i = first; i < end; ++i) {
    pool(pages_[i].place).give_back(&pages_[i].handle, 1);
    pages_[i] = {};
  }
  return {};
}

Status DeviceRegion::map_absent(std::uint32_t first, std::uint32_t end, DevicePlace place,
                                const DevicePool::Handle* next) {
  const cuda::Driver& driver = cuda::driver();
  for (std::uint32_t begin = first; begin < end;) {
    if (pages_[begin].state != DevicePage::kAbsent) {
      ++begin;
      continue;
    }
    std::uint32_t run = begin;
    for (; run < end && pages_[run].state == DevicePage::kAbsent; ++run) {
      KV_TRY(cuda::status_of(driver.map(at(run), page_bytes(), 0, *next, 0), "cuMemMap"));
      pages_[run] = {*next++, DevicePage::kMapped, place};
    }
    KV_TRY(give_access(begin, run, place));
    begin = run;
  }
  return {};
}

Status DeviceRegion::map(std::uint32_t first, std::uint32_t count, DevicePlace place) {
  const std::uint32_t end = first + std::min(count, page_count() - std::min(first, page_count()));
  std::uint32_t absent = 0;
  std::uint32_t leaving = 0;
  for (std::uint32_t i = first; i < end; ++i) {
    absent += pages_[i].state == DevicePage::kAbsent;
    leaving += pages_[i].state == DevicePage::kLeaving;
  }
  if (absent > 0) {
    Array<DevicePool::Handle> handles;
    if (!handles.resize(absent)) return {Code::kNoMemory, "mapping device pages"};
    KV_TRY(pool(place).take(absent, handles.data()));
    const cuda::ContextScope current(pools_[0]->context());
    const cuda::OutsideCapture outside;
    Status mapped = current.status();
    if (mapped.ok()) mapped = map_absent(first, end, place, handles.data());
    if (!mapped.ok()) {
      // Back to what it was: the pages that have one of these handles, then the handles never used.
      std::uint32_t used = 0;
      for (std::uint32_t i = first; i < end; ++i) {
        if (used == absent || pages_[i].handle != handles[used]) continue;
        ++used;
        if (!unmap_run(i, i + 1).ok()) {
          pages_[i].state = DevicePage::kLeaving;
          ++mapped_;
          ++leaving_;
        }
      }
      pool(place).give_back(handles.data() + used, absent - used);
      return mapped;
    }
  }
  if (leaving > 0) {
    for (std::uint32_t i = first; i < end; ++i) pages_[i].state = DevicePage::kMapped;
  }
  mapped_ += absent;
  leaving_ -= leaving;
  return {};
}

void DeviceRegion::leave(std::uint32_t first, std::uint32_t count) {
  const std::uint32_t end = first + std::min(count, page_count() - std::min(first, page_count()));
  for (std::uint32_t i = first; i < end; ++i) {
    if (pages_[i].state != DevicePage::kMapped) continue;
    pages_[i].state = DevicePage::kLeaving;
    ++leaving_;
  }
}

Status DeviceRegion::settle() {
  if (leaving_ == 0) return {};
  const cuda::ContextScope current(pools_[0]->context());
  KV_TRY(current.status());
  const cuda::OutsideCapture outside;
  Status result;
  for (std::uint32_t begin = 0; begin < page_count() && leaving_ > 0;) {
    if (pages_[begin].state != DevicePage::kLeaving) {
      ++begin;
      continue;
    }
    std::uint32_t end = begin;
    while (end < page_count() && pages_[end].state == DevicePage::kLeaving) ++end;
    if (const Status gone = unmap_run(begin, end); gone.ok()) {
      mapped_ -= end - begin;
      leaving_ -= end - begin;
    } else {
      result = gone;
    }
    begin = end;
  }
  return result;
}

}  // namespace kvmem
