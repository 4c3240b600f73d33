// An engine that gives others memory of its GPU, under kvmem with 32 MiB of the device's memory and
// more in host memory: what is given is the device's, stays so, and is nobody else's afterwards.
//
// usage: device_gives | device_gives ipc | device_gives parked
//   ipc     asks for one legacy IPC handle, prints "handle" or "none", and does nothing else
//   parked  does nothing for long enough to be parked, with KVMEM_PARK_AFTER
//
// Exits 0 if all was as it should be.
#include <cuda.h>
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels/kernels.h"
#include "kvmem.h"
#include "tests/softgpu/softgpu.h"

// In place of the software device's own: a copy ahead that can be held up, for five seconds at
// most.
namespace {
std::atomic<bool> copies_begun{false};
std::atomic<bool> copies_go_on{true};
void copy_hash_body(const softgpu_launch* launch, void** params) {
  const auto* batch = static_cast<const kvmem_batch*>(params[0]);
  auto* sums = *static_cast<std::uint64_t**>(params[1]);
  copies_begun = true;
  for (int i = 0; i < 5000 && !copies_go_on; ++i) usleep(1000);
  for (std::uint64_t i = 0; i < batch->count; ++i) {
    std::fill_n(sums + i * launch->grid[0], launch->grid[0], 0);
    sums[i * launch->grid[0]] =
        kvmem_twin_copy_page(reinterpret_cast<void*>(batch->to[i]),
                             reinterpret_cast<const void*>(batch->from[i]), batch->page_bytes);
  }
}
}  // namespace
extern "C" {
extern const softgpu_kernel kvmem_copy_hash_softgpu;
const softgpu_kernel kvmem_copy_hash_softgpu = {copy_hash_body, 2, {sizeof(kvmem_batch), 8}};
}

namespace {

constexpr std::size_t kPage = std::size_t{2} << 20;
constexpr std::size_t kBytes = 4 * kPage;
decltype(&kvmem_advise) advise;

[[noreturn]] void fail(int line, const char* what, long value) {
  std::fprintf(stderr, "device_gives: %d: %s: %ld\n", line, what, value);
  std::exit(1);
}
#define GIVES(wanted, call)                                                                \
  do {                                                                                     \
    if (const CUresult result = (call); result != (wanted)) fail(__LINE__, #call, result); \
  } while (0)
#define CHECK(call) GIVES(CUDA_SUCCESS, call)
#define MUST(condition)                              \
  do {                                               \
    if (!(condition)) fail(__LINE__, #condition, 0); \
  } while (0)

CUdeviceptr allocate(unsigned value, std::size_t bytes = kBytes) {
  CUdeviceptr at = 0;
  CHECK(cuMemAlloc(&at, bytes));
  CHECK(cuMemsetD32(at, value, bytes / 4));
  CHECK(cuCtxSynchronize());
  return at;
}

// Only host memory can be the processor's.
bool is_in_host_memory(CUdeviceptr at) {
  const CUmemLocation processor{CU_MEM_LOCATION_TYPE_HOST_NUMA, 0};
  unsigned long long flags = 0;
  CHECK(cuMemGetAccess(&flags, &processor, at));
  return flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
}
std::size_t pages_in_host_memory(CUdeviceptr at) {
  std::size_t count = 0;
  for (std::size_t i = 0; i < kBytes / kPage; ++i) count += is_in_host_memory(at + i * kPage);
  return count;
}

bool holds(CUdeviceptr at, std::size_t bytes, unsigned value) {
  std::vector<unsigned> host(bytes / 4);
  CHECK(cuMemcpyDtoH(host.data(), at, bytes));
  for (const unsigned word : host) {
    if (word != value) return false;
  }
  return true;
}

void cool(CUdeviceptr at, std::size_t bytes = kBytes) {
  MUST(advise(reinterpret_cast<void*>(at), bytes, KVMEM_COLD) == 0);
}

CUresult dma_buf(CUdeviceptr at, std::size_t bytes = kBytes) {
  int fd = -1;
  const CUresult result =
      cuMemGetHandleForAddressRange(&fd, at, bytes, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD, 0);
  if (result == CUDA_SUCCESS) ::close(fd);
  return result;
}

// The same memory by another address, as one who imports it has it.
CUdeviceptr alias_of(CUmemGenericAllocationHandle memory) {
  CUdeviceptr at = 0;
  CUmemAccessDesc access{};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  CHECK(cuMemAddressReserve(&at, kPage, 0, 0, 0));
  CHECK(cuMemMap(at, kPage, 0, memory, 0));
  CHECK(cuMemSetAccess(at, kPage, &access, 1));
  return at;
}

void a_descriptor_brings_it_home_for_good() {
  const CUdeviceptr at = allocate(1);
  cool(at);
  MUST(pages_in_host_memory(at) == 4);
  CHECK(dma_buf(at));
  MUST(pages_in_host_memory(at) == 0);
  cool(at);
  MUST(pages_in_host_memory(at) == 0);
  MUST(holds(at, kBytes, 1));
  CHECK(cuMemFree(at));
}

void so_does_who_is_about_to_let_a_device_write_there() {
  const CUdeviceptr at = allocate(1);
  const unsigned on = 1;
  cool(at);
  GIVES(CUDA_ERROR_NOT_SUPPORTED, cuPointerSetAttribute(&on, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, at));
  cool(at);
  MUST(pages_in_host_memory(at) == 0);
  CHECK(cuMemFree(at));
}

void what_came_to_nothing_binds_nobody() {
  const CUdeviceptr at = allocate(2);
  MUST(dma_buf(at + 512) != CUDA_SUCCESS);
  cool(at);
  MUST(pages_in_host_memory(at) == 4);
  CHECK(cuMemFree(at));
}

void a_handle_is_of_the_pages_that_stay_and_of_nobodys_after() {
  const CUdeviceptr at = allocate(3);
  CUmemGenericAllocationHandle memory = 0;
  cool(at);
  CHECK(cuMemRetainAllocationHandle(&memory, reinterpret_cast<void*>(at + kPage)));
  const CUdeviceptr alias = alias_of(memory);
  cool(at);
  MUST(pages_in_host_memory(at) == 0);
  CHECK(cuMemsetD32(alias, 4, kPage / 4));
  CHECK(cuCtxSynchronize());
  MUST(holds(at, kPage, 3) && holds(at + kPage, kPage, 4));
  CHECK(cuMemFree(at));
  // All the device's memory, again and again: none of it is what the other still has.
  for (unsigned round = 0; round < 3; ++round) {
    const CUdeviceptr all = allocate(5, std::size_t{28} << 20);
    MUST(holds(alias, kPage, 4));
    CHECK(cuMemFree(all));
  }
  CHECK(cuMemUnmap(alias, kPage));
  CHECK(cuMemAddressFree(alias, kPage));
  CHECK(cuMemRelease(memory));
}

void what_is_freed_on_a_stream_is_nobodys_either() {
  CUstream stream = nullptr;
  CUdeviceptr at = 0;
  CUmemGenericAllocationHandle memory = 0;
  CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  CHECK(cuMemAllocAsync(&at, kBytes, stream));
  CHECK(cuMemsetD32Async(at, 5, kBytes / 4, stream));
  CHECK(cuMemRetainAllocationHandle(&memory, reinterpret_cast<void*>(at)));
  CHECK(cuMemFreeAsync(at, stream));
  CHECK(cuMemAllocAsync(&at, kBytes, stream));
  CHECK(cuMemsetD32Async(at, 6, kBytes / 4, stream));
  CHECK(cuStreamSynchronize(stream));
  const CUdeviceptr alias = alias_of(memory);
  MUST(holds(alias, kPage, 5));
  CHECK(cuMemFreeAsync(at, stream));
  CHECK(cuStreamDestroy(stream));
  CHECK(cuMemUnmap(alias, kPage));
  CHECK(cuMemAddressFree(alias, kPage));
  CHECK(cuMemRelease(memory));
}

void without_room_it_fails_and_nothing_is_lost() {
  const CUdeviceptr full = allocate(6, std::size_t{32} << 20);
  const CUdeviceptr at = allocate(7);
  MUST(pages_in_host_memory(at) == 4);
  CUmemGenericAllocationHandle memory = 0;
  GIVES(CUDA_ERROR_OUT_OF_MEMORY, dma_buf(at));
  GIVES(CUDA_ERROR_OUT_OF_MEMORY,
        cuMemRetainAllocationHandle(&memory, reinterpret_cast<void*>(at)));
  MUST(holds(at, kBytes, 7));
  CHECK(cuMemFree(full));
  CHECK(dma_buf(at));
  MUST(pages_in_host_memory(at) == 0);
  MUST(holds(at, kBytes, 7));
  CHECK(cuMemFree(at));
}

void hold_up(void* gate) {
  while (!*static_cast<std::atomic<bool>*>(gate)) usleep(100);
}

// The device waits for this thread, so this thread does not wait for the device.
void what_cannot_come_now_is_not_given_now() {
  const CUdeviceptr at = allocate(8);
  std::atomic<bool> go{false};
  cool(at);
  CHECK(cuLaunchHostFunc(nullptr, hold_up, &go));
  GIVES(CUDA_ERROR_NOT_SUPPORTED, dma_buf(at));
  go = true;
  CHECK(cuCtxSynchronize());
  CHECK(dma_buf(at));
  MUST(pages_in_host_memory(at) == 0);
  MUST(holds(at, kBytes, 8));
  CHECK(cuMemFree(at));
}

// Half of it is copied ahead, for as long as that is held up; then it may no longer go.
template <class Meanwhile>
void while_half_is_on_its_way(CUdeviceptr at, Meanwhile meanwhile) {
  CUcontext context = nullptr;
  CHECK(cuCtxGetCurrent(&context));
  copies_begun = false;
  copies_go_on = false;
  std::thread mover([&] {
    CHECK(cuCtxSetCurrent(context));
    cool(at, kBytes / 2);
  });
  while (!copies_begun) usleep(1000);
  std::thread opener([&] {
    usleep(50'000);
    copies_go_on = true;
  });
  meanwhile();
  opener.join();
  mover.join();
}

void what_is_given_while_it_is_on_its_way_stays() {
  const CUdeviceptr at = allocate(1);
  while_half_is_on_its_way(at, [at] { CHECK(dma_buf(at)); });
  MUST(pages_in_host_memory(at) == 0);
  MUST(holds(at, kBytes, 1));
  CHECK(cuMemFree(at));
}

// At any moment of a move: what the handle is of is what is behind the address.
void a_handle_taken_at_any_time_is_of_what_is_there() {
  CUcontext context = nullptr;
  CHECK(cuCtxGetCurrent(&context));
  for (unsigned round = 0; round < 100; ++round) {
    const CUdeviceptr at = allocate(round);
    std::atomic<bool> stop{false};
    std::thread mover([&] {
      CHECK(cuCtxSetCurrent(context));
      for (unsigned i = 0; !stop; ++i) {
        (void)advise(reinterpret_cast<void*>(at), kBytes, i % 2 == 0 ? KVMEM_COLD : KVMEM_HOT);
      }
    });
    usleep(round * 37 % 2000);
    CUmemGenericAllocationHandle memory = 0;
    CHECK(cuMemRetainAllocationHandle(&memory, reinterpret_cast<void*>(at)));
    stop = true;
    mover.join();
    const CUdeviceptr alias = alias_of(memory);
    CHECK(cuMemsetD32(alias, round + 1, 4));
    CHECK(cuCtxSynchronize());
    MUST(holds(at, 16, round + 1) && holds(at + 16, kPage - 16, round));
    CHECK(cuMemFree(at));
    CHECK(cuMemUnmap(alias, kPage));
    CHECK(cuMemAddressFree(alias, kPage));
    CHECK(cuMemRelease(memory));
  }
}

void what_a_graph_records_while_it_is_on_its_way_stays() {
  const CUdeviceptr at = allocate(2);
  const CUdeviceptr to = allocate(3);
  CUstream stream = nullptr;
  CUgraph graph = nullptr;
  CUgraphExec executable = nullptr;
  CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  while_half_is_on_its_way(at, [&] {
    CHECK(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    CHECK(cuMemcpyDtoDAsync(to, at, kBytes, stream));
    CHECK(cuStreamEndCapture(stream, &graph));
  });
  CHECK(cuGraphInstantiate(&executable, graph, 0));
  CHECK(cuGraphLaunch(executable, stream));
  CHECK(cuStreamSynchronize(stream));
  MUST(pages_in_host_memory(at) == 0);
  MUST(holds(to, kBytes, 2));
  CHECK(cuGraphExecDestroy(executable));
  CHECK(cuGraphDestroy(graph));
  CHECK(cuStreamDestroy(stream));
  CHECK(cuMemFree(at));
  CHECK(cuMemFree(to));
}

// A graph has a copy of it by the place where it was.
void what_a_graph_holds_away_is_not_given() {
  const CUdeviceptr at = allocate(8);
  const CUdeviceptr other = allocate(9);
  CUstream stream = nullptr;
  CUgraph graph = nullptr;
  cool(at);
  CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  CHECK(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
  CHECK(cuMemcpyDtoDAsync(other, at, kBytes, stream));
  CHECK(cuStreamEndCapture(stream, &graph));
  GIVES(CUDA_ERROR_NOT_SUPPORTED, dma_buf(at));
  CHECK(dma_buf(other));
  CHECK(cuGraphDestroy(graph));
  CHECK(cuStreamDestroy(stream));
  CHECK(cuMemFree(at));
  CHECK(cuMemFree(other));
}

// While an engine that has nothing to do gives the rest of the GPU's memory back.
void what_is_given_is_not_parked() {
  const CUdeviceptr given = allocate(1);
  const CUdeviceptr kept = allocate(2);
  CUmemGenericAllocationHandle memory = 0;
  CHECK(cuMemRetainAllocationHandle(&memory, reinterpret_cast<void*>(given)));
  const CUdeviceptr alias = alias_of(memory);
  const std::uint64_t before = softgpu_live(SOFTGPU_DEVICE_BYTES);
  for (int i = 0; i < 1000 && softgpu_live(SOFTGPU_DEVICE_BYTES) + kBytes > before; ++i) {
    usleep(10'000);
  }
  MUST(softgpu_live(SOFTGPU_DEVICE_BYTES) + kBytes <= before);  // parked
  CHECK(cuMemsetD32(alias, 3, kPage / 4));                      // and awake
  CHECK(cuCtxSynchronize());
  MUST(holds(given, kPage, 3) && holds(given + kPage, kBytes - kPage, 1) && holds(kept, kBytes, 2));
  CHECK(cuMemFree(given));
  CHECK(cuMemFree(kept));
  CHECK(cuMemUnmap(alias, kPage));
  CHECK(cuMemAddressFree(alias, kPage));
  CHECK(cuMemRelease(memory));
}

}  // namespace

int main(int argc, char** argv) {
  CUcontext context = nullptr;
  CHECK(cuInit(0));
  CHECK(cuDevicePrimaryCtxRetain(&context, 0));
  CHECK(cuCtxSetCurrent(context));
  if (argc > 1 && std::strcmp(argv[1], "ipc") == 0) {
    CUipcMemHandle handle{};
    const CUresult result = cuIpcGetMemHandle(&handle, allocate(0));
    if (result != CUDA_SUCCESS && result != CUDA_ERROR_INVALID_VALUE) fail(__LINE__, "ipc", result);
    std::puts(result == CUDA_SUCCESS ? "handle" : "none");
    return 0;
  }
  if (argc > 1 && std::strcmp(argv[1], "parked") == 0) {
    what_is_given_is_not_parked();
    std::puts("ok not parked");
    return 0;
  }
  advise = reinterpret_cast<decltype(advise)>(::dlsym(RTLD_DEFAULT, "kvmem_advise"));
  MUST(advise != nullptr);
  a_descriptor_brings_it_home_for_good();
  so_does_who_is_about_to_let_a_device_write_there();
  what_came_to_nothing_binds_nobody();
  a_handle_is_of_the_pages_that_stay_and_of_nobodys_after();
  what_is_freed_on_a_stream_is_nobodys_either();
  without_room_it_fails_and_nothing_is_lost();
  what_cannot_come_now_is_not_given_now();
  // Without a CUDA compiler nothing is copied ahead.
  if (kvmem_kernels_image != nullptr) {
    what_is_given_while_it_is_on_its_way_stays();
    what_a_graph_records_while_it_is_on_its_way_stays();
  }
  a_handle_taken_at_any_time_is_of_what_is_there();
  what_a_graph_holds_away_is_not_given();
  CHECK(cuCtxSynchronize());
  return 0;
}
