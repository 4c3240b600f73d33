#include "pool/device_backing.h"

#include <string.h>

#include <algorithm>
#include <utility>

namespace kvmem::pool {
namespace {

// Frames as the DevicePool knows them; at most kRunMax.
struct Pages {
  Pages(const Frame* frames, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) page[i] = {frames[i].memory, frames[i].home};
  }
  DevicePool::Page page[kRunMax];
};

}  // namespace

Status DeviceBacking::synchronize(CUcontext context) {
  const cuda::ContextScope current(context);
  KV_TRY(current.status());
  const cuda::OutsideCapture outside;
  return cuda::status_of(cuda::driver().context_synchronize(), "cuCtxSynchronize");
}

Result<Owned<DeviceBacking>> DeviceBacking::create(cuda::PrimaryContext context,
                                                   Owned<DevicePool> frames, std::uint64_t pages,
                                                   const Hooks& hooks, const char* tag) {
  const cuda::ContextScope current(frames->context());
  if (!current.status().ok()) return current.status();
  const cuda::OutsideCapture outside;
  CUdeviceptr at = 0;
  const std::size_t size_bytes = pages * frames->page_bytes();
  KV_TRY(cuda::status_of(cuda::driver().address_reserve(&at, size_bytes, 0, 0, 0),
                         "cuMemAddressReserve"));
  cuda::Reservation addresses({at, size_bytes});
  void* room = heap_room<DeviceBacking>();
  if (room == nullptr) return Status(Code::kNoMemory, "a KV pool");
  return Owned<DeviceBacking>(::new (room) DeviceBacking(std::move(context), std::move(frames),
                                                         std::move(addresses), hooks, tag));
}

DeviceBacking::DeviceBacking(cuda::PrimaryContext context, Owned<DevicePool> frames,
                             cuda::Reservation addresses, const Hooks& hooks, const char* tag)
    : context_(std::move(context)),
      frames_(std::move(frames)),
      addresses_(std::move(addresses)),
      hooks_(hooks) {
  strncpy(tag_, tag, sizeof tag_ - 1);
}

DeviceBacking::~DeviceBacking() {
  const cuda::ContextScope current(frames_->context());
  const cuda::OutsideCapture outside;
  const LockGuard guard(carrying_);
  staging_.reset();
  kernels_.reset();
  addresses_.reset();
}

Status DeviceBacking::take(std::uint64_t /*page*/, std::size_t count, Frame* out) {
  DevicePool::Page pages[kRunMax];
  if (count > kRunMax) return {Code::kInvalid, "frames of a KV pool"};
  KV_TRY(frames_->take(count, pages));
  for (std::size_t i = 0; i < count; ++i) out[i] = {pages[i].handle, pages[i].home};
  return {};
}

void DeviceBacking::give_back(const Frame* frames, std::size_t count) {
  for (std::size_t i = 0; i < count; i += kRunMax) {
    const std::size_t run = std::min(count - i, kRunMax);
    frames_->give_back(Pages(frames + i, run).page, run);
  }
}

Status DeviceBacking::map(std::uint64_t page, const Frame* frames, std::size_t count) {
  const cuda::ContextScope current(frames_->context());
  KV_TRY(current.status());
  const cuda::OutsideCapture outside;
  return frames_->map(at(page), Pages(frames, count).page, count);
}

Status DeviceBacking::unmap(std::uint64_t page, std::size_t count) {
  const cuda::ContextScope current(frames_->context());
  KV_TRY(current.status());
  const cuda::OutsideCapture outside;
  return cuda::status_of(cuda::driver().unmap(at(page), count * page_bytes()), "cuMemUnmap");
}

Status DeviceBacking::copy(std::uint64_t from, std::uint64_t to, std::size_t size_bytes,
                           void* stream) {
  const cuda::ContextScope current(frames_->context());
  KV_TRY(current.status());
  return cuda::status_of(
      cuda::driver().copy_async(at(to), at(from), size_bytes, static_cast<CUstream>(stream)),
      "cuMemcpyDtoDAsync");
}

Status DeviceBacking::replace(std::uint64_t page, const Frame& before, const Frame& copy) {
  constexpr int kTries = 3;
  {
    const cuda::ContextScope current(frames_->context());
    KV_TRY(current.status());
    const cuda::OutsideCapture outside;
    KV_ASSIGN_OR_RETURN(const cuda::Stream stream, cuda::make_stream());
    const cuda::Driver& driver = cuda::driver();
    const Status started = cuda::status_of(
        driver.copy_async(copy.home, before.home, page_bytes(), stream.get()), "cuMemcpyDtoDAsync");
    const Status done =
        cuda::status_of(driver.stream_synchronize(stream.get()), "cuStreamSynchronize");
    KV_TRY(started);
    KV_TRY(done);
  }
  KV_TRY(unmap(page, 1));
  const Status mapped = map(page, &copy, 1);
  if (mapped.ok()) return {};
  Status back;
  for (int n = 0; n < kTries && !(back = map(page, &before, 1)).ok(); ++n) {
  }
  return back.ok() ? mapped
                   : Status(Code::kCorrupt, "a page could be mapped neither here nor there");
}

Result<cuda::Carriage> DeviceBacking::carriage() {
  if (staging_ == nullptr) {
    KV_ASSIGN_OR_RETURN(staging_, cuda::Staging::create(page_bytes()));
  }
  if (kernels_ == nullptr && !no_kernels_) {
    auto kernels = cuda::Kernels::create();
    no_kernels_ = !kernels.ok();
    if (kernels.ok()) kernels_ = *std::move(kernels);
  }
  return cuda::Carriage{staging_.get(), kernels_.get()};
}

Status DeviceBacking::store(const Frame* frames, std::size_t count, Parcel* out) {
  const cuda::ContextScope current(frames_->context());
  KV_TRY(current.status());
  const cuda::OutsideCapture outside;
  const LockGuard guard(carrying_);
  KV_ASSIGN_OR_RETURN(const cuda::Carriage carriage, this->carriage());
  if (!out->sums.resize(count)) return {Code::kNoMemory, "parking a sequence"};
  out->size_bytes = count * page_bytes();
  out->bytes = hooks_.make_bank(out->size_bytes, tag_);
  if (out->bytes == nullptr) return {Code::kNoMemory, "no memory to keep what is parked"};
  kvmem_batch batch;
  batch.page_bytes = page_bytes();
  unsigned char* to[KVMEM_BATCH_PAGES];
  Status status;
  for (std::size_t k = 0; k < count && status.ok(); k += batch.count) {
    batch.count = std::min<std::size_t>(count - k, KVMEM_BATCH_PAGES);
    for (std::size_t i = 0; i < batch.count; ++i) {
      batch.from[i] = frames[k + i].home;
      to[i] = out->bytes + (k + i) * page_bytes();
    }
    status = cuda::carry_out(carriage, batch, to, &out->sums[k]);
  }
  if (!status.ok()) drop(*out);
  return status;
}

Status DeviceBacking::restore(const Parcel& parcel, std::size_t first, const Frame* frames,
                              std::size_t count) {
  const cuda::ContextScope current(frames_->context());
  KV_TRY(current.status());
  const cuda::OutsideCapture outside;
  const LockGuard guard(carrying_);
  KV_ASSIGN_OR_RETURN(const cuda::Carriage carriage, this->carriage());
  kvmem_batch batch;
  batch.page_bytes = page_bytes();
  const unsigned char* from[KVMEM_BATCH_PAGES];
  for (std::size_t k = 0; k < count; k += batch.count) {
    batch.count = std::min<std::size_t>(count - k, KVMEM_BATCH_PAGES);
    for (std::size_t i = 0; i < batch.count; ++i) {
      batch.to[i] = frames[k + i].home;
      from[i] = parcel.bytes + (first + k + i) * page_bytes();
    }
    std::uint64_t wrong = 0;
    KV_TRY(cuda::carry_in(carriage, batch, from, &parcel.sums[first + k], &wrong));
    if (wrong != 0) return {Code::kCorrupt, "what a parked sequence held has changed"};
  }
  return {};
}

void DeviceBacking::drop(Parcel& parcel) {
  if (parcel.bytes != nullptr) hooks_.give_up_bank(parcel.bytes, parcel.size_bytes);
  parcel.bytes = nullptr;
}

}  // namespace kvmem::pool
