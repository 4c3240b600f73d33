#include "cuda/staging.h"

namespace kvmem::cuda {

Result<Owned<Staging>> Staging::create(std::size_t page_bytes) {
  // Enough for a copy to run at the speed of the link, little enough to be no burden.
  constexpr std::size_t kHalfBytes = std::size_t{8} << 20;
  const std::size_t half_bytes = std::max(kHalfBytes / page_bytes, std::size_t{1}) * page_bytes;
  const OutsideCapture outside;
  KV_ASSIGN_OR_RETURN(Pinned pinned, make_pinned(2 * half_bytes));
  KV_ASSIGN_OR_RETURN(Stream first, make_stream());
  KV_ASSIGN_OR_RETURN(Stream second, make_stream());
  void* room = heap_room<Staging>();
  if (room == nullptr) return Status(Code::kNoMemory, "staging memory");
  return Owned<Staging>(
      ::new (room) Staging(std::move(pinned), std::move(first), std::move(second), half_bytes));
}

Staging::Staging(Pinned memory, Stream first, Stream second, std::size_t half_bytes)
    : memory_(std::move(memory)),
      halves_{{static_cast<std::byte*>(memory_.get()), std::move(first)},
              {static_cast<std::byte*>(memory_.get()) + half_bytes, std::move(second)}},
      half_bytes_(half_bytes) {}

Status Staging::synchronize(const Half& half) {
  return status_of(driver().stream_synchronize(half.stream.get()), "cuStreamSynchronize");
}

}  // namespace kvmem::cuda
