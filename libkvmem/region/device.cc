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
  return pool(place).map(at(first), next, count);
}

Status DeviceRegion::unmap_run(std::uint32_t first, std::uint32_t end) {
  KV_TRY(
      cuda::status_of(cuda::driver().unmap(at(first), (end - first) * page_bytes()), "cuMemUnmap"));
  for (std::uint32_t i = first; i < end; ++i) {
    if (shared_) {
      pool(pages_[i].place).discard(&pages_[i].memory, 1);
    } else {
      pool(pages_[i].place).give_back(&pages_[i].memory, 1);
    }
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

Status DeviceRegion::prepare(std::uint32_t first, std::uint32_t count, DevicePlace place,
                             Transfer* out) {
  out->first = first;
  out->end = first + std::min(count, page_count() - std::min(first, page_count()));
  out->place = place;
  std::uint32_t elsewhere = 0;
  for (std::uint32_t i = first; i < out->end; ++i) elsewhere += is_elsewhere(i, place);
  if (!out->fresh.resize(elsewhere)) return {Code::kNoMemory, "moving device pages"};
  const Status taken = pool(place).take(elsewhere, out->fresh.data());
  if (!taken.ok()) out->fresh.shrink(0);
  return taken;
}

template <class Step>
Status DeviceRegion::in_batches(const Transfer& transfer, Step step) const {
  kvmem_batch batch;
  batch.page_bytes = page_bytes();
  batch.count = 0;
  std::size_t k = 0;
  for (std::uint32_t i = transfer.first; i < transfer.end; ++i) {
    if (is_elsewhere(i, transfer.place)) {
      batch.to[batch.count] = transfer.fresh[k + batch.count].home;
      batch.from[batch.count++] = at(i);
    }
    if (batch.count == KVMEM_BATCH_PAGES || (batch.count > 0 && i + 1 == transfer.end)) {
      KV_TRY(step(batch, k));
      k += batch.count;
      batch.count = 0;
    }
  }
  return {};
}

Status DeviceRegion::copy_ahead(Transfer& transfer, cuda::Kernels& kernels) const {
  if (transfer.fresh.empty()) return {};
  Array<std::uint64_t> hashes;
  if (!hashes.resize(transfer.fresh.size())) return {Code::kNoMemory, "moving device pages"};
  const cuda::ContextScope current(pools_[0]->context());
  KV_TRY(current.status());
  KV_TRY(in_batches(transfer, [&](const kvmem_batch& batch, std::size_t k) {
    return kernels.copy_hash(batch, hashes.data() + k);
  }));
  transfer.hashes.swap(hashes);
  return {};
}

// A page that hashes as it did when it was copied is what was copied.
Status DeviceRegion::copy_changed(Transfer& transfer, cuda::Kernels& kernels) const {
  return in_batches(transfer, [&](const kvmem_batch& batch, std::size_t k) -> Status {
    std::uint64_t now[KVMEM_BATCH_PAGES];
    KV_TRY(kernels.hash(batch, now));
    kvmem_batch changed;
    changed.page_bytes = batch.page_bytes;
    changed.count = 0;
    for (std::size_t i = 0; i < batch.count; ++i) {
      if (now[i] == transfer.hashes[k + i]) continue;
      changed.to[changed.count] = batch.to[i];
      changed.from[changed.count++] = batch.from[i];
    }
    transfer.again += static_cast<std::uint32_t>(changed.count);
    return changed.count == 0 ? Status() : kernels.copy_hash(changed, now);
  });
}

Status DeviceRegion::copy_all(const Transfer& transfer) const {
  const cuda::Driver& driver = cuda::driver();
  KV_ASSIGN_OR_RETURN(const cuda::Stream stream, cuda::make_stream());
  const Status status = in_batches(transfer, [&](const kvmem_batch& batch, std::size_t) -> Status {
    for (std::size_t i = 0; i < batch.count; ++i) {
      KV_TRY(cuda::status_of(
          driver.copy_async(batch.to[i], batch.from[i], batch.page_bytes, stream.get()),
          "cuMemcpyDtoDAsync"));
    }
    return {};
  });
  // Also after an error: copies that were started still write to these pages.
  const Status done =
      cuda::status_of(driver.stream_synchronize(stream.get()), "cuStreamSynchronize");
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
  Status result = put_there;
  for (std::uint32_t i = first; i < end; ++i) {
    Status back = put(i, 1, before, &pages_[i].memory);
    for (int n = 1; !back.ok() && n < kTries; ++n) back = put(i, 1, before, &pages_[i].memory);
    if (back.ok()) continue;
    pages_[i] = {};  // its bytes stay where nobody finds them
    --mapped_;
    result = {Code::kCorrupt, "a device page could be mapped neither here nor there",
              back.detail()};
  }
  return result;
}

Status DeviceRegion::finish(Transfer& transfer, cuda::Kernels* kernels) {
  if (transfer.fresh.empty()) return {};
  const cuda::ContextScope current(pools_[0]->context());
  const cuda::OutsideCapture outside;
  Status status = current.status();
  if (status.ok()) {
    status = transfer.hashes.empty() ? copy_all(transfer) : copy_changed(transfer, *kernels);
  }
  for (std::uint32_t begin = transfer.first; begin < transfer.end && status.ok();) {
    if (!is_elsewhere(begin, transfer.place)) {
      ++begin;
      continue;
    }
    std::uint32_t run = begin;
    while (run < transfer.end && is_elsewhere(run, transfer.place)) ++run;
    status = exchange_run(begin, run, transfer.place, transfer.fresh.data() + transfer.moved);
    if (status.ok()) transfer.moved += run - begin;
    begin = run;
  }
  abandon(transfer);
  return status;
}

void DeviceRegion::abandon(Transfer& transfer) const {
  const std::size_t unused = transfer.fresh.size() - transfer.moved;
  pool(transfer.place).give_back(transfer.fresh.data() + transfer.moved, unused);
  transfer.fresh.shrink(0);
}

Status DeviceRegion::move(std::uint32_t first, std::uint32_t count, DevicePlace place,
                          std::uint32_t* moved) {
  Transfer transfer;
  *moved = 0;
  KV_TRY(prepare(first, count, place, &transfer));
  const Status status = finish(transfer, nullptr);
  *moved = transfer.moved;
  return status;
}

void DeviceRegion::choose(DevicePage state, std::uint32_t* next, std::uint32_t end,
                          Chosen* out) const {
  out->batch.page_bytes = page_bytes();
  out->batch.count = 0;
  for (; *next < end && out->batch.count < KVMEM_BATCH_PAGES; ++*next) {
    if (pages_[*next].state != state) continue;
    out->batch.from[out->batch.count] = at(*next);
    out->pages[out->batch.count++] = *next;
  }
}

Status DeviceRegion::store(std::uint32_t first, std::uint32_t count, const Bank& bank) {
  const std::uint32_t end = first + std::min(count, page_count() - std::min(first, page_count()));
  if (!sums_.resize(page_count())) return {Code::kNoMemory, "storing device pages"};
  const cuda::ContextScope current(pools_[0]->context());
  KV_TRY(current.status());
  const cuda::OutsideCapture outside;
  Chosen chosen;
  for (std::uint32_t next = first; next < end;) {
    choose(DevicePage::kMapped, &next, end, &chosen);
    if (chosen.batch.count > 0) KV_TRY(store_batch(chosen, bank));
  }
  return {};
}

Status DeviceRegion::store_batch(Chosen& chosen, const Bank& bank) {
  const kvmem_batch& batch = chosen.batch;
  unsigned char* to[KVMEM_BATCH_PAGES];
  std::uint64_t sums[KVMEM_BATCH_PAGES];
  for (std::size_t k = 0; k < batch.count; ++k) to[k] = bank.bytes + chosen.pages[k] * page_bytes();
  KV_TRY(cuda::carry_out(bank.carriage, batch, to, sums));
  for (std::size_t k = 0; k < batch.count; ++k) sums_[chosen.pages[k]] = sums[k];
  for (std::size_t k = 0; k < batch.count;) {
    std::size_t run = k + 1;
    while (run < batch.count && chosen.pages[run] == chosen.pages[run - 1] + 1) ++run;
    KV_TRY(unmap_run(chosen.pages[k], chosen.pages[run - 1] + 1));
    mapped_ -= static_cast<std::uint32_t>(run - k);
    stored_ += static_cast<std::uint32_t>(run - k);
    for (; k < run; ++k) pages_[chosen.pages[k]].state = DevicePage::kStored;
  }
  return {};
}

Status DeviceRegion::restore(std::uint32_t first, std::uint32_t count, const Bank& bank) {
  const std::uint32_t end = first + std::min(count, page_count() - std::min(first, page_count()));
  const cuda::ContextScope current(pools_[0]->context());
  KV_TRY(current.status());
  const cuda::OutsideCapture outside;
  Chosen chosen;
  Status result;
  for (std::uint32_t next = first; next < end;) {
    choose(DevicePage::kStored, &next, end, &chosen);
    if (chosen.batch.count == 0) break;
    const Status status = restore_batch(chosen, bank);
    if (!status.ok() && status.code() != Code::kCorrupt) return status;
    if (!status.ok()) result = status;  // the others are right
  }
  return result;
}

void DeviceRegion::drop_stored() {
  for (std::uint32_t i = 0; i < page_count(); ++i) {
    if (pages_[i].state == DevicePage::kStored) pages_[i] = {};
  }
  stored_ = 0;
}

Status DeviceRegion::restore_batch(Chosen& chosen, const Bank& bank) {
  kvmem_batch& batch = chosen.batch;
  DevicePool::Page fresh[KVMEM_BATCH_PAGES];
  auto on_device =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(batch.count, pools_[0]->available()));
  while (on_device > 0 && !pools_[0]->take(on_device, fresh).ok()) on_device /= 2;
  if (on_device < batch.count) {
    const Status taken = pools_[1] == nullptr
                             ? Status(Code::kNoMemory, "no room on the device")
                             : pools_[1]->take(batch.count - on_device, fresh + on_device);
    if (!taken.ok()) {
      pools_[0]->give_back(fresh, on_device);
      return taken;
    }
  }
  const auto place_of = [&](std::size_t k) {
    return k < on_device ? DevicePlace::kDevice : DevicePlace::kHost;
  };
  const unsigned char* from[KVMEM_BATCH_PAGES];
  std::uint64_t sums[KVMEM_BATCH_PAGES];
  for (std::size_t k = 0; k < batch.count; ++k) {
    batch.to[k] = fresh[k].home;
    from[k] = bank.bytes + chosen.pages[k] * page_bytes();
    sums[k] = sums_[chosen.pages[k]];
  }
  std::uint64_t wrong = 0;
  Status status = cuda::carry_in(bank.carriage, batch, from, sums, &wrong);
  if (!status.ok()) wrong = 0;  // not known
  for (std::size_t k = 0; k < batch.count;) {
    const bool right = status.ok() && (wrong >> k & 1) == 0;
    std::size_t run = k + 1;
    while (right && run < batch.count && chosen.pages[run] == chosen.pages[run - 1] + 1 &&
           place_of(run) == place_of(k) && (wrong >> run & 1) == 0) {
      ++run;
    }
    const auto count = static_cast<std::uint32_t>(run - k);
    if (right) status = put(chosen.pages[k], count, place_of(k), fresh + k);
    const bool is_there = right && status.ok();
    if (!is_there) pool(place_of(k)).give_back(fresh + k, count);
    for (; k < run; ++k) {
      Page& page = pages_[chosen.pages[k]];
      if (is_there) {
        page = {fresh[k], DevicePage::kMapped, place_of(k)};
        ++mapped_;
        --stored_;
      } else if ((wrong >> k & 1) != 0) {
        page = {};
        --stored_;
      }
    }
  }
  if (wrong != 0) return {Code::kCorrupt, "a stored device page has changed"};
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
