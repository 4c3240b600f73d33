// Staging: page-locked memory between device pages and the process's own, in two halves: while one
// is being copied by the device, the other is by the processor.
//
// One thread at a time. REQUIRES: the context is current.
#pragma once

#include <algorithm>
#include <cstddef>

#include "base/heap.h"
#include "base/status.h"
#include "cuda/handles.h"
#include "kernels/kernels.h"

namespace kvmem::cuda {

class Staging {
 public:
  // Room for at least one page of `page_bytes` in each half.
  static Result<Owned<Staging>> create(std::size_t page_bytes);
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() = default;

  // `take(k, bytes)` for each page at batch.from[k], in order; what it returns ends the copy if it
  // is an error.
  template <class Take>
  Status copy_out(const kvmem_batch& batch, Take take);
  // `give(k, bytes)` writes the page that goes to batch.to[k].
  template <class Give>
  Status copy_in(const kvmem_batch& batch, Give give);

 private:
  struct Half {
    std::byte* bytes = nullptr;
    Stream stream;
  };
  Staging(Pinned memory, Stream first, Stream second, std::size_t half_bytes);
  static Status synchronize(const Half& half);

  Pinned memory_;
  Half halves_[2];
  const std::size_t half_bytes_;
};

template <class Take>
Status Staging::copy_out(const kvmem_batch& batch, Take take) {
  const std::size_t each = half_bytes_ / batch.page_bytes;
  const std::size_t chunks = (batch.count + each - 1) / each;
  const auto start = [&](std::size_t chunk) -> Status {
    const Half& half = halves_[chunk % 2];
    for (std::size_t k = chunk * each; k < std::min(batch.count, (chunk + 1) * each); ++k) {
      KV_TRY(status_of(driver().copy_out_async(half.bytes + k % each * batch.page_bytes,
                                               batch.from[k], batch.page_bytes, half.stream.get()),
                       "cuMemcpyDtoHAsync"));
    }
    return {};
  };
  Status status = start(0);
  for (std::size_t chunk = 0; chunk < chunks && status.ok(); ++chunk) {
    if (chunk + 1 < chunks) status = start(chunk + 1);
    const Half& half = halves_[chunk % 2];
    if (status.ok()) status = synchronize(half);
    for (std::size_t k = chunk * each; k < std::min(batch.count, (chunk + 1) * each) && status.ok();
         ++k) {
      status = take(k, half.bytes + k % each * batch.page_bytes);
    }
  }
  // Also after an error: what was started writes here.
  for (const Half& half : halves_) {
    const Status done = synchronize(half);
    if (status.ok()) status = done;
  }
  return status;
}

template <class Give>
Status Staging::copy_in(const kvmem_batch& batch, Give give) {
  const std::size_t each = half_bytes_ / batch.page_bytes;
  Status status;
  for (std::size_t k = 0; k < batch.count && status.ok(); ++k) {
    const Half& half = halves_[k / each % 2];
    if (k % each == 0) status = synchronize(half);
    std::byte* bytes = half.bytes + k % each * batch.page_bytes;
    if (status.ok()) status = give(k, bytes);
    if (status.ok()) {
      status =
          status_of(driver().copy_in_async(batch.to[k], bytes, batch.page_bytes, half.stream.get()),
                    "cuMemcpyHtoDAsync");
    }
  }
  for (const Half& half : halves_) {
    const Status done = synchronize(half);
    if (status.ok()) status = done;
  }
  return status;
}

}  // namespace kvmem::cuda
