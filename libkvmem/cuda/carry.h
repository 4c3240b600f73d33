// Carrying pages between the device and the process's memory, so that what arrives is known to be
// what left: each page is hashed where it is copied, and on the device, where that has kernels.
//
// One thread at a time. REQUIRES: the context is current.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "cuda/kernels.h"
#include "cuda/staging.h"
#include "kernels/kernels.h"

namespace kvmem::cuda {

struct Carriage {
  Staging* staging = nullptr;
  Kernels* kernels = nullptr;  // null: the processor alone checks
};

// Each page at batch.from[k] to to[k], and its hash to sums[k]. kCorrupt: one was not copied as it
// is.
Status carry_out(const Carriage& carriage, const kvmem_batch& batch, unsigned char* const* to,
                 std::uint64_t* sums);
// from[k] to batch.to[k]. A bit of `*wrong` for each that is not what sums[k] says, twice over.
Status carry_in(const Carriage& carriage, const kvmem_batch& batch,
                const unsigned char* const* from, const std::uint64_t* sums, std::uint64_t* wrong);

}  // namespace kvmem::cuda
