// An engine of the CUDA runtime that knows nothing of kvmem: allocates in each of the ways there
// are, fills, copies, adds, frees, and checks every byte, on several threads and streams.
//
// usage: runtime_engine SEED ROUNDS [CAPACITY_MIB]
//   CAPACITY_MIB   what the runtime must say the device has; else it is not looked at
//
// Where kvmem is there, a thread beside it asks for pages to be moved to and fro all the time.
//
// Exits 0 if every byte was right, nothing leaked and no call failed that may not; 77: no device.
#include <cuda.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "kvmem.h"
#include "tests/softgpu/softgpu.h"

using Word = std::uint32_t;

// The kernels, each for a GPU and for the software driver. One has a C name and one a C++ name.

__host__ __device__ void fill_one(Word* to, std::uint64_t i, Word value) {
  to[i] = value + static_cast<Word>(i);
}
__host__ __device__ void add_one(Word* to, const Word* from, std::uint64_t i) { to[i] += from[i]; }

extern "C" __global__ void runtime_fill(Word* to, std::uint64_t words, Word value) {
  const std::uint64_t step = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += step) {
    fill_one(to, i, value);
  }
}
__global__ void runtime_add(Word* to, const Word* from, std::uint64_t words) {
  const std::uint64_t step = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += step) {
    add_one(to, from, i);
  }
}

extern "C" {
static void fill_body(const softgpu_launch*, void** params) {
  auto* to = *static_cast<Word**>(params[0]);
  const auto words = *static_cast<std::uint64_t*>(params[1]);
  const auto value = *static_cast<Word*>(params[2]);
  for (std::uint64_t i = 0; i < words; ++i) fill_one(to, i, value);
}
static void add_body(const softgpu_launch*, void** params) {
  auto* to = *static_cast<Word**>(params[0]);
  const auto* from = *static_cast<const Word**>(params[1]);
  const auto words = *static_cast<std::uint64_t*>(params[2]);
  for (std::uint64_t i = 0; i < words; ++i) add_one(to, from, i);
}
extern const softgpu_kernel runtime_fill_softgpu, _Z11runtime_addPjPKjm_softgpu;
const softgpu_kernel runtime_fill_softgpu = {fill_body, 3, {8, 8, 4}};
const softgpu_kernel _Z11runtime_addPjPKjm_softgpu = {add_body, 3, {8, 8, 8}};
}

namespace {

[[noreturn]] void fail(const char* what, long value) {
  std::fprintf(stderr, "runtime_engine: %s: %ld\n", what, value);
  std::exit(1);
}
#define CHECK(call)                                                   \
  do {                                                                \
    if (const auto result = (call); result != 0) fail(#call, result); \
  } while (0)

void fill(Word* to, std::uint64_t words, Word value, cudaStream_t stream) {
  runtime_fill<<<64, 256, 0, stream>>>(to, words, value);
  CHECK(cudaGetLastError());
}
void add(Word* to, const Word* from, std::uint64_t words, cudaStream_t stream) {
  runtime_add<<<64, 256, 0, stream>>>(to, from, words);
  CHECK(cudaGetLastError());
}

// What cudaMalloc gave, for the meddler.
std::mutex all_mutex;
std::map<Word*, std::size_t> all_blocks;
std::atomic<std::uint64_t> advised{0};

// Any part of any allocation, also one that is being freed.
void meddle(unsigned seed, const std::atomic<bool>& stop) {
  const auto advise =
      reinterpret_cast<decltype(&kvmem_advise)>(::dlsym(RTLD_DEFAULT, "kvmem_advise"));
  std::mt19937 random(seed);
  while (advise != nullptr && !stop) {
    char* at = nullptr;
    std::size_t bytes = 0;
    {
      const std::lock_guard lock(all_mutex);
      if (!all_blocks.empty()) {
        auto block = all_blocks.begin();
        std::advance(block, random() % all_blocks.size());
        const std::size_t offset = random() % block->second;
        at = reinterpret_cast<char*>(block->first) + offset;
        bytes = 1 + random() % (block->second - offset);
      }
    }
    if (bytes == 0) {
      std::this_thread::yield();
      continue;
    }
    advised += advise(at, bytes, random() % 2 == 0 ? KVMEM_HOT : KVMEM_COLD) == 0;
  }
}

Word* allocate(std::size_t bytes) {
  Word* at = nullptr;
  CHECK(cudaMalloc(&at, bytes));
  const std::lock_guard lock(all_mutex);
  all_blocks[at] = bytes;
  return at;
}
void release(Word* at) {
  {
    const std::lock_guard lock(all_mutex);
    all_blocks.erase(at);
  }
  CHECK(cudaFree(at));
}

// By the driver's virtual memory calls, which the runtime has not: a segment that grows as
// PyTorch's do.
class Segment {
 public:
  Segment() {
    CUmemAllocationProp prop{};
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
    CHECK(cu().granularity(&page_, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    CHECK(cu().reserve(&at_, kPages * page_, 0, 0, 0));
  }
  ~Segment() {
    if (!handles_.empty()) CHECK(cu().unmap(at_, handles_.size() * page_));
    for (const CUmemGenericAllocationHandle handle : handles_) CHECK(cu().release(handle));
    CHECK(cu().free(at_, kPages * page_));
  }
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  bool is_full() const { return handles_.size() == kPages; }
  Word* at() const { return reinterpret_cast<Word*>(at_); }
  std::uint64_t words() const { return handles_.size() * page_ / sizeof(Word); }
  void grow() {
    CUmemAllocationProp prop{};
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
    CUmemAccessDesc access{prop.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle handle = 0;
    CHECK(cu().create(&handle, page_, &prop, 0));
    const CUdeviceptr end = at_ + handles_.size() * page_;
    CHECK(cu().map(end, page_, 0, handle, 0));
    CHECK(cu().access(end, page_, &access, 1));
    handles_.push_back(handle);
  }

 private:
  static constexpr std::size_t kPages = 4;
  struct Calls {
    decltype(&cuMemGetAllocationGranularity) granularity;
    decltype(&cuMemAddressReserve) reserve;
    decltype(&cuMemAddressFree) free;
    decltype(&cuMemCreate) create;
    decltype(&cuMemRelease) release;
    decltype(&cuMemMap) map;
    decltype(&cuMemUnmap) unmap;
    decltype(&cuMemSetAccess) access;
  };
  template <class Call>
  static void find(const char* name, Call* out) {
    cudaDriverEntryPointQueryResult status{};
    CHECK(cudaGetDriverEntryPointByVersion(name, reinterpret_cast<void**>(out), 12000,
                                           cudaEnableDefault, &status));
    if (status != cudaDriverEntryPointSuccess) fail(name, status);
  }
  static const Calls& cu() {
    static const Calls calls = [] {
      Calls c{};
      find("cuMemGetAllocationGranularity", &c.granularity);
      find("cuMemAddressReserve", &c.reserve);
      find("cuMemAddressFree", &c.free);
      find("cuMemCreate", &c.create);
      find("cuMemRelease", &c.release);
      find("cuMemMap", &c.map);
      find("cuMemUnmap", &c.unmap);
      find("cuMemSetAccess", &c.access);
      return c;
    }();
    return calls;
  }

  std::size_t page_ = 0;
  CUdeviceptr at_ = 0;
  std::vector<CUmemGenericAllocationHandle> handles_;
};

struct Block {
  Word* at;
  std::uint64_t words;
  Word value;
  std::size_t bytes() const { return words * sizeof(Word); }
};

void check(const Block& block, Word factor = 1) {
  std::vector<Word> host(block.words);
  CHECK(cudaMemcpy(host.data(), block.at, block.bytes(), cudaMemcpyDeviceToHost));
  for (std::uint64_t i = 0; i < block.words; ++i) {
    const Word expected = factor * (block.value + static_cast<Word>(i));
    if (host[i] != expected) fail("wrong word", static_cast<long>(i));
  }
}

void query(const Block& block) {
  cudaPointerAttributes attributes{};
  CHECK(cudaPointerGetAttributes(&attributes, block.at + block.words / 2));
  if (attributes.type != cudaMemoryTypeDevice) fail("memory type", attributes.type);
  if (attributes.device != 0) fail("device", attributes.device);
  if (attributes.devicePointer != block.at + block.words / 2) fail("device pointer", 0);
  if (attributes.hostPointer != nullptr) fail("host pointer", 0);
}

// One of the streams a thread works on; others order themselves after it by events.
struct Streams {
  cudaStream_t first = nullptr, second = nullptr;
  cudaEvent_t event = nullptr;
  Streams() {
    CHECK(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
    CHECK(cudaStreamCreate(&second));
    CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  }
  ~Streams() {
    CHECK(cudaStreamDestroy(first));
    CHECK(cudaStreamDestroy(second));
    CHECK(cudaEventDestroy(event));
  }
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;
  void second_after_first() const {
    CHECK(cudaEventRecord(event, first));
    CHECK(cudaStreamWaitEvent(second, event, 0));
  }
};

// Twice the block in memory of its own, in one of several ways; pages may move all the time.

void double_by_graph(const Streams& s, const Block& copy, const Block& block) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  CHECK(cudaStreamBeginCapture(s.first, cudaStreamCaptureModeThreadLocal));
  CHECK(cudaMemcpyAsync(copy.at, block.at, block.bytes(), cudaMemcpyDeviceToDevice, s.first));
  add(copy.at, block.at, block.words, s.first);
  CHECK(cudaStreamEndCapture(s.first, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  CHECK(cudaGraphDestroy(graph));
  for (int i = 0; i < 3; ++i) {
    CHECK(cudaGraphLaunch(executable, s.first));
    CHECK(cudaStreamSynchronize(s.first));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // for pages to move
  }
  CHECK(cudaGraphExecDestroy(executable));
}

void double_on_two_streams(const Streams& s, const Block& copy, const Block& block) {
  CHECK(cudaMemsetAsync(copy.at, 0, copy.bytes(), s.first));
  add(copy.at, block.at, block.words, s.first);
  s.second_after_first();
  add(copy.at, block.at, block.words, s.second);
  CHECK(cudaStreamSynchronize(s.second));
}

// Stream 0: the legacy one, or the thread's own.
void double_on_default(const Block& copy, const Block& block) {
  CHECK(cudaMemset(copy.at, 0, copy.bytes()));
  add(copy.at, block.at, block.words, nullptr);
  add(copy.at, block.at, block.words, nullptr);
}

// By way of memory of the host's.
void double_from_host(const Streams& s, const Block& copy, const Block& block) {
  Word* host = nullptr;
  CHECK(cudaMallocHost(&host, block.bytes()));
  CHECK(cudaMemcpyAsync(host, block.at, block.bytes(), cudaMemcpyDefault, s.first));
  CHECK(cudaMemcpyAsync(copy.at, host, block.bytes(), cudaMemcpyDefault, s.first));
  add(copy.at, block.at, block.words, s.first);
  CHECK(cudaStreamSynchronize(s.first));
  CHECK(cudaFreeHost(host));
}

// In the order of a stream, from the device's pool or another; what is allocated again is freed
// behind work that has not begun.
void double_in_order(const Streams& s, cudaMemPool_t pool, const Block& block) {
  Block copy = block;
  for (int i = 0; i < 2; ++i) {
    CHECK(pool != nullptr ? cudaMallocFromPoolAsync(&copy.at, block.bytes(), pool, s.first)
                          : cudaMallocAsync(&copy.at, block.bytes(), s.first));
    CHECK(cudaMemcpyAsync(copy.at, block.at, block.bytes(), cudaMemcpyDeviceToDevice, s.first));
    add(copy.at, block.at, block.words, s.first);
    if (i == 0) {
      CHECK(cudaStreamSynchronize(s.first));
      check(copy, 2);
    }
    CHECK(cudaFreeAsync(copy.at, s.first));
  }
}

// In memory of a graph's own.
void double_in_graph(const Streams& s, const Block& copy, const Block& block) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  Word* inner = nullptr;
  CHECK(cudaStreamBeginCapture(s.first, cudaStreamCaptureModeThreadLocal));
  CHECK(cudaMallocAsync(&inner, block.bytes(), s.first));
  CHECK(cudaMemcpyAsync(inner, block.at, block.bytes(), cudaMemcpyDeviceToDevice, s.first));
  add(inner, block.at, block.words, s.first);
  CHECK(cudaMemcpyAsync(copy.at, inner, block.bytes(), cudaMemcpyDeviceToDevice, s.first));
  CHECK(cudaFreeAsync(inner, s.first));
  CHECK(cudaStreamEndCapture(s.first, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  CHECK(cudaGraphDestroy(graph));
  for (int i = 0; i < 2; ++i) CHECK(cudaGraphLaunch(executable, s.first));
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaStreamSynchronize(s.first));
}

void work(unsigned seed, int rounds, cudaMemPool_t pool) {
  CHECK(cudaSetDevice(0));
  const Streams s;
  Segment segment;
  std::mt19937 random(seed);
  std::vector<Block> blocks;
  for (int round = 0; round < rounds; ++round) {
    const std::uint64_t words = 1 + random() % (random() % 4 == 0 ? 4096 : 4 << 20);
    const Block block{allocate(words * sizeof(Word)), words, static_cast<Word>(random())};
    query(block);
    fill(block.at, block.words, block.value, s.first);
    CHECK(cudaStreamSynchronize(s.first));
    blocks.push_back(block);
    Block copy = block;
    const int way = round % 7;
    if (way < 5) {
      copy.at = allocate(block.bytes());
      if (way == 0) double_by_graph(s, copy, block);
      if (way == 1) double_on_two_streams(s, copy, block);
      if (way == 2) double_on_default(copy, block);
      if (way == 3) double_from_host(s, copy, block);
      if (way == 4) double_in_graph(s, copy, block);
      check(copy, 2);
      release(copy.at);
    } else {
      double_in_order(s, way == 5 ? pool : nullptr, block);
    }
    if (!segment.is_full()) segment.grow();
    const Block grown{segment.at(), segment.words(), static_cast<Word>(round)};
    fill(grown.at, grown.words, grown.value, s.second);
    CHECK(cudaStreamSynchronize(s.second));
    check(grown);
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
  CHECK(cudaStreamSynchronize(s.first));
}

// The device has what it is said to have: no less, and not a page more.
void capacity(std::size_t mib) {
  constexpr std::size_t kBlock = std::size_t{16} << 20;
  std::size_t free = 0;
  std::size_t total = 0;
  CHECK(cudaMemGetInfo(&free, &total));
  if (total != mib << 20) fail("total MiB", static_cast<long>(total >> 20));
  if (free != total) fail("free MiB", static_cast<long>(free >> 20));
  std::vector<void*> all;
  for (;;) {
    void* at = nullptr;
    const cudaError_t allocated = cudaMalloc(&at, kBlock);
    if (allocated == cudaErrorMemoryAllocation) break;
    CHECK(allocated);
    all.push_back(at);
    CHECK(cudaMemGetInfo(&free, &total));
    if (free != total - all.size() * kBlock) {
      fail("free MiB of many", static_cast<long>(free >> 20));
    }
  }
  (void)cudaGetLastError();  // out of memory was expected
  if (all.size() != total / kBlock) fail("blocks", static_cast<long>(all.size()));
  for (void* at : all) CHECK(cudaFree(at));
  CHECK(cudaMemGetInfo(&free, &total));
  if (free != total) fail("free MiB after all", static_cast<long>(free >> 20));
}

// What was freed is there for all who ask, however they do: first for as much as half of the
// device.
void allocate_otherwise(std::size_t mib) {
  cudaStream_t stream = nullptr;
  cudaMemPool_t pool = nullptr;
  Word* at = nullptr;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaDeviceGetDefaultMemPool(&pool, 0));
  CHECK(cudaMallocFromPoolAsync(&at, mib << 19, pool, stream));
  fill(at, 1, 0, stream);
  CHECK(cudaFreeAsync(at, stream));
  CHECK(cudaStreamSynchronize(stream));
  CHECK(cudaMemPoolTrimTo(pool, 0));
  CHECK(cudaStreamDestroy(stream));
  capacity(mib);  // and again for cudaMalloc
  Segment segment;
  while (!segment.is_full()) segment.grow();
}

// What is alive on the software driver, soon after the last was freed: pages that kvmem keeps to
// use again are mapped once each, and nothing else is there. True on a real one.
bool is_clean() {
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  const auto calls = reinterpret_cast<decltype(&softgpu_calls)>(::dlsym(library, "softgpu_calls"));
  const auto live = reinterpret_cast<decltype(&softgpu_live)>(::dlsym(library, "softgpu_live"));
  if (live == nullptr) return true;
  const bool is_preloaded = ::dlsym(RTLD_DEFAULT, "kvmem_advise") != nullptr;
  const auto clean = [&] {
    const std::uint64_t pages = live(SOFTGPU_HANDLES);
    return live(SOFTGPU_RESERVATIONS) == pages && live(SOFTGPU_MAPPINGS) == pages &&
           (pages == 0 || is_preloaded) && live(SOFTGPU_EVENTS) == 0 && live(SOFTGPU_GRAPHS) == 0;
  };
  for (int i = 0; i < 500 && !clean(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  std::printf(
      "alloc %lu create %lu map %lu handles %lu reservations %lu mappings %lu streams %lu "
      "events %lu graphs %lu advised %lu\n",
      calls("cuMemAlloc"), calls("cuMemCreate"), calls("cuMemMap"), live(SOFTGPU_HANDLES),
      live(SOFTGPU_RESERVATIONS), live(SOFTGPU_MAPPINGS), live(SOFTGPU_STREAMS),
      live(SOFTGPU_EVENTS), live(SOFTGPU_GRAPHS), advised.load());
  return clean();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  int devices = 0;
  if (const cudaError_t result = cudaGetDeviceCount(&devices); result != cudaSuccess) {
    std::fprintf(stderr, "runtime_engine: %s\n", cudaGetErrorString(result));
    return 77;
  }
  const auto seed = static_cast<unsigned>(std::atoi(argv[1]));
  const int rounds = std::atoi(argv[2]);
  cudaMemPoolProps props{};
  props.allocType = cudaMemAllocationTypePinned;
  props.location = {cudaMemLocationTypeDevice, 0};
  cudaMemPool_t pool = nullptr;
  CHECK(cudaMemPoolCreate(&pool, &props));
  std::uint64_t keep = UINT64_MAX;
  CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
  std::atomic<bool> stop{false};
  std::thread meddler([seed, &stop] { meddle(seed, stop); });
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 2; ++t) {
    threads.emplace_back([=] { work(2 * seed + t, rounds, pool); });
  }
  for (std::thread& thread : threads) thread.join();
  stop = true;
  meddler.join();
  CHECK(cudaDeviceSynchronize());
  CHECK(cudaMemPoolDestroy(pool));
  if (argc > 3) {
    const auto mib = static_cast<std::size_t>(std::atoi(argv[3]));
    capacity(mib);
    allocate_otherwise(mib);
  }
  CHECK(cudaDeviceSynchronize());  // no error was left behind
  return is_clean() ? 0 : 1;
}
