// An engine on a GPU that knows nothing of kvmem: allocates, fills, copies, adds, frees, and checks
// every byte. Comes to the driver in one of three ways.
//
// usage: device_engine MODE SEED ROUNDS [CAPACITY_MIB]
//   MODE   dlsym | resolver      (built with LINKED: linked)
//   CAPACITY_MIB                 what the driver must say the device has; else it is not looked at
//
// Where kvmem is there, a thread beside it asks for pages to be moved to and fro all the time.
//
// Exits 0 if every byte was right, nothing leaked and no call failed that may not.
#include <cuda.h>
#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kvmem.h"
#include "tests/softgpu/softgpu.h"

extern "C" {
extern const softgpu_kernel engine_fill_softgpu, engine_add_softgpu;
static void engine_fill_body(const softgpu_launch*, void** params) {
  auto* at = *static_cast<std::uint32_t**>(params[0]);
  const auto words = *static_cast<std::uint64_t*>(params[1]);
  const auto value = *static_cast<std::uint32_t*>(params[2]);
  for (std::uint64_t i = 0; i < words; ++i) at[i] = value + static_cast<std::uint32_t>(i);
}
const softgpu_kernel engine_fill_softgpu = {engine_fill_body, 3, {8, 8, 4}};
static void engine_add_body(const softgpu_launch*, void** params) {
  auto* to = *static_cast<std::uint32_t**>(params[0]);
  const auto* from = *static_cast<const std::uint32_t**>(params[1]);
  const auto words = *static_cast<std::uint64_t*>(params[2]);
  for (std::uint64_t i = 0; i < words; ++i) to[i] += from[i];
}
const softgpu_kernel engine_add_softgpu = {engine_add_body, 3, {8, 8, 8}};
}

namespace {

#define ENTRIES(X)                      \
  X(cuInit, 2000)                       \
  X(cuDeviceGet, 2000)                  \
  X(cuDevicePrimaryCtxRetain, 7000)     \
  X(cuDevicePrimaryCtxRelease, 11000)   \
  X(cuCtxSetCurrent, 4000)              \
  X(cuCtxGetCurrent, 4000)              \
  X(cuCtxSynchronize, 2000)             \
  X(cuMemAlloc, 3020)                   \
  X(cuMemAllocPitch, 3020)              \
  X(cuMemAllocAsync, 11020)             \
  X(cuMemFreeAsync, 11020)              \
  X(cuMemFree, 3020)                    \
  X(cuMemGetInfo, 3020)                 \
  X(cuMemGetAddressRange, 3020)         \
  X(cuPointerGetAttribute, 4000)        \
  X(cuModuleLoadData, 2000)             \
  X(cuModuleGetFunction, 2000)          \
  X(cuLaunchKernel, 4000)               \
  X(cuMemcpyDtoH, 3020)                 \
  X(cuMemcpyHtoD, 3020)                 \
  X(cuMemcpyDtoDAsync, 3020)            \
  X(cuMemcpy2DAsync, 3020)              \
  X(cuMemcpyBatchAsync, 13000)          \
  X(cuStreamBeginCapture, 10010)        \
  X(cuStreamEndCapture, 10000)          \
  X(cuGraphInstantiateWithFlags, 11040) \
  X(cuGraphLaunch, 10000)               \
  X(cuGraphDestroy, 10000)              \
  X(cuGraphExecDestroy, 10000)          \
  X(cuStreamCreate, 2000) X(cuStreamDestroy, 4000) X(cuStreamSynchronize, 2000)

struct Entries {
#define ENTRY(name, version) decltype(&::name) name##_call;
  ENTRIES(ENTRY)
#undef ENTRY
} cu;

#define TEXT(name) #name
#define FULL_TEXT(name) TEXT(name)

void find_entries([[maybe_unused]] const std::string& mode) {
#ifdef LINKED
#define FIND(name, version) cu.name##_call = &::name;
  ENTRIES(FIND)
#undef FIND
#else
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW);
  if (library == nullptr) std::exit(77);
  if (mode == "dlsym") {
    // The names behind the macros of cuda.h.
#define FIND(name, version) \
  cu.name##_call = reinterpret_cast<decltype(cu.name##_call)>(::dlsym(library, FULL_TEXT(name)));
    ENTRIES(FIND)
#undef FIND
  } else {
    using Resolver =
        CUresult (*)(const char*, void**, int, cuuint64_t, CUdriverProcAddressQueryResult*);
    auto* resolver = reinterpret_cast<Resolver>(::dlsym(library, "cuGetProcAddress_v2"));
    void* again = nullptr;
    CUdriverProcAddressQueryResult status{};
    // As the runtime does: the resolver itself by the resolver.
    if (resolver("cuGetProcAddress", &again, 12000, 0, &status) != CUDA_SUCCESS) std::exit(1);
    resolver = reinterpret_cast<Resolver>(again);
#define FIND(name, version)                                                              \
  if (resolver(#name, reinterpret_cast<void**>(&cu.name##_call), version, 0, &status) != \
          CUDA_SUCCESS ||                                                                \
      status != CU_GET_PROC_ADDRESS_SUCCESS) {                                           \
    std::exit(1);                                                                        \
  }
    ENTRIES(FIND)
#undef FIND
  }
#endif
}

[[noreturn]] void fail(const char* what, long value) {
  std::fprintf(stderr, "device_engine: %s: %ld\n", what, value);
  std::exit(1);
}
#define CHECK(call)                                                                  \
  do {                                                                               \
    if (const CUresult result = (call); result != CUDA_SUCCESS) fail(#call, result); \
  } while (0)

struct Block {
  CUdeviceptr at;
  std::uint64_t words;
  std::uint32_t value;
};

struct Engine {
  CUcontext context;
  CUfunction fill, add;
};

// What there is, for the meddler.
std::mutex all_mutex;
std::map<CUdeviceptr, std::size_t> all_blocks;

// In the order of a stream where one is given.
void allocate(CUdeviceptr* at, std::size_t bytes, CUstream stream = nullptr) {
  CHECK(stream != nullptr ? cu.cuMemAllocAsync_call(at, bytes, stream)
                          : cu.cuMemAlloc_call(at, bytes));
  const std::lock_guard lock(all_mutex);
  all_blocks[*at] = bytes;
}
void release(CUdeviceptr at, CUstream stream = nullptr) {
  {
    const std::lock_guard lock(all_mutex);
    all_blocks.erase(at);
  }
  CHECK(stream != nullptr ? cu.cuMemFreeAsync_call(at, stream) : cu.cuMemFree_call(at));
}

std::atomic<std::uint64_t> advised{0};

// Any part of any allocation, also one that is being freed.
void meddle(unsigned seed, const std::atomic<bool>& stop) {
  const auto advise =
      reinterpret_cast<decltype(&kvmem_advise)>(::dlsym(RTLD_DEFAULT, "kvmem_advise"));
  std::mt19937 random(seed);
  while (advise != nullptr && !stop) {
    CUdeviceptr at = 0;
    std::size_t bytes = 0;
    {
      const std::lock_guard lock(all_mutex);
      if (!all_blocks.empty()) {
        auto block = all_blocks.begin();
        std::advance(block, random() % all_blocks.size());
        const std::size_t offset = random() % block->second;
        at = block->first + offset;
        bytes = 1 + random() % (block->second - offset);
      }
    }
    if (bytes == 0) {
      std::this_thread::yield();
      continue;
    }
    const auto what = random() % 2 == 0 ? KVMEM_HOT : KVMEM_COLD;
    advised += advise(reinterpret_cast<void*>(at), bytes, what) == 0;
  }
}

void launch(CUfunction f, CUstream stream, void** params) {
  CHECK(cu.cuLaunchKernel_call(f, 1, 1, 1, 1, 1, 1, 0, stream, params, nullptr));
}

void check(const Block& block, std::uint32_t factor = 1) {
  std::vector<std::uint32_t> host(block.words);
  CHECK(cu.cuMemcpyDtoH_call(host.data(), block.at, block.words * 4));
  for (std::uint64_t i = 0; i < block.words; ++i) {
    const auto expected = factor * (block.value + static_cast<std::uint32_t>(i));
    if (host[i] != expected) fail("wrong word", static_cast<long>(i));
  }
}

// All of a block, as rows, and what is left over in two halves.
void copy_by_shape(CUstream stream, const Block& copy, const Block& block, std::size_t pitch) {
  const std::size_t bytes = block.words * 4;
  CUDA_MEMCPY2D rows{};
  rows.srcMemoryType = rows.dstMemoryType = CU_MEMORYTYPE_DEVICE;
  rows.srcDevice = block.at;
  rows.dstDevice = copy.at;
  rows.srcPitch = rows.dstPitch = rows.WidthInBytes = pitch;
  rows.Height = bytes / pitch;
  CHECK(cu.cuMemcpy2DAsync_call(&rows, stream));
  const std::size_t done = rows.Height * pitch;
  const std::size_t half = (bytes - done) / 8 * 4;
  if (half == 0) {
    if (bytes > done) {
      CHECK(cu.cuMemcpyDtoDAsync_call(copy.at + done, block.at + done, bytes - done, stream));
    }
    return;
  }
  CUdeviceptr to[] = {copy.at + done, copy.at + done + half};
  CUdeviceptr from[] = {block.at + done, block.at + done + half};
  std::size_t sizes[] = {half, bytes - done - half};
  CUmemcpyAttributes attributes{};
  attributes.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
  std::size_t first = 0;
  CHECK(cu.cuMemcpyBatchAsync_call(to, from, sizes, 2, &attributes, &first, 1, stream));
}

// The same as a graph, replayed: pages may move between two of its launches.
void double_by_graph(const Engine& engine, CUstream stream, const Block& copy, const Block& block,
                     void** sum) {
  CUgraph graph = nullptr;
  CUgraphExec executable = nullptr;
  CHECK(cu.cuStreamBeginCapture_call(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  CHECK(cu.cuMemcpyDtoDAsync_call(copy.at, block.at, block.words * 4, stream));
  launch(engine.add, stream, sum);
  CHECK(cu.cuStreamEndCapture_call(stream, &graph));
  CHECK(cu.cuGraphInstantiateWithFlags_call(&executable, graph, 0));
  CHECK(cu.cuGraphDestroy_call(graph));
  for (int i = 0; i < 3; ++i) CHECK(cu.cuGraphLaunch_call(executable, stream));
  CHECK(cu.cuStreamSynchronize_call(stream));
  CHECK(cu.cuGraphExecDestroy_call(executable));
}

void query(const Engine& engine, const Block& block, std::size_t bytes) {
  CUdeviceptr base = 0;
  std::size_t size = 0;
  unsigned type = 0;
  CUcontext context = nullptr;
  const CUdeviceptr inside = block.at + bytes / 2;
  CHECK(cu.cuMemGetAddressRange_call(&base, &size, inside));
  if (base != block.at || size != bytes) fail("range", static_cast<long>(size));
  CHECK(cu.cuPointerGetAttribute_call(&base, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, inside));
  CHECK(cu.cuPointerGetAttribute_call(&size, CU_POINTER_ATTRIBUTE_RANGE_SIZE, inside));
  if (base != block.at || size != bytes) fail("range by attribute", static_cast<long>(size));
  CHECK(cu.cuPointerGetAttribute_call(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, inside));
  if (type != CU_MEMORYTYPE_DEVICE) fail("memory type", type);
  CHECK(cu.cuPointerGetAttribute_call(&context, CU_POINTER_ATTRIBUTE_CONTEXT, inside));
  if (context != engine.context) fail("context", 0);
  // Also where it is in host memory: an engine would take that for its own.
  if (cu.cuPointerGetAttribute_call(&base, CU_POINTER_ATTRIBUTE_HOST_POINTER, inside) !=
      CUDA_ERROR_INVALID_VALUE) {
    fail("host pointer", static_cast<long>(base));
  }
}

void work(const Engine& engine, unsigned seed, int rounds) {
  CHECK(cu.cuCtxSetCurrent_call(engine.context));
  CUstream stream = nullptr;
  CHECK(cu.cuStreamCreate_call(&stream, CU_STREAM_NON_BLOCKING));
  std::mt19937 random(seed);
  std::vector<Block> blocks;
  for (int round = 0; round < rounds; ++round) {
    const std::size_t bytes =
        (random() % 4 == 0 ? 1 + random() % 4096 : 1 + random() % (4 << 20)) * 4;
    Block block{0, bytes / 4, static_cast<std::uint32_t>(random())};
    allocate(&block.at, bytes);
    query(engine, block, bytes);
    void* params[] = {&block.at, &block.words, &block.value};
    launch(engine.fill, stream, params);
    blocks.push_back(block);
    // A copy of it, added to it: twice every word.
    Block copy = block;
    const CUstream order = round % 4 == 2 ? stream : nullptr;
    allocate(&copy.at, bytes, order);
    void* sum[] = {&copy.at, &block.at, &block.words};
    if (round % 3 == 0) {
      double_by_graph(engine, stream, copy, block, sum);
    } else {
      if (round % 3 == 1) {
        copy_by_shape(stream, copy, block, (1 + random() % (1 << 19)) * 4);
      } else {
        CHECK(cu.cuMemcpyDtoDAsync_call(copy.at, block.at, bytes, stream));
      }
      launch(engine.add, stream, sum);
    }
    CHECK(cu.cuStreamSynchronize_call(stream));
    check(copy, 2);
    release(copy.at, order);
    if (order != nullptr) {
      // Once more, and what is left of it is freed behind work that has not begun.
      CHECK(cu.cuMemAllocAsync_call(&copy.at, bytes, stream));
      CHECK(cu.cuMemcpyDtoDAsync_call(copy.at, block.at, bytes, stream));
      launch(engine.add, stream, sum);
      CHECK(cu.cuMemFreeAsync_call(copy.at, stream));
    }
    if (blocks.size() > 3) {
      const std::size_t gone = random() % blocks.size();
      check(blocks[gone]);
      release(blocks[gone].at);
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(gone));
    }
  }
  for (const Block& block : blocks) {
    check(block);
    release(block.at);
  }
  CHECK(cu.cuStreamDestroy_call(stream));
}

// The device has what it is said to have: no less, and not a page more.
void capacity(std::size_t mib) {
  constexpr std::size_t kBlock = std::size_t{16} << 20;
  std::size_t free = 0;
  std::size_t total = 0;
  CHECK(cu.cuMemGetInfo_call(&free, &total));
  if (total != mib << 20) fail("total MiB", static_cast<long>(total >> 20));
  if (free != total) fail("free MiB", static_cast<long>(free >> 20));
  std::vector<CUdeviceptr> all;
  for (;;) {
    CUdeviceptr at = 0;
    const CUresult result = cu.cuMemAlloc_call(&at, kBlock);
    if (result == CUDA_ERROR_OUT_OF_MEMORY) break;
    if (result != CUDA_SUCCESS) fail("cuMemAlloc", result);
    all.push_back(at);
    CHECK(cu.cuMemGetInfo_call(&free, &total));
    if (free != total - all.size() * kBlock)
      fail("free MiB of many", static_cast<long>(free >> 20));
  }
  if (all.size() != total / kBlock) fail("blocks", static_cast<long>(all.size()));
  for (const CUdeviceptr at : all) CHECK(cu.cuMemFree_call(at));
  CHECK(cu.cuMemGetInfo_call(&free, &total));
  if (free != total) fail("free MiB after all", static_cast<long>(free >> 20));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  find_entries(argv[1]);
  Engine engine{};
  CUdevice device = 0;
  CUmodule module = nullptr;
  CHECK(cu.cuInit_call(0));
  CHECK(cu.cuDeviceGet_call(&device, 0));
  CHECK(cu.cuDevicePrimaryCtxRetain_call(&engine.context, device));
  CHECK(cu.cuCtxSetCurrent_call(engine.context));
  CHECK(cu.cuModuleLoadData_call(&module, ""));
  CHECK(cu.cuModuleGetFunction_call(&engine.fill, module, "engine_fill"));
  CHECK(cu.cuModuleGetFunction_call(&engine.add, module, "engine_add"));
  const auto seed = static_cast<unsigned>(std::atoi(argv[2]));
  std::atomic<bool> stop{false};
  std::thread meddler([seed, &stop] { meddle(seed, stop); });
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 2; ++t) {
    threads.emplace_back(
        [&engine, seed, t, argv] { work(engine, 2 * seed + t, std::atoi(argv[3])); });
  }
  for (std::thread& thread : threads) thread.join();
  stop = true;
  meddler.join();
  if (argc > 4) capacity(static_cast<std::size_t>(std::atoi(argv[4])));
  CUdeviceptr rows = 0;
  std::size_t pitch = 0;
  CHECK(cu.cuMemAllocPitch_call(&rows, &pitch, 1000, 8192, 4));
  if (pitch < 1000 || pitch % 4 != 0) fail("pitch", static_cast<long>(pitch));
  query(engine, {rows, 0, 0}, pitch * 8192);
  CHECK(cu.cuMemFree_call(rows));     // and with it what still waited to be freed
  CHECK(cu.cuCtxSynchronize_call());  // no error was left behind

  auto* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  const auto calls = reinterpret_cast<decltype(&softgpu_calls)>(::dlsym(library, "softgpu_calls"));
  const auto live = reinterpret_cast<decltype(&softgpu_live)>(::dlsym(library, "softgpu_live"));
  // Pages that wait to be used again are mapped once each, and nothing else is; soon after the last
  // was freed.
  const auto clean = [live] {
    const std::uint64_t pages = live(SOFTGPU_HANDLES);
    return live(SOFTGPU_RESERVATIONS) == pages && live(SOFTGPU_MAPPINGS) == pages;
  };
  for (int i = 0; i < 500 && !clean(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  std::printf("alloc %lu create %lu map %lu reservations %lu mappings %lu advised %lu\n",
              calls("cuMemAlloc"), calls("cuMemCreate"), calls("cuMemMap"),
              live(SOFTGPU_RESERVATIONS), live(SOFTGPU_MAPPINGS), advised.load());
  return clean() ? 0 : 1;
}
