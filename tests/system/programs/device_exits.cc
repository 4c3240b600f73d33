// An engine that ends while its other threads are inside the driver: main returns, and they
// allocate, free, copy, and make graphs and pools until the process is gone.
//
// usage: device_exits MICROSECONDS     before main returns
#include <cuda.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace {

constexpr std::size_t kBytes = std::size_t{6} << 20;

std::atomic<int> started{0};

void work(CUcontext context) {
  cuCtxSetCurrent(context);
  CUmemPoolProps props{};
  props.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
  props.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
  ++started;
  for (;;) {
    CUdeviceptr memory = 0;
    if (cuMemAlloc(&memory, kBytes) == CUDA_SUCCESS) {
      cuMemsetD8Async(memory, 1, kBytes, nullptr);
      cuMemFree(memory);
    }
    CUgraph graph = nullptr;
    if (cuGraphCreate(&graph, 0) == CUDA_SUCCESS) cuGraphDestroy(graph);
    CUmemoryPool pool = nullptr;
    if (cuMemPoolCreate(&pool, &props) != CUDA_SUCCESS) continue;
    if (cuMemAllocFromPoolAsync(&memory, 4096, pool, nullptr) == CUDA_SUCCESS) {
      cuMemFreeAsync(memory, nullptr);
    }
    cuMemPoolDestroy(pool);
  }
}

}  // namespace

int main(int argc, char** argv) {
  CUcontext context = nullptr;
  if (argc != 2 || cuInit(0) != CUDA_SUCCESS ||
      cuDevicePrimaryCtxRetain(&context, 0) != CUDA_SUCCESS) {
    std::fprintf(stderr, "device_exits: no driver, or not one argument\n");
    return 1;
  }
  for (int i = 0; i < 3; ++i) std::thread(work, context).detach();
  while (started != 3) std::this_thread::yield();
  usleep(static_cast<useconds_t>(std::atoi(argv[1])));
  return 0;
}
