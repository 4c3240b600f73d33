// The page kernels of kernels/kernels.h on the software device: their twins.
#include <algorithm>
#include <cstdint>

#include "kernels/kernels.h"
#include "tests/softgpu/softgpu.h"

namespace {

const kvmem_batch* batch(void** params) { return static_cast<kvmem_batch*>(params[0]); }
template <class T>
T argument(void** params) {
  return *static_cast<T*>(params[1]);
}

// One block has found all of it.
template <class Hash>
void sum_up(const softgpu_launch* launch, void** params, Hash hash) {
  const kvmem_batch* pages = batch(params);
  for (std::uint64_t i = 0; i < pages->count; ++i) {
    std::uint64_t* sums = argument<std::uint64_t*>(params) + i * launch->grid[0];
    std::fill_n(sums, launch->grid[0], 0);
    sums[0] = hash(pages->to[i], reinterpret_cast<const void*>(pages->from[i]), pages->page_bytes);
  }
}

#define PAGE_KERNEL(name, count, call)                                                            \
  static void name##_body([[maybe_unused]] const softgpu_launch* launch, void** params) { call; } \
  extern "C" __attribute__((visibility("default"))) const softgpu_kernel name##_softgpu;          \
  const softgpu_kernel name##_softgpu = {name##_body, count, {sizeof(kvmem_batch), 8}};

}  // namespace

PAGE_KERNEL(kvmem_copy, 1, kvmem_twin_copy(batch(params)))
PAGE_KERNEL(kvmem_fill, 2, kvmem_twin_fill(batch(params), argument<uint64_t>(params)))
PAGE_KERNEL(kvmem_hash, 2,
            sum_up(launch, params, [](std::uint64_t, const void* from, std::size_t n) {
              return kvmem_twin_hash(from, n);
            }))
PAGE_KERNEL(kvmem_copy_hash, 2,
            sum_up(launch, params, [](std::uint64_t to, const void* from, std::size_t n) {
              return kvmem_twin_copy_page(reinterpret_cast<void*>(to), from, n);
            }))
