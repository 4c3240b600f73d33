// 7: what an empty launch takes its caller; report.py runs it with and without libkvmem.
#include <dlfcn.h>

#include "gpu.h"

namespace gpu {

void fact_launch(const Options& options) {
  constexpr int kCalls = 100;  // fewer than a stream takes before it makes its caller wait
  const Device device;
  const bool preloaded = ::dlsym(RTLD_DEFAULT, "kvmem_version") != nullptr;
  CUstream stream = nullptr;
  CU(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  const auto batch = [&] {
    const double begin = now_ns();
    for (int i = 0; i < kCalls; ++i) device.empty(stream);
    const double took = (now_ns() - begin) / kCalls;
    CU(cuStreamSynchronize(stream));
    return took;
  };
  for (int i = 0; i < 10; ++i) (void)batch();  // not counted
  std::vector<double> times;
  for (int i = 0; i < (options.quick ? 20 : 1000); ++i) times.push_back(batch());
  figure("cuLaunchKernel, nothing to do", preloaded ? "with libkvmem" : "without", "ns", times);
}

}  // namespace gpu
