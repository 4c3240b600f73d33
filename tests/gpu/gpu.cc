#include "gpu.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <mutex>

#include "pattern.h"

namespace gpu {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return out + '"';
}

// Complete before the next call to the driver, which may be the last.
void say(const std::string& line) {
  std::printf("{%s}\n", line.c_str());
  std::fflush(stdout);
}

struct Question {
  Kind kind = Kind::kCheck;
  std::string name;  // empty: nothing is asked
} asked;

const char* text_of(Kind kind) { return kind == Kind::kCheck ? "check" : "answer"; }

double percentile(const std::vector<double>& sorted, double share) {
  const auto i = static_cast<std::size_t>(share * static_cast<double>(sorted.size()));
  return sorted[std::min(i, sorted.size() - 1)];
}

void say_figure(const std::string& row_name, const std::string& column, const char* unit,
                double median, double p99, std::size_t samples) {
  char numbers[96];
  std::snprintf(numbers, sizeof numbers, "\"median\":%.6g,\"p99\":%.6g,\"n\":%zu", median, p99,
                samples);
  say("\"kind\":\"figure\",\"row\":" + quoted(row_name) + ",\"column\":" + quoted(column) +
      ",\"unit\":" + quoted(unit) + "," + numbers);
}

// The fatbin lies beside the program.
std::vector<char> kernels() {
  Dl_info self{};
  ::dladdr(reinterpret_cast<const void*>(&kernels), &self);
  std::string path = self.dli_fname;
  path.erase(path.find_last_of('/') + 1);
  std::ifstream file(path + "gpu_kernels.fatbin", std::ios::binary);
  std::vector<char> image{std::istreambuf_iterator<char>(file), {}};
  image.push_back(0);  // none: enough for the software driver, refused by another one
  return image;
}

}  // namespace

void die(const char* call, CUresult result) {
  static std::mutex once;  // two threads may fail at a time
  once.lock();
  const std::string text(call, std::strcspn(call, "("));
  if (asked.name.empty()) asked = {Kind::kCheck, text};
  const bool is_answer = asked.kind == Kind::kAnswer;
  settle(false, text + ": " + name_of(result));
  std::_Exit(is_answer ? 0 : 1);
}

void usage(const std::string& what) {
  std::fprintf(stderr, "gpu_facts: %s\n", what.c_str());
  std::_Exit(2);
}

void skip(const std::string& why) {
  say("\"kind\":\"skip\",\"text\":" + quoted(why));
  std::_Exit(77);
}

std::string name_of(CUresult result) {
  const char* name = nullptr;
  const bool known = cuGetErrorName(result, &name) == CUDA_SUCCESS && name != nullptr;
  return known ? name : "error " + std::to_string(static_cast<int>(result));
}

std::string text_of(std::size_t bytes) {
  if (bytes % kGiB == 0) return std::to_string(bytes / kGiB) + " GiB";
  if (bytes % kMiB == 0) return std::to_string(bytes / kMiB) + " MiB";
  return std::to_string(bytes / 1024) + " KiB";
}

void ask(Kind kind, const std::string& name) {
  asked = {kind, name};
  say("\"kind\":\"asked\",\"as\":" + quoted(text_of(kind)) + ",\"name\":" + quoted(name));
}

void settle(bool holds, const std::string& text) {
  say("\"kind\":" + quoted(text_of(asked.kind)) + ",\"name\":" + quoted(asked.name) +
      ",\"holds\":" + (holds ? "true" : "false") + ",\"text\":" + quoted(text));
  asked = {};
}

void check(const std::string& name, bool holds, const std::string& text) {
  asked = {Kind::kCheck, name};
  settle(holds, text);
}
void answer(const std::string& name, bool is_yes, const std::string& text) {
  asked = {Kind::kAnswer, name};
  settle(is_yes, text);
}

void row(std::initializer_list<std::pair<const char*, std::string>> cells) {
  std::string line = "\"kind\":\"row\",\"cells\":{";
  for (const auto& [column, text] : cells) {
    if (line.back() != '{') line += ',';
    line += quoted(column) + ":" + quoted(text);
  }
  say(line + "}");
}

void figure(const std::string& row_name, const std::string& column, const char* unit,
            std::vector<double> samples) {
  if (samples.empty()) return;
  std::sort(samples.begin(), samples.end());
  say_figure(row_name, column, unit, percentile(samples, 0.5), percentile(samples, 0.99),
             samples.size());
}

void figure_rate(const std::string& row_name, const std::string& column, std::size_t bytes,
                 std::vector<double> times_ns) {
  if (times_ns.empty()) return;
  std::sort(times_ns.begin(), times_ns.end());
  const auto size = static_cast<double>(bytes);  // bytes a nanosecond are GB a second
  say_figure(row_name, column, "GB/s", size / percentile(times_ns, 0.5),
             size / percentile(times_ns, 0.99), times_ns.size());
}

Device::Device() {
  int count = 0;
  if (cuInit(0) != CUDA_SUCCESS || cuDeviceGetCount(&count) != CUDA_SUCCESS || count == 0) {
    skip("no GPU");
  }
  CU(cuDeviceGet(&id_, 0));
  if (attribute(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) == 0) {
    skip("the GPU has no virtual memory management");
  }
  CU(cuDevicePrimaryCtxRetain(&context_, id_));
  CU(cuCtxSetCurrent(context_));
  node_ = std::max(0, attribute(CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID));
  for (const Place place : {Place::kDevice, Place::kHost}) {
    CUmemAllocationProp& prop = props_[static_cast<int>(place)];
    prop = as_kvmem_asks(place);
    std::size_t granularity = 0;
    // A place that gives nothing fails the facts that need it.
    if (cuMemGetAllocationGranularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM) ==
        CUDA_SUCCESS) {
      page_bytes_ = std::max(page_bytes_, granularity);
    }
  }
  for (CUmemAllocationProp& prop : props_) {
    if (gives_page(prop)) continue;
    prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_NONE;
    prop.allocFlags = {};
  }
  const std::vector<char> image = kernels();
  CU(cuModuleLoadData(&module_, image.data()));
  const std::pair<CUfunction*, const char*> functions[] = {
      {&empty_, "gpu_empty"}, {&fill_, "gpu_fill"}, {&add_, "gpu_add"},     {&wrong_, "gpu_wrong"},
      {&hash_, "gpu_hash"},   {&copy_, "gpu_copy"}, {&touch_, "gpu_touch"}, {&count_, "gpu_count"}};
  for (const auto& [function, name] : functions) {
    CU(cuModuleGetFunction(function, module_, name));
  }
  CU(cuMemAlloc(&sum_, 8));
}

int Device::attribute(CUdevice_attribute which) const {
  int value = 0;
  return cuDeviceGetAttribute(&value, which, id_) == CUDA_SUCCESS ? value : 0;
}

std::size_t Device::free_bytes() const {
  std::size_t free = 0;
  std::size_t total = 0;
  CU(cuMemGetInfo(&free, &total));
  return free - std::min(free, kSpareBytes);
}

bool Device::gives_page(const CUmemAllocationProp& prop) const {
  CUmemGenericAllocationHandle memory = 0;
  return cuMemCreate(&memory, page_bytes_, &prop, 0) == CUDA_SUCCESS &&
         cuMemRelease(memory) == CUDA_SUCCESS;
}

CUmemAllocationProp Device::as_kvmem_asks(Place place) const {
  CUmemAllocationProp prop{};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  if (attribute(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED) != 0) {
    prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  }
  if (place == Place::kHost) {
    prop.location = {CU_MEM_LOCATION_TYPE_HOST_NUMA, node_};
    return prop;
  }
  prop.location = {CU_MEM_LOCATION_TYPE_DEVICE, id_};
  if (attribute(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED) != 0) {
    prop.allocFlags.gpuDirectRDMACapable = 1;
  }
  return prop;
}

void Device::give_access(CUdeviceptr at, std::size_t bytes, Place place) const {
  CUmemAccessDesc access[2]{};
  access[0] = {{CU_MEM_LOCATION_TYPE_DEVICE, id_}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  access[1] = {{CU_MEM_LOCATION_TYPE_HOST_NUMA, node_}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  CU(cuMemSetAccess(at, bytes, access, place == Place::kHost ? 2 : 1));
}

template <class... Params>
void Device::launch(CUfunction function, std::uint64_t threads, CUstream stream,
                    Params... params) const {
  constexpr std::uint64_t kBlock = 256;
  constexpr std::uint64_t kBlocksMax = 8192;
  void* pointers[] = {&params..., nullptr};
  const auto blocks = std::clamp<std::uint64_t>((threads + kBlock - 1) / kBlock, 1, kBlocksMax);
  CU(cuLaunchKernel(function, static_cast<unsigned>(blocks), 1, 1, kBlock, 1, 1, 0, stream,
                    pointers, nullptr));
}

void Device::empty(CUstream stream) const { launch(empty_, 1, stream); }
void Device::fill(CUdeviceptr at, std::uint64_t words, std::uint32_t seed, CUstream stream) const {
  launch(fill_, words, stream, at, words, seed);
}
void Device::add(CUdeviceptr at, std::uint64_t words, std::uint32_t value, CUstream stream) const {
  launch(add_, words, stream, at, words, value);
}
void Device::copy(CUdeviceptr to, CUdeviceptr from, std::uint64_t words, CUstream stream) const {
  launch(copy_, words, stream, to, from, words);
}
void Device::touch(CUdeviceptr at, std::uint64_t words, std::uint64_t stride) const {
  launch(touch_, words / stride, nullptr, at, words, stride);
}
void Device::count(CUdeviceptr at, std::uint64_t slots, std::uint64_t stride, std::uint64_t times,
                   std::uint32_t how) const {
  launch(count_, times, nullptr, at, slots, stride, times, how);
}
void Device::start_hash(CUdeviceptr at, std::uint64_t words, CUstream stream) const {
  launch(hash_, words, stream, at, words, sum_);
}

std::uint64_t Device::sum() const {
  std::uint64_t value = 0;
  CU(cuMemcpyDtoH(&value, sum_, sizeof value));
  return value;
}

std::uint64_t Device::wrong(CUdeviceptr at, std::uint64_t words, std::uint32_t seed,
                            std::uint32_t value) const {
  CU(cuMemsetD8(sum_, 0, 8));
  launch(wrong_, words, nullptr, at, words, seed, value, sum_);
  return sum();
}

std::uint64_t Device::hash(CUdeviceptr at, std::uint64_t words) const {
  CU(cuMemsetD8(sum_, 0, 8));
  start_hash(at, words);
  return sum();
}

Range::Range(const Device& device, std::size_t pages, std::initializer_list<Place> places)
    : device_(device), pages_(pages) {
  const std::size_t page = device.page_bytes();
  CU(cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING));
  CU(cuMemAddressReserve(&at_, bytes(), 0, 0, 0));
  for (std::size_t i = 0; i < pages; ++i) {
    pages_[i].place = places.begin()[i % places.size()];
    const CUmemAllocationProp& prop = device.properties(pages_[i].place);
    CU(cuMemCreate(&pages_[i].memory, page, &prop, 0));
    CU(cuMemMap(at(i), page, 0, pages_[i].memory, 0));
    device.give_access(at(i), page, pages_[i].place);
  }
}

Range::~Range() {
  (void)cuCtxSynchronize();
  (void)cuMemUnmap(at_, bytes());
  for (const Page& page : pages_) (void)cuMemRelease(page.memory);
  (void)cuMemAddressFree(at_, bytes());
  (void)cuStreamDestroy(stream_);
}

void Range::move(std::size_t first, std::size_t count, Place place) {
  const std::size_t page = device_.page_bytes();
  const CUmemAllocationProp& prop = device_.properties(place);
  std::vector<CUmemGenericAllocationHandle> fresh(count);
  CUdeviceptr aside = 0;
  CU(cuMemAddressReserve(&aside, count * page, 0, 0, 0));
  for (std::size_t i = 0; i < count; ++i) {
    CU(cuMemCreate(&fresh[i], page, &prop, 0));
    CU(cuMemMap(aside + i * page, page, 0, fresh[i], 0));
  }
  device_.give_access(aside, count * page, place);
  for (std::size_t i = 0; i < count; ++i) {  // a copy lies in one place
    CU(cuMemcpyDtoDAsync(aside + i * page, at(first + i), page, stream_));
  }
  CU(cuStreamSynchronize(stream_));
  CU(cuMemUnmap(at(first), count * page));
  for (std::size_t i = 0; i < count; ++i) {
    CU(cuMemMap(at(first + i), page, 0, fresh[i], 0));
    CU(cuMemRelease(pages_[first + i].memory));
    pages_[first + i] = {fresh[i], place};
  }
  device_.give_access(at(first), count * page, place);
  CU(cuMemUnmap(aside, count * page));
  CU(cuMemAddressFree(aside, count * page));
}

void fact_device(const Options&) {
  const Device device;
  char name[128] = "";
  int version = 0;
  std::size_t free = 0;
  std::size_t total = 0;
  CU(cuDeviceGetName(name, sizeof name, device.id()));
  CU(cuDriverGetVersion(&version));
  CU(cuMemGetInfo(&free, &total));
  static constexpr std::pair<const char*, CUdevice_attribute> kAbilities[] = {
      {"memory of NUMA nodes", CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED},
      {"file descriptors", CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED},
      {"fabric handles", CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED},
      {"RDMA", CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED},
      {"pageable memory", CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS},
      {"atomics over the link", CU_DEVICE_ATTRIBUTE_HOST_NATIVE_ATOMIC_SUPPORTED}};
  std::string abilities;
  for (const auto& [what, attribute] : kAbilities) {
    if (device.attribute(attribute) != 0)
      abilities += (abilities.empty() ? "" : ", ") + std::string(what);
  }
  row({{"name", name},
       {"abilities", abilities},
       {"node", std::to_string(device.attribute(CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID))},
       {"cuda", std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10)},
       {"compute",
        std::to_string(device.attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)) + "." +
            std::to_string(device.attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR))},
       {"total_bytes", std::to_string(total)},
       {"free_bytes", std::to_string(free)},
       {"page_bytes", std::to_string(device.page_bytes())}});
}

}  // namespace gpu
