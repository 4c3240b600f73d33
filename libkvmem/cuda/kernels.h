// Kernels: the page kernels of kernels/kernels.h, loaded into one context, on a stream of their
// own. A call returns when its work is done.
//
// One thread at a time. REQUIRES: the context is current.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/heap.h"
#include "base/status.h"
#include "cuda/handles.h"
#include "kernels/kernels.h"

namespace kvmem::cuda {

struct ModuleTraits {
  using Value = CUmodule;
  static constexpr Value kNone = nullptr;
  static void close(CUmodule module) noexcept { (void)driver().module_unload(module); }
};
using Module = UniqueHandle<ModuleTraits>;

class Kernels {
 public:
  // kUnsupported: built without a compiler, or for no such device.
  static Result<Owned<Kernels>> create();
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;
  ~Kernels() = default;

  // The hash of each page at from[i], into hashes[0, batch.count).
  Status hash(const kvmem_batch& batch, std::uint64_t* hashes);
  // The page at from[i] to to[i], and the hash of what went there.
  Status copy_hash(const kvmem_batch& batch, std::uint64_t* hashes);

 private:
  Kernels(Module module, Stream stream, Pinned sums, CUfunction hash, CUfunction copy_hash);
  Status run(CUfunction kernel, const kvmem_batch& batch, std::uint64_t* hashes);

  Module module_;
  Stream stream_;
  Pinned sums_;  // a word for each block of a launch
  const CUfunction hash_;
  const CUfunction copy_hash_;
};

}  // namespace kvmem::cuda
