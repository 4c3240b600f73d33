// 10: an engine's memory goes to host memory and comes back, by the C API. Run with libkvmem
// preloaded, KVMEM_DEVICE=1, KVMEM_HBM a little more than BYTES and KVMEM_GPU_CAPACITY that and
// BYTES more.
//
// usage: gpu_facts advise BYTES
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "gpu.h"
#include "kvmem.h"

namespace gpu {
namespace {

constexpr std::uint32_t kSeed = 0x5eed;

std::string hex(std::uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof text, "%016lx", value);
  return text;
}

// Of the 2 MiB pages of [at, at + bytes), those that are in host memory.
std::size_t pages_in_host(decltype(&kvmem_residency) residency, CUdeviceptr at, std::size_t bytes) {
  std::vector<unsigned char> states(bytes / KVMEM_PAGE_BYTES);
  if (residency(reinterpret_cast<void*>(at), bytes, states.data()) != 0) return SIZE_MAX;
  return static_cast<std::size_t>(std::count(states.begin(), states.end(), KVMEM_HOST));
}

}  // namespace

void fact_advise(const Options& options) {
  const auto advise =
      reinterpret_cast<decltype(&kvmem_advise)>(::dlsym(RTLD_DEFAULT, "kvmem_advise"));
  const auto residency =
      reinterpret_cast<decltype(&kvmem_residency)>(::dlsym(RTLD_DEFAULT, "kvmem_residency"));
  if (advise == nullptr || residency == nullptr || options.words.empty())
    usage("advise BYTES, with libkvmem preloaded");
  const Device device;
  const std::size_t page = KVMEM_PAGE_BYTES;
  const std::size_t bytes = std::strtoull(options.words[0].c_str(), nullptr, 10) / page * page;
  const std::uint64_t words = bytes / 4;
  CUdeviceptr at = 0;
  CU(cuMemAlloc(&at, bytes));
  device.fill(at, words, kSeed);
  const std::uint64_t before = device.hash(at, words);
  check("all on the device at first", pages_in_host(residency, at, bytes) == 0, text_of(bytes));

  // The first time the pool makes its host pages; then they are used again.
  std::vector<double> ways[2][2];
  const int rounds = options.quick ? 2 : 4;
  for (int round = 0; round < rounds; ++round) {
    for (const Place place : {Place::kHost, Place::kDevice}) {
      const bool to_host = place == Place::kHost;
      const double begin = now_ns();
      const int said = advise(reinterpret_cast<void*>(at), bytes, to_host ? KVMEM_COLD : KVMEM_HOT);
      ways[round > 0][to_host].push_back(now_ns() - begin);
      const std::size_t host = pages_in_host(residency, at, bytes);
      const std::uint64_t after = device.hash(at, words);
      const std::string name = std::string(to_host ? "to the host" : "back to the device") +
                               ", round " + std::to_string(round + 1);
      check(name + ": every page", said == 0 && host == (to_host ? bytes / page : 0),
            std::to_string(host) + " of " + std::to_string(bytes / page) + " in host memory");
      check(name + ": the same bytes", after == before, hex(after));
    }
  }
  const std::uint64_t wrong = device.wrong(at, words, kSeed);
  check("what was written is there", wrong == 0, std::to_string(wrong) + " words wrong");
  for (const bool again : {false, true}) {
    for (const bool to_host : {true, false}) {
      figure_rate(text_of(bytes) + (to_host ? " to the host" : " back to the device"),
                  again ? "again" : "the first time", bytes, ways[again][to_host]);
    }
  }
  CU(cuMemFree(at));
}

}  // namespace gpu
