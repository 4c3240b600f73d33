// An engine on a GPU that others use too. Does what it is told on standard input, a line each, and
// answers with a line:
//   hold MIB TAG    allocates that much and fills it          "held" or "full"
//   add             adds 1 to every word, by a kernel         "added"
//   check           copies everything out and compares it     "right BYTES" or "wrong BYTES"
//   drop TAG        frees what has the tag                    "dropped"
//   park TAG        by the C API                              "parked" or "error N"
//   work MS         adds and checks parts, for so long        "worked N" or "wrong BYTES"
// Ends with its input; exits 0 if no call failed and nothing was wrong.
#include <cuda.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "kvmem.h"
#include "tests/softgpu/softgpu.h"

extern "C" {
extern const softgpu_params tenant_add_softgpu;
const softgpu_params tenant_add_softgpu = {3, {8, 8, 4}};
void tenant_add(const softgpu_launch*, void** params);
void tenant_add(const softgpu_launch*, void** params) {
  auto* at = *static_cast<std::uint32_t**>(params[0]);
  const auto words = *static_cast<std::uint64_t*>(params[1]);
  const auto value = *static_cast<std::uint32_t*>(params[2]);
  for (std::uint64_t i = 0; i < words; ++i) at[i] += value;
}
#pragma weak kvmem_set_tag
#pragma weak kvmem_park
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
  CUcontext context = nullptr;
  CUmodule module = nullptr;
  MUST(cuInit(0));
  MUST(cuDevicePrimaryCtxRetain(&context, 0));
  MUST(cuCtxSetCurrent(context));
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
