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

Status DeviceRegion::put(std::uint32_t first, std::uint32_t count, DevicePlace place,
                         const DevicePool::Page* next) {
  const cuda::Driver& driver = cuda::driver();
  Status status;
  std::uint32_t mapped = 0;
  for (; mapped < count && status.ok(); mapped += status.ok()) {
    status = cuda::status_of(
        driver.map(at(first + mapped), page_bytes(), 0, next[mapped].handle, 0), "cuMemMap");
  }
  if (status.ok()) status = pool(place).give_access(at(first), count * page_bytes());
  if (!status.ok() && mapped > 0) (void)driver.unmap(at(first), mapped * page_bytes());
  return status;
}

Status DeviceRegion::unmap_run(std::uint32_t first, std::uint32_t end) {
  KV_TRY(
      cuda::status_of(cuda::driver().unmap(at(first), (end - first) * page_bytes()), "cuMemUnmap"));
  for (std::uint32_t i = first; i < end; ++i) {
    pool(pages_[i].place).give_back(&pages_[i].memory, 1);
    pages_[i] = {};
  }
  return {};
}

Status DeviceRegion::map_absent(std::uint32_t first, std::uint32_t end, DevicePlace place,
                                const DevicePool::Page* next) {
  for (std::uint32_t begin = first; begin < end;) {
    if (pages_[begin].state != DevicePage::kAbsent) {
      ++begin;
      continue;
    }
    std::uint32_t run = begin;
    while (run < end && pages_[run].state == DevicePage::kAbsent) ++run;
    KV_TRY(put(begin, run - begin, place, next));
    for (; begin < run; ++begin) pages_[begin] = {*next++, DevicePage::kMapped, place};
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
    Array<DevicePool::Page> fresh;
    if (!fresh.resize(absent)) return {Code::kNoMemory, "mapping device pages"};
    KV_TRY(pool(place).take(absent, fresh.data()));
    const cuda::ContextScope current(pools_[0]->context());
    const cuda::OutsideCapture outside;
    Status mapped = current.status();
    if (mapped.ok()) mapped = map_absent(first, end, place, fresh.data());
    if (!mapped.ok()) {
      // Back to what it was: the pages that have one of these, then those never used.
      std::uint32_t used = 0;
      for (std::uint32_t i = first; i < end; ++i) {
        if (used == absent || pages_[i].memory != fresh[used]) continue;
        ++used;
        if (!unmap_run(i, i + 1).ok()) {
          pages_[i].state = DevicePage::kLeaving;
          ++mapped_;
          ++leaving_;
        }
      }
      pool(place).give_back(fresh.data() + used, absent - used);
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

Status DeviceRegion::copy_to(std::uint32_t first, std::uint32_t end, DevicePlace place,
                             const DevicePool::Page* next) const {
  // On a stream of its own: of the engine's work nothing is waited for that may begin meanwhile.
  const cuda::Driver& driver = cuda::driver();
  CUstream stream = nullptr;
  KV_TRY(cuda::status_of(driver.stream_create(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate"));
  Status status;
  for (std::uint32_t i = first; i < end && status.ok(); ++i) {
    if (!is_elsewhere(i, place)) continue;
    status = cuda::status_of(driver.copy_async(next++->home, at(i), page_bytes(), stream),
                             "cuMemcpyDtoDAsync");
  }
  // Also after an error: copies that were started still write to these pages.
  const Status done = cuda::status_of(driver.stream_synchronize(stream), "cuStreamSynchronize");
  (void)driver.stream_destroy(stream);
  return status.ok() ? done : status;
}

Status DeviceRegion::exchange_run(std::uint32_t first, std::uint32_t end, DevicePlace place,
                                  const DevicePool::Page* next) {
  constexpr int kTries = 3;
  const DevicePlace before = pages_[first].place;
  KV_TRY(
      cuda::status_of(cuda::driver().unmap(at(first), (end - first) * page_bytes()), "cuMemUnmap"));
  const Status put_there = put(first, end - first, place, next);
  if (put_there.ok()) {
    for (std::uint32_t i = first; i < end; ++i) {
      pool(before).give_back(&pages_[i].memory, 1);
      pages_[i].memory = *next++;
      pages_[i].place = place;
    }
    return {};
  }
  for (std::uint32_t i = first; i < end; ++i) {
    Status back = put(i, 1, before, &pages_[i].memory);
    for (int n = 1; !back.ok() && n < kTries; ++n) back = put(i, 1, before, &pages_[i].memory);
    if (back.ok()) continue;
    for (; i < end; ++i) {  // their bytes stay where nobody finds them
      pages_[i] = {};
      --mapped_;
    }
    return {Code::kCorrupt, "a device page could be mapped neither here nor there", back.detail()};
  }
  return put_there;
}

Status DeviceRegion::move(std::uint32_t first, std::uint32_t count, DevicePlace place,
                          std::uint32_t* moved) {
  *moved = 0;
  const std::uint32_t end = first + std::min(count, page_count() - std::min(first, page_count()));
  std::uint32_t elsewhere = 0;
  for (std::uint32_t i = first; i < end; ++i) elsewhere += is_elsewhere(i, place);
  if (elsewhere == 0) return {};
  Array<DevicePool::Page> fresh;
  if (!fresh.resize(elsewhere)) return {Code::kNoMemory, "moving device pages"};
  KV_TRY(pool(place).take(elsewhere, fresh.data()));
  const cuda::ContextScope current(pools_[0]->context());
  const cuda::OutsideCapture outside;
  Status status = current.status();
  if (status.ok()) status = copy_to(first, end, place, fresh.data());
  for (std::uint32_t begin = first; begin < end && status.ok();) {
    if (!is_elsewhere(begin, place)) {
      ++begin;
      continue;
    }
    std::uint32_t run = begin;
    while (run < end && is_elsewhere(run, place)) ++run;
    status = exchange_run(begin, run, place, fresh.data() + *moved);
    if (status.ok()) *moved += run - begin;
    begin = run;
  }
  pool(place).give_back(fresh.data() + *moved, elsewhere - *moved);
  return status;
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
