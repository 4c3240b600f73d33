// The page kernels of kernels/kernels.h on the software device: their twins.
#include "kernels/kernels.h"
#include "tests/softgpu/softgpu.h"

namespace {

const kvmem_batch* batch(void** params) { return static_cast<kvmem_batch*>(params[0]); }
template <class T>
T argument(void** params) {
  return *static_cast<T*>(params[1]);
}

constexpr softgpu_params kBatchAlone = {1, {sizeof(kvmem_batch)}};
constexpr softgpu_params kBatchAndWord = {2, {sizeof(kvmem_batch), 8}};

}  // namespace

extern "C" {

#define KERNEL(name, declared)                                                            \
  __attribute__((visibility("default"))) extern const softgpu_params name##_softgpu;      \
  const softgpu_params name##_softgpu = declared;                                         \
  __attribute__((visibility("default"))) void name(const softgpu_launch*, void** params); \
  void name(const softgpu_launch*, void** params)

KERNEL(kvmem_copy, kBatchAlone) { kvmem_twin_copy(batch(params)); }
KERNEL(kvmem_fill, kBatchAndWord) { kvmem_twin_fill(batch(params), argument<uint64_t>(params)); }
KERNEL(kvmem_hash, kBatchAndWord) {
  kvmem_twin_hash_add(batch(params), argument<uint64_t*>(params));
}
KERNEL(kvmem_copy_hash, kBatchAndWord) {
  kvmem_twin_copy_hash(batch(params), argument<uint64_t*>(params));
}

}  // extern "C"
