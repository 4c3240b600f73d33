// engine.cc's kernels for the software driver, which runs no PTX: functions found by name.
#include <cstdint>

#include "tests/softgpu/softgpu.h"

extern "C" {
extern const softgpu_kernel fill_softgpu, mix_softgpu;

static void fill_body(const softgpu_launch*, void** params) {
  auto* words = *static_cast<std::uint32_t**>(params[0]);
  const auto seed = *static_cast<std::uint32_t*>(params[1]);
  const auto count = *static_cast<std::uint32_t*>(params[2]);
  for (std::uint32_t i = 0; i < count; ++i) words[i] = seed + i * 2654435761U;
}
const softgpu_kernel fill_softgpu = {fill_body, 3, {8, 4, 4}};
static void mix_body(const softgpu_launch*, void** params) {
  auto* state = *static_cast<std::uint32_t**>(params[0]);
  const auto* words = *static_cast<const std::uint32_t**>(params[1]);
  const auto count = *static_cast<std::uint32_t*>(params[2]);
  for (std::uint32_t i = 0; i < count; ++i) state[i] = state[i] * 1664525U + words[i];
}
const softgpu_kernel mix_softgpu = {mix_body, 3, {8, 8, 4}};
}
