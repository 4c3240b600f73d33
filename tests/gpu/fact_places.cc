// 3: where memory can be had from, in which granularity, and who reaches it.
#include <algorithm>
#include <fstream>
#include <sstream>

#include "gpu.h"
#include "pattern.h"

namespace gpu {
namespace {

constexpr std::uint32_t kSeed = 0x5eed;

// Of this machine, online; without NUMA in the kernel: node 0.
std::vector<int> nodes() {
  std::vector<int> out;
  std::ifstream file("/sys/devices/system/node/online");
  std::string part;
  while (std::getline(file, part, ',')) {
    std::istringstream range(part);
    int first = 0;
    char dash = 0;
    if (!(range >> first)) continue;
    int last = first;
    if (range >> dash) range >> last;
    for (int node = first; node <= last; ++node) out.push_back(node);
  }
  if (out.empty()) out.push_back(0);
  return out;
}

class Probe {
 public:
  Probe(const Device& device, const CUmemAllocationProp& prop) : device_(device), prop_(prop) {}

  // One page, as far as it goes; a line of the table. True: all of it went well.
  bool run(const std::string& place, const std::string& share) {
    std::size_t sizes[2] = {};
    const CUmemAllocationGranularity_flags which[] = {CU_MEM_ALLOC_GRANULARITY_MINIMUM,
                                                      CU_MEM_ALLOC_GRANULARITY_RECOMMENDED};
    CUresult told = CUDA_SUCCESS;
    for (int i = 0; i < 2 && told == CUDA_SUCCESS; ++i) {
      told = cuMemGetAllocationGranularity(&sizes[i], &prop_, which[i]);
    }
    const auto size = [&](int i) {
      return told == CUDA_SUCCESS ? text_of(sizes[i]) : name_of(told);
    };
    minimum_ = sizes[0];
    CUmemGenericAllocationHandle memory = 0;
    const std::size_t bytes = std::max(sizes[0], 2 * kMiB);
    const CUresult made = told == CUDA_SUCCESS ? cuMemCreate(&memory, bytes, &prop_, 0) : told;
    std::string access = "-";
    std::string use = "-";
    bool well = false;
    if (made == CUDA_SUCCESS) {
      well = reach(memory, bytes, &access, &use);
      CU(cuMemRelease(memory));
    }
    row({{"memory", place},
         {"shared as", share},
         {"minimum", size(0)},
         {"recommended", size(1)},
         {"cuMemCreate", made == CUDA_SUCCESS ? "yes" : name_of(made)},
         {"mapped for", access},
         {"written and read", use}});
    return well;
  }
  std::size_t minimum() const { return minimum_; }

 private:
  bool reach(CUmemGenericAllocationHandle memory, std::size_t bytes, std::string* access,
             std::string* use) {
    const bool host = prop_.location.type != CU_MEM_LOCATION_TYPE_DEVICE;
    CUdeviceptr at = 0;
    CU(cuMemAddressReserve(&at, bytes, 0, 0, 0));
    CUmemAccessDesc who[2]{};
    who[0] = {{CU_MEM_LOCATION_TYPE_DEVICE, device_.id()}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    who[1] = {prop_.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    const CUresult mapped = cuMemMap(at, bytes, 0, memory, 0);
    const CUresult given =
        mapped == CUDA_SUCCESS ? cuMemSetAccess(at, bytes, who, host ? 2 : 1) : mapped;
    *access = given == CUDA_SUCCESS ? (host ? "GPU, processor" : "GPU") : name_of(given);
    bool well = given == CUDA_SUCCESS;
    if (well) {
      device_.fill(at, bytes / 4, kSeed);
      std::uint64_t wrong = device_.wrong(at, bytes / 4, kSeed);
      const auto* words = reinterpret_cast<const std::uint32_t*>(at);
      for (std::uint64_t i = 0; host && i < bytes / 4; ++i) wrong += words[i] != pattern(kSeed, i);
      *use = wrong == 0 ? "yes" : std::to_string(wrong) + " words wrong";
      well = wrong == 0;
    }
    if (mapped == CUDA_SUCCESS) CU(cuMemUnmap(at, bytes));
    CU(cuMemAddressFree(at, bytes));
    return well;
  }

  const Device& device_;
  CUmemAllocationProp prop_;
  std::size_t minimum_ = 0;
};

}  // namespace

void fact_places(const Options&) {
  const Device device;
  CUmemAllocationProp plain{};
  plain.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  const auto probe = [&](CUmemLocation location, const std::string& name) {
    plain.location = location;
    return Probe(device, plain).run(name, "nothing");
  };
  Probe own(device, device.as_kvmem_asks(Place::kDevice));
  const bool has_own = own.run("device", "as kvmem asks");
  (void)probe({CU_MEM_LOCATION_TYPE_DEVICE, device.id()}, "device");
  Probe host(device, device.as_kvmem_asks(Place::kHost));
  const bool has_host =
      host.run("host, node " + std::to_string(device.node()) + " (the GPU's)", "as kvmem asks");
  for (const int node : nodes()) {
    const std::string name = "host, node " + std::to_string(node);
    answer(name, probe({CU_MEM_LOCATION_TYPE_HOST_NUMA, node}, name), "memory of a NUMA node");
  }
  (void)probe({CU_MEM_LOCATION_TYPE_HOST, 0}, "host, no node named");
  (void)probe({CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT, 0}, "host, the current node");
  check("device memory as kvmem asks for it", has_own, "");
  check("host memory of the GPU's node as kvmem asks for it", has_host,
        "node " + std::to_string(device.node()));
  check("pages of one size in both places", own.minimum() == host.minimum(),
        text_of(own.minimum()) + " and " + text_of(host.minimum()));
}

}  // namespace gpu
