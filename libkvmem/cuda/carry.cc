#include "cuda/carry.h"

#include <algorithm>

namespace kvmem::cuda {
namespace {

Status carry_in_once(const Carriage& carriage, const kvmem_batch& batch,
                     const unsigned char* const* from, const std::uint64_t* sums,
                     std::uint64_t* wrong) {
  *wrong = 0;
  KV_TRY(carriage.staging->copy_in(batch, [&](std::size_t k, std::byte* bytes) -> Status {
    if (kvmem_twin_copy_page(bytes, from[k], batch.page_bytes) != sums[k]) {
      *wrong |= std::uint64_t{1} << k;
    }
    return {};
  }));
  if (carriage.kernels == nullptr) return {};
  kvmem_batch arrived = batch;
  std::copy(batch.to, batch.to + batch.count, arrived.from);
  std::uint64_t hashes[KVMEM_BATCH_PAGES];
  KV_TRY(carriage.kernels->hash(arrived, hashes));
  for (std::size_t k = 0; k < batch.count; ++k) {
    if (hashes[k] != sums[k]) *wrong |= std::uint64_t{1} << k;
  }
  return {};
}

}  // namespace

Status carry_out(const Carriage& carriage, const kvmem_batch& batch, unsigned char* const* to,
                 std::uint64_t* sums) {
  std::uint64_t hashes[KVMEM_BATCH_PAGES];
  if (carriage.kernels != nullptr) KV_TRY(carriage.kernels->hash(batch, hashes));
  return carriage.staging->copy_out(batch, [&](std::size_t k, const std::byte* bytes) -> Status {
    sums[k] = kvmem_twin_copy_page(to[k], bytes, batch.page_bytes);
    if (carriage.kernels == nullptr || sums[k] == hashes[k]) return {};
    return {Code::kCorrupt, "a device page was not copied as it is"};
  });
}

Status carry_in(const Carriage& carriage, const kvmem_batch& batch,
                const unsigned char* const* from, const std::uint64_t* sums, std::uint64_t* wrong) {
  KV_TRY(carry_in_once(carriage, batch, from, sums, wrong));
  if (*wrong == 0) return {};
  return carry_in_once(carriage, batch, from, sums, wrong);  // the link's fault?
}

}  // namespace kvmem::cuda
