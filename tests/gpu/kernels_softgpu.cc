// kernels.cu for the software driver, which runs no GPU code: functions found by name, each called
// once for the whole grid.
#include <cstddef>

#include "pattern.h"
#include "tests/softgpu/softgpu.h"

namespace {

template <class T>
T param(void** params, std::size_t i) {
  return *static_cast<T*>(params[i]);
}
using Words = std::uint32_t*;

}  // namespace

// A kernel's name and the sizes of its parameters; its body follows.
#define GPU_KERNEL(name, count, ...)                                         \
  static void name##_body(const softgpu_launch*, void** params);             \
  extern "C" {                                                               \
  extern const softgpu_kernel name##_softgpu;                                \
  const softgpu_kernel name##_softgpu = {name##_body, count, {__VA_ARGS__}}; \
  }                                                                          \
  static void name##_body(const softgpu_launch*, [[maybe_unused]] void** params)

GPU_KERNEL(gpu_empty, 0, 0) {}

GPU_KERNEL(gpu_fill, 3, 8, 8, 4) {
  const auto words = param<Words>(params, 0);
  const auto count = param<std::uint64_t>(params, 1);
  const auto seed = param<std::uint32_t>(params, 2);
  for (std::uint64_t i = 0; i < count; ++i) words[i] = pattern(seed, i);
}

GPU_KERNEL(gpu_add, 3, 8, 8, 4) {
  const auto words = param<Words>(params, 0);
  const auto count = param<std::uint64_t>(params, 1);
  const auto value = param<std::uint32_t>(params, 2);
  for (std::uint64_t i = 0; i < count; ++i) words[i] += value;
}

GPU_KERNEL(gpu_wrong, 5, 8, 8, 4, 4, 8) {
  const auto words = param<Words>(params, 0);
  const auto count = param<std::uint64_t>(params, 1);
  const auto seed = param<std::uint32_t>(params, 2);
  const auto value = param<std::uint32_t>(params, 3);
  std::uint64_t wrong = 0;
  for (std::uint64_t i = 0; i < count; ++i) wrong += words[i] != pattern(seed, i) + value;
  *param<std::uint64_t*>(params, 4) += wrong;
}

GPU_KERNEL(gpu_hash, 3, 8, 8, 8) {
  const auto words = param<Words>(params, 0);
  const auto count = param<std::uint64_t>(params, 1);
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < count; ++i) sum += hash_term(words[i], i);
  *param<std::uint64_t*>(params, 2) += sum;
}

GPU_KERNEL(gpu_copy, 3, 8, 8, 8) {
  const auto to = param<Words>(params, 0);
  const auto from = param<Words>(params, 1);
  const auto count = param<std::uint64_t>(params, 2);
  for (std::uint64_t i = 0; i < count; ++i) to[i] = from[i];
}

GPU_KERNEL(gpu_touch, 3, 8, 8, 8) {
  const auto words = param<Words>(params, 0);
  const auto count = param<std::uint64_t>(params, 1);
  const auto stride = param<std::uint64_t>(params, 2);
  for (std::uint64_t i = 0; i < count; i += stride) words[i] = 1;
}

GPU_KERNEL(gpu_count, 5, 8, 8, 8, 8, 4) {
  auto* const counters = param<unsigned char*>(params, 0);
  const auto slots = param<std::uint64_t>(params, 1);
  const auto stride = param<std::uint64_t>(params, 2);
  const auto times = param<std::uint64_t>(params, 3);
  const bool is_wide = param<std::uint32_t>(params, 4) % 2 == 1;
  for (std::uint64_t i = 0; i < times; ++i) {
    unsigned char* const at = counters + i % slots * stride;
    if (is_wide) {
      ++*reinterpret_cast<std::uint64_t*>(at);
    } else {
      ++*reinterpret_cast<std::uint32_t*>(at);
    }
  }
}
