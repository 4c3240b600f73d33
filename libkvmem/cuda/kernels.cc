#include "cuda/kernels.h"

#include <algorithm>
#include <numeric>

namespace kvmem::cuda {
namespace {

constexpr unsigned kThreads = 256;  // of a block: what the kernels are compiled for
constexpr std::size_t kBytesAThread = 16;
constexpr unsigned kPartsMax = 32;  // blocks a page: with 64 pages, several for each processor

}  // namespace

Result<Owned<Kernels>> Kernels::create() {
  if (kvmem_kernels_image == nullptr) {
    return Status(Code::kUnsupported, "built without a CUDA compiler");
  }
  const Driver& d = driver();
  const OutsideCapture outside;
  CUmodule module = nullptr;
  KV_TRY(status_of(d.module_load(&module, kvmem_kernels_image), "cuModuleLoadData"));
  Module loaded(module);
  CUfunction hash = nullptr;
  CUfunction copy_hash = nullptr;
  KV_TRY(status_of(d.module_function(&hash, module, "kvmem_hash"), "cuModuleGetFunction"));
  KV_TRY(
      status_of(d.module_function(&copy_hash, module, "kvmem_copy_hash"), "cuModuleGetFunction"));
  KV_ASSIGN_OR_RETURN(Stream stream, make_stream());
  KV_ASSIGN_OR_RETURN(Pinned sums,
                      make_pinned(KVMEM_BATCH_PAGES * kPartsMax * sizeof(std::uint64_t)));
  void* room = heap_room<Kernels>();
  if (room == nullptr) return Status(Code::kNoMemory, "page kernels");
  return Owned<Kernels>(
      ::new (room) Kernels(std::move(loaded), std::move(stream), std::move(sums), hash, copy_hash));
}

Kernels::Kernels(Module module, Stream stream, Pinned sums, CUfunction hash, CUfunction copy_hash)
    : module_(std::move(module)),
      stream_(std::move(stream)),
      sums_(std::move(sums)),
      hash_(hash),
      copy_hash_(copy_hash) {}

Status Kernels::hash(const kvmem_batch& batch, std::uint64_t* hashes) {
  return run(hash_, batch, hashes);
}
Status Kernels::copy_hash(const kvmem_batch& batch, std::uint64_t* hashes) {
  return run(copy_hash_, batch, hashes);
}

Status Kernels::run(CUfunction kernel, const kvmem_batch& batch, std::uint64_t* hashes) {
  const Driver& d = driver();
  const OutsideCapture outside;
  auto* sums = static_cast<std::uint64_t*>(sums_.get());
  const std::size_t parts = batch.page_bytes / (kThreads * kBytesAThread);
  const unsigned blocks = static_cast<unsigned>(std::clamp<std::size_t>(parts, 1, kPartsMax));
  void* params[] = {const_cast<kvmem_batch*>(&batch), &sums};
  const Status status = status_of(d.launch(kernel, blocks, static_cast<unsigned>(batch.count), 1,
                                           kThreads, 1, 1, 0, stream_.get(), params, nullptr),
                                  "cuLaunchKernel");
  // Also after an error: what was started still uses these pages.
  const Status done = status_of(d.stream_synchronize(stream_.get()), "cuStreamSynchronize");
  KV_TRY(status);
  KV_TRY(done);
  for (std::size_t i = 0; i < batch.count; ++i) {
    hashes[i] = std::accumulate(sums + i * blocks, sums + (i + 1) * blocks, std::uint64_t{0});
  }
  return {};
}

}  // namespace kvmem::cuda
