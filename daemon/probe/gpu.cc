#include "probe/gpu.h"

#include <gpu.skel.h>  // made by ebpf/
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>

namespace kvmem::probe {
namespace {

enum class Program : std::uint8_t { kAlloc, kFreeAddress, kFreeHandle, kOther };

struct Probed {
  const char* function;
  Program program;
  kvmem_gpu_call call;
};

// The names that a driver exports now, and those that older runtimes ask for. What a driver lacks
// is left out. _ptsz: the same call on a per-thread default stream.
constexpr Probed kProbed[] = {
    {"cuMemAlloc_v2", Program::kAlloc, KVMEM_GPU_ALLOC},
    {"cuMemAllocManaged", Program::kAlloc, KVMEM_GPU_ALLOC},
    {"cuMemAllocAsync", Program::kAlloc, KVMEM_GPU_ALLOC},
    {"cuMemAllocAsync_ptsz", Program::kAlloc, KVMEM_GPU_ALLOC},
    {"cuMemAllocFromPoolAsync", Program::kAlloc, KVMEM_GPU_ALLOC},
    {"cuMemAllocFromPoolAsync_ptsz", Program::kAlloc, KVMEM_GPU_ALLOC},
    {"cuMemAllocPitch_v2", Program::kAlloc, KVMEM_GPU_PITCH},
    {"cuMemCreate", Program::kAlloc, KVMEM_GPU_CREATE},
    {"cuMemFree_v2", Program::kFreeAddress, KVMEM_GPU_ALLOC},
    {"cuMemFreeAsync", Program::kFreeAddress, KVMEM_GPU_ALLOC},
    {"cuMemFreeAsync_ptsz", Program::kFreeAddress, KVMEM_GPU_ALLOC},
    {"cuMemRelease", Program::kFreeHandle, KVMEM_GPU_CREATE},
    {"cuCtxCreate_v2", Program::kOther, KVMEM_GPU_CONTEXT},
    {"cuCtxCreate_v3", Program::kOther, KVMEM_GPU_CONTEXT},
    {"cuCtxCreate_v4", Program::kOther, KVMEM_GPU_CONTEXT},
    {"cuDevicePrimaryCtxRetain", Program::kOther, KVMEM_GPU_CONTEXT},
    {"cuModuleLoad", Program::kOther, KVMEM_GPU_MODULE},
    {"cuModuleLoadData", Program::kOther, KVMEM_GPU_MODULE},
    {"cuModuleLoadDataEx", Program::kOther, KVMEM_GPU_MODULE},
    {"cuModuleLoadFatBinary", Program::kOther, KVMEM_GPU_MODULE},
    {"cuLibraryLoadData", Program::kOther, KVMEM_GPU_MODULE},
};

// Processes are told apart by when they began, in the unit that /proc has it in.
std::uint64_t ticks_of(std::uint64_t start_ns) {
  static const auto per_second = static_cast<std::uint64_t>(::sysconf(_SC_CLK_TCK));
  return start_ns / (1'000'000'000 / per_second);
}

std::optional<std::uint64_t> start_ticks(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  // The name is in parentheses and may have some of its own; 22 is the 20th field after it.
  const std::size_t after = text.rfind(')');
  if (after == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(after + 1));
  std::string skipped;
  constexpr int kBefore = 19;
  for (int i = 0; i < kBefore; ++i) fields >> skipped;
  std::uint64_t ticks = 0;
  if (!(fields >> ticks)) return std::nullopt;
  return ticks;
}

std::string cgroup_of(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/cgroup");
  std::string line;
  while (std::getline(in, line))
    if (line.starts_with("0::")) return line.substr(3);
  return "";
}

template <class Key>
std::vector<Key> keys_of(const bpf_map* map) {
  std::vector<Key> keys;
  Key key{};
  const Key* previous = nullptr;
  // Entries come and go meanwhile: the kernel may begin anew, but not for ever.
  const std::size_t most = std::size_t{2} * bpf_map__max_entries(map);
  while (keys.size() < most && bpf_map_get_next_key(bpf_map__fd(map), previous, &key) == 0) {
    keys.push_back(key);
    previous = &keys.back();
  }
  return keys;
}

bool same(const kvmem_gpu_key& a, const kvmem_gpu_key& b) {
  return a.pid == b.pid && a.start_ns == b.start_ns;
}

// As gpu.bpf.c has it.
struct Allocation {
  kvmem_gpu_key process;
  std::uint64_t address;
  std::uint64_t is_handle;
};

}  // namespace

Result<std::unique_ptr<GpuProbe>> GpuProbe::create(const std::string& driver) {
  if (driver.empty() || ::access(driver.c_str(), R_OK) != 0)
    return Status(Code::kNotFound, "no CUDA driver; if there is one, name it with gpu.driver");
  std::unique_ptr<GpuProbe> probe(new GpuProbe);
  probe->skeleton_ = kvmem_gpu_bpf::open_and_load();
  if (probe->skeleton_ == nullptr) return refused(-errno, "load of the GPU probe");
  auto& programs = probe->skeleton_->progs;
  const auto attach = [&](const bpf_program* program, const Probed& at, bool at_return) {
    LIBBPF_OPTS(bpf_uprobe_opts, options, .bpf_cookie = static_cast<__u64>(at.call),
                .retprobe = at_return, .func_name = at.function);
    Link link(bpf_program__attach_uprobe_opts(program, -1, driver.c_str(), 0, &options));
    const int error = link ? 0 : -errno;
    if (link) probe->links_.push_back(std::move(link));
    return error;
  };
  for (const Probed& at : kProbed) {
    int error = 0;
    switch (at.program) {
      case Program::kAlloc:
        error = attach(programs.alloc_entered, at, false);
        if (error == 0) error = attach(programs.alloc_returned, at, true);
        break;
      case Program::kFreeAddress:
        error = attach(programs.address_freed, at, false);
        break;
      case Program::kFreeHandle:
        error = attach(programs.handle_freed, at, false);
        break;
      case Program::kOther:
        error = attach(programs.other_entered, at, false);
        break;
    }
    if (error == -EPERM || error == -EACCES) return refused(error, "attach of the GPU probe");
  }
  if (probe->links_.empty())
    return Status(Code::kNotFound, "gpu.driver has none of the CUDA driver's functions");
  return probe;
}

GpuProbe::~GpuProbe() {
  links_.clear();
  kvmem_gpu_bpf::destroy(skeleton_);
}

std::vector<GpuProcess> GpuProbe::read() {
  std::vector<GpuProcess> living;
  std::vector<kvmem_gpu_key> ended;
  const bpf_map* const map = skeleton_->maps.processes;
  for (const kvmem_gpu_key& key : keys_of<kvmem_gpu_key>(map)) {
    GpuProcess found;
    found.pid = static_cast<pid_t>(key.pid);
    if (start_ticks(found.pid) != ticks_of(key.start_ns)) {
      ended.push_back(key);
      continue;
    }
    struct stat info {};
    if (bpf_map_lookup_elem(bpf_map__fd(map), &key, &found.counts) != 0 ||
        ::stat(("/proc/" + std::to_string(found.pid)).c_str(), &info) != 0)
      continue;
    found.uid = info.st_uid;
    found.cgroup = cgroup_of(found.pid);
    living.push_back(std::move(found));
  }
  if (!ended.empty()) forget(ended);
  std::sort(living.begin(), living.end(), [](const GpuProcess& a, const GpuProcess& b) {
    return a.counts.device_bytes > b.counts.device_bytes;
  });
  return living;
}

void GpuProbe::forget(const std::vector<kvmem_gpu_key>& ended) {
  const bpf_map* const allocations = skeleton_->maps.allocations;
  for (const Allocation& allocation : keys_of<Allocation>(allocations)) {
    if (std::any_of(ended.begin(), ended.end(),
                    [&](const kvmem_gpu_key& key) { return same(key, allocation.process); })) {
      (void)bpf_map_delete_elem(bpf_map__fd(allocations), &allocation);
    }
  }
  for (const kvmem_gpu_key& key : ended)
    (void)bpf_map_delete_elem(bpf_map__fd(skeleton_->maps.processes), &key);
}

std::string find_cuda_driver() {
  static constexpr std::array kFolders = {"/usr/lib/x86_64-linux-gnu",
                                          "/usr/lib/aarch64-linux-gnu",
                                          "/usr/lib64",
                                          "/usr/lib",
                                          "/usr/lib/x86_64-linux-gnu/nvidia/current",
                                          "/run/opengl-driver/lib",
                                          "/usr/lib/wsl/lib"};
  for (const char* const folder : kFolders) {
    std::string path = std::string(folder) + "/libcuda.so.1";
    if (::access(path.c_str(), R_OK) == 0) return path;
  }
  return "";
}

}  // namespace kvmem::probe
