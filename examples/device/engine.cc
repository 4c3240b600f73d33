// A small engine on a GPU, in the CUDA driver API alone: layers of weights that it reads once for
// each token. It knows nothing of kvmem.
//
// usage: engine [LAYERS [MIB_PER_LAYER [TOKENS]]]
//
// Prints what it holds and a number that depends on every word of every layer, in order.
#include <cuda.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

// fill(words, seed, count): words[i] = seed + i * 2654435761
// mix(state, words, count):  state[i] = state[i] * 1664525 + words[i]
const char kKernels[] = R"(
.version 7.0
.target sm_70
.address_size 64
.visible .entry fill(.param .u64 words, .param .u32 seed, .param .u32 count) {
  .reg .pred %p<2>; .reg .b32 %r<8>; .reg .b64 %d<4>;
  mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x;
  mad.lo.u32 %r4, %r1, %r2, %r3;
  ld.param.u32 %r5, [count]; setp.ge.u32 %p1, %r4, %r5; @%p1 bra done;
  ld.param.u64 %d1, [words]; mul.wide.u32 %d2, %r4, 4; add.u64 %d3, %d1, %d2;
  ld.param.u32 %r6, [seed]; mad.lo.u32 %r7, %r4, 2654435761, %r6;
  st.global.u32 [%d3], %r7;
done:
  ret;
}
.visible .entry mix(.param .u64 state, .param .u64 words, .param .u32 count) {
  .reg .pred %p<2>; .reg .b32 %r<9>; .reg .b64 %d<6>;
  mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x;
  mad.lo.u32 %r4, %r1, %r2, %r3;
  ld.param.u32 %r5, [count]; setp.ge.u32 %p1, %r4, %r5; @%p1 bra done;
  ld.param.u64 %d1, [state]; ld.param.u64 %d2, [words]; mul.wide.u32 %d3, %r4, 4;
  add.u64 %d4, %d1, %d3; add.u64 %d5, %d2, %d3;
  ld.global.u32 %r6, [%d4]; ld.global.u32 %r7, [%d5];
  mad.lo.u32 %r8, %r6, 1664525, %r7;
  st.global.u32 [%d4], %r8;
done:
  ret;
}
)";

#define CHECK(call)                                                                  \
  do {                                                                               \
    if (const CUresult status = (call); status != CUDA_SUCCESS) fail(#call, status); \
  } while (0)

[[noreturn]] void fail(const char* what, CUresult result) {
  const char* name = nullptr;
  (void)cuGetErrorName(result, &name);
  std::fprintf(stderr, "engine: %s: %s\n", what, name != nullptr ? name : "unknown error");
  std::exit(1);
}

struct Kernels {
  CUfunction fill, mix;

  void run(CUfunction f, CUdeviceptr first, std::uint64_t second, std::uint32_t count) const {
    // `second` is an address or a seed: a parameter of 8 bytes, or the first 4 of them.
    void* params[] = {&first, &second, &count};
    CHECK(cuLaunchKernel(f, (count + 255) / 256, 1, 1, 256, 1, 1, 0, nullptr, params, nullptr));
  }
};

}  // namespace

int main(int argc, char** argv) {
  const int layers = argc > 1 ? std::atoi(argv[1]) : 16;
  const std::size_t bytes = static_cast<std::size_t>(argc > 2 ? std::atoi(argv[2]) : 32) << 20;
  const int tokens = argc > 3 ? std::atoi(argv[3]) : 4;
  const auto count = static_cast<std::uint32_t>(bytes / 4);

  CUdevice device = 0;
  CUcontext context = nullptr;
  CUmodule module = nullptr;
  Kernels kernels{};
  char name[128] = "";
  CHECK(cuInit(0));
  CHECK(cuDeviceGet(&device, 0));
  CHECK(cuDeviceGetName(name, sizeof name, device));
  CHECK(cuDevicePrimaryCtxRetain(&context, device));
  CHECK(cuCtxSetCurrent(context));
  CHECK(cuModuleLoadData(&module, kKernels));
  CHECK(cuModuleGetFunction(&kernels.fill, module, "fill"));
  CHECK(cuModuleGetFunction(&kernels.mix, module, "mix"));

  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  CHECK(cuMemGetInfo(&free_bytes, &total_bytes));
  std::printf("%s has %zu MiB; %d layers of %zu MiB\n", name, total_bytes >> 20, layers,
              bytes >> 20);
  CUdeviceptr state = 0;
  CHECK(cuMemAlloc(&state, bytes));
  kernels.run(kernels.fill, state, 0, count);
  std::vector<CUdeviceptr> weights(static_cast<std::size_t>(layers));
  for (std::size_t i = 0; i < weights.size(); ++i) {
    CHECK(cuMemAlloc(&weights[i], bytes));
    kernels.run(kernels.fill, weights[i], 7 * i + 1, count);
  }
  CHECK(cuCtxSynchronize());

  const auto begin = std::chrono::steady_clock::now();
  for (int token = 0; token < tokens; ++token) {
    for (const CUdeviceptr layer : weights) kernels.run(kernels.mix, state, layer, count);
  }
  CHECK(cuCtxSynchronize());
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;

  std::uint64_t sum = 0;
  std::vector<std::uint32_t> words((1 << 20) / 4);
  for (std::size_t done = 0; done < bytes; done += 1 << 20) {
    CHECK(cuMemcpyDtoH(words.data(), state + done, 1 << 20));
    for (const std::uint32_t word : words) sum = sum * 0x9e3779b97f4a7c15 + word;
  }
  std::printf("%d tokens, %.1f a second, result %016lx\n", tokens, tokens / took.count(), sum);
  for (const CUdeviceptr layer : weights) CHECK(cuMemFree(layer));
  CHECK(cuMemFree(state));
  return 0;
}
