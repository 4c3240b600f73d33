// An engine on a GPU that others use too. Does what it is told on standard input, a line each, and
// answers with a line:
//   hold MIB TAG    allocates that much and fills it          "held" or "full"
//   add             adds 1 to every word, by a kernel         "added"
//   check           copies everything out and compares it     "right BYTES" or "wrong BYTES"
//   drop TAG        frees what has the tag                    "dropped"
//   park TAG        by the C API                              "parked" or "error N"
//   advise ADVICE   of all of it, a number of kvmem.h          "advised"
//   reuse MIB       allocates on a stream, parks when it is    "reused" or "wrong BYTES"
//                   freed there, allocates again, uses it
//   threads N MIB   N threads allocate MIB each, and free      "all" or "full"
//   bytes           of the device in use, by the driver        a number
//   work MS         adds and checks parts, for so long        "worked N" or "wrong BYTES"
// Ends with its input; exits 0 if no call failed and nothing was wrong.
#include <cuda.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "kvmem.h"
#include "tests/softgpu/softgpu.h"

extern "C" {
extern const softgpu_kernel tenant_add_softgpu;
static void tenant_add_body(const softgpu_launch*, void** params) {
  auto* at = *static_cast<std::uint32_t**>(params[0]);
  const auto words = *static_cast<std::uint64_t*>(params[1]);
  const auto value = *static_cast<std::uint32_t*>(params[2]);
  for (std::uint64_t i = 0; i < words; ++i) at[i] += value;
}
const softgpu_kernel tenant_add_softgpu = {tenant_add_body, 3, {8, 8, 4}};
#pragma weak kvmem_set_tag
#pragma weak kvmem_park
#pragma weak kvmem_advise
}

namespace {

void must(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return;
  std::fprintf(stderr, "tenant: %s: %d\n", what, result);
  std::exit(1);
}
#define MUST(call) must(call, #call)

struct Memory {
  std::string tag;
  CUdeviceptr at = 0;
  std::uint64_t words = 0;
  std::uint32_t first = 0;  // word i is first + i
};

CUcontext the_context;
CUfunction add_kernel;
std::vector<Memory> held;
std::uint64_t wrong_bytes = 0;

void add(Memory& memory) {
  std::uint32_t one = 1;
  void* params[] = {&memory.at, &memory.words, &one};
  MUST(cuLaunchKernel(add_kernel, 1, 1, 1, 1, 1, 1, 0, nullptr, params, nullptr));
  ++memory.first;
}

void check(const Memory& memory, std::uint64_t first, std::uint64_t words) {
  std::vector<std::uint32_t> host(words);
  MUST(cuMemcpyDtoH(host.data(), memory.at + first * 4, words * 4));
  for (std::uint64_t i = 0; i < words; ++i) {
    if (host[i] != static_cast<std::uint32_t>(memory.first + first + i)) wrong_bytes += 4;
  }
}

const char* hold(std::uint64_t mib, const std::string& tag) {
  if (kvmem_set_tag != nullptr) kvmem_set_tag(tag.c_str());
  Memory memory{tag, 0, mib << 18, static_cast<std::uint32_t>(held.size() * 77777)};
  const CUresult result = cuMemAlloc(&memory.at, mib << 20);
  if (result == CUDA_ERROR_OUT_OF_MEMORY) return "full";
  must(result, "cuMemAlloc");
  std::vector<std::uint32_t> host(memory.words);
  for (std::uint64_t i = 0; i < memory.words; ++i) {
    host[i] = static_cast<std::uint32_t>(memory.first + i);
  }
  MUST(cuMemcpyHtoD(memory.at, host.data(), mib << 20));
  held.push_back(memory);
  return "held";
}

std::string answer(const std::string& command, std::istringstream& words) {
  if (command == "hold") {
    std::uint64_t mib = 0;
    std::string tag;
    words >> mib >> tag;
    return hold(mib, tag);
  }
  if (command == "add") {
    for (Memory& memory : held) add(memory);
    return "added";
  }
  if (command == "check") {
    std::uint64_t bytes = 0;
    for (const Memory& memory : held) {
      check(memory, 0, memory.words);
      bytes += memory.words * 4;
    }
    return wrong_bytes == 0 ? "right " + std::to_string(bytes)
                            : "wrong " + std::to_string(wrong_bytes);
  }
  if (command == "park") {
    std::string tag;
    words >> tag;
    const int error = kvmem_park(tag.empty() ? nullptr : tag.c_str());
    return error == 0 ? "parked" : "error " + std::to_string(error);
  }
  if (command == "advise") {
    int advice = 0;
    words >> advice;
    for (const Memory& memory : held) {
      if (kvmem_advise(reinterpret_cast<void*>(memory.at), memory.words * 4,
                       static_cast<kvmem_advice>(advice)) != 0) {
        return "refused";
      }
    }
    return "advised";
  }
  if (command == "reuse") {
    std::uint64_t mib = 0;
    words >> mib;
    CUstream stream = nullptr;
    Memory memory;
    memory.words = mib << 18;
    MUST(cuStreamCreate(&stream, CU_STREAM_DEFAULT));
    for (int round = 0; round < 3; ++round) {
      MUST(cuMemAllocAsync(&memory.at, mib << 20, stream));
      MUST(cuMemsetD32Async(memory.at, 7, memory.words, stream));
      MUST(cuStreamSynchronize(stream));
      std::vector<std::uint32_t> host(memory.words);
      MUST(cuMemcpyDtoH(host.data(), memory.at, mib << 20));
      for (const std::uint32_t word : host) wrong_bytes += word == 7 ? 0 : 4;
      if (round == 0 && kvmem_park(nullptr) != 0) return "not parked";
      MUST(cuMemFreeAsync(memory.at, stream));
      if (round == 1 && kvmem_park(nullptr) != 0) return "not parked";
      MUST(cuMemsetD32(held.empty() ? 0 : held[0].at, held.empty() ? 0 : held[0].first, 1));
    }
    MUST(cuStreamSynchronize(stream));
    MUST(cuStreamDestroy(stream));
    return wrong_bytes == 0 ? "reused" : "wrong " + std::to_string(wrong_bytes);
  }
  if (command == "threads") {
    std::size_t count = 0;
    std::uint64_t mib = 0;
    words >> count >> mib;
    std::atomic<std::size_t> got{0};
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < count; ++i) {
      threads.emplace_back([&got, mib] {
        CUdeviceptr at = 0;
        MUST(cuCtxSetCurrent(the_context));
        if (cuMemAlloc(&at, mib << 20) == CUDA_SUCCESS) ++got;
        if (at != 0) MUST(cuMemFree(at));
      });
    }
    for (std::thread& thread : threads) thread.join();
    return got == count ? "all" : "full";
  }
  if (command == "bytes") return std::to_string(softgpu_live(SOFTGPU_DEVICE_BYTES));
  if (command == "drop") {
    std::string tag;
    words >> tag;
    for (std::size_t i = held.size(); i-- > 0;) {
      if (held[i].tag != tag) continue;
      MUST(cuMemFree(held[i].at));
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
    }
    return "dropped";
  }
  if (command == "work") {
    int ms = 0;
    words >> ms;
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
    std::uint64_t done = 0;
    static std::mt19937 random(1);
    while (std::chrono::steady_clock::now() < end && !held.empty() && wrong_bytes == 0) {
      Memory& memory = held[random() % held.size()];
      add(memory);
      const std::uint64_t count = 1 + random() % 65536;
      check(memory, random() % (memory.words - count), count);
      ++done;
    }
    return wrong_bytes == 0 ? "worked " + std::to_string(done)
                            : "wrong " + std::to_string(wrong_bytes);
  }
  return "what?";
}

}  // namespace

int main() {
  CUmodule module = nullptr;
  MUST(cuInit(0));
  MUST(cuDevicePrimaryCtxRetain(&the_context, 0));
  MUST(cuCtxSetCurrent(the_context));
  MUST(cuModuleLoadData(&module, ""));
  MUST(cuModuleGetFunction(&add_kernel, module, "tenant_add"));
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    std::cout << answer(command, words) << std::endl;  // and flush
  }
  for (const Memory& memory : held) MUST(cuMemFree(memory.at));
  MUST(cuCtxSynchronize());
  return wrong_bytes == 0 ? 0 : 1;
}
