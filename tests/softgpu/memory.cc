#include "tests/softgpu/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "tests/softgpu/settings.h"
#include "tests/softgpu/softgpu.h"

namespace softgpu {
namespace {

std::atomic<std::uint64_t> physical_count{0};
std::atomic<std::size_t> device_bytes_used{0};

void* pointer(CUdeviceptr at) { return reinterpret_cast<void*>(at); }

bool node_exists(int node) {
  return std::ifstream("/sys/devices/system/node/node" + std::to_string(node) + "/meminfo").good();
}

bool power_of_two(std::size_t value) { return value != 0 && (value & (value - 1)) == 0; }

// Aligned addresses that nothing else has; 0: none.
CUdeviceptr reserve_addresses(std::size_t bytes, std::size_t alignment, CUdeviceptr hint) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  if (hint != 0 && hint % alignment == 0) {
    void* at = ::mmap(pointer(hint), bytes, PROT_NONE, kFlags | MAP_FIXED_NOREPLACE, -1, 0);
    if (at == pointer(hint)) return hint;
    if (at != MAP_FAILED) ::munmap(at, bytes);
  }
  void* at = ::mmap(nullptr, bytes + alignment, PROT_NONE, kFlags, -1, 0);
  if (at == MAP_FAILED) return 0;
  const auto from = reinterpret_cast<CUdeviceptr>(at);
  const CUdeviceptr aligned = (from + alignment - 1) / alignment * alignment;
  if (aligned > from) ::munmap(at, aligned - from);
  if (from + alignment > aligned) ::munmap(pointer(aligned + bytes), from + alignment - aligned);
  return aligned;
}

// What a memfd is: who made it, and its properties.
std::string name_of(const CUmemAllocationProp& prop) {
  return "softgpu " + std::to_string(::getpid()) + " " + std::to_string(prop.location.type) + " " +
         std::to_string(prop.location.id) + " " + std::to_string(prop.requestedHandleTypes) + " " +
         std::to_string(prop.allocFlags.gpuDirectRDMACapable);
}

// False: not one of this driver's.
bool read_name(int fd, pid_t* maker, CUmemAllocationProp* prop) {
  char name[256] = {};
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  if (::readlink(link.c_str(), name, sizeof name - 1) < 0) return false;
  int type = 0;
  int types = 0;
  int rdma = 0;
  if (std::sscanf(name, "/memfd:softgpu %d %d %d %d %d", maker, &type, &prop->location.id, &types,
                  &rdma) != 5) {
    return false;
  }
  prop->type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop->location.type = static_cast<CUmemLocationType>(type);
  prop->requestedHandleTypes = static_cast<CUmemAllocationHandleType>(types);
  prop->allocFlags.gpuDirectRDMACapable = static_cast<unsigned char>(rdma);
  return true;
}

// In a CUipcMemHandle: where the memfd is, as long as the allocation lives.
struct IpcHandle {
  char magic[16];
  pid_t pid;
  int fd;
  std::uint64_t inode, bytes;
};
constexpr char kIpcMagic[16] = "softgpu-ipc";
static_assert(sizeof(IpcHandle) <= sizeof(CUipcMemHandle));

// Back to addresses without memory.
void hide(CUdeviceptr at, std::size_t bytes) {
  ::mmap(pointer(at), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
         0);
}

int protection(CUmemAccess_flags flags) {
  switch (flags) {
    case CU_MEM_ACCESS_FLAGS_PROT_READ:
      return PROT_READ;
    case CU_MEM_ACCESS_FLAGS_PROT_READWRITE:
      return PROT_READ | PROT_WRITE;
    default:
      return PROT_NONE;
  }
}

}  // namespace

Physical::~Physical() {
  if (fd >= 0) ::close(fd);
  --physical_count;
  if (on_device() && !imported) device_bytes_used -= bytes;
}

Memory& Memory::get() {
  static auto* const kMemory = new Memory;
  return *kMemory;
}

std::size_t Memory::device_bytes() { return device_bytes_used.load(); }

CUresult Memory::reserve(CUdeviceptr* out, std::size_t bytes, std::size_t alignment,
                         CUdeviceptr hint) {
  const std::size_t granularity = settings().granularity;
  if (out == nullptr || bytes == 0 || bytes % granularity != 0) return CUDA_ERROR_INVALID_VALUE;
  if (alignment != 0 && !power_of_two(alignment)) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard lock(mu_);
  const CUdeviceptr at = reserve_addresses(bytes, std::max(alignment, granularity), hint);
  if (at == 0) return CUDA_ERROR_OUT_OF_MEMORY;
  ranges_[at] = {.bytes = bytes, .owner = Owner::kVmm, .id = next_id_++};
  *out = at;
  return CUDA_SUCCESS;
}

CUresult Memory::free_reservation(CUdeviceptr at, std::size_t bytes) {
  const std::lock_guard lock(mu_);
  const auto range = ranges_.find(at);
  if (range == ranges_.end() || range->second.owner != Owner::kVmm ||
      range->second.bytes != bytes || range->second.mapped > 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  ::munmap(pointer(at), bytes);
  ranges_.erase(range);
  return CUDA_SUCCESS;
}

CUresult Memory::create_locked(std::shared_ptr<Physical>* out, std::size_t bytes,
                               const CUmemAllocationProp& prop) {
  auto physical = std::make_shared<Physical>();
  ++physical_count;
  physical->bytes = bytes;
  physical->prop = prop;
  // The destructor takes it off again.
  if (physical->on_device()) {
    if (device_bytes_used.fetch_add(bytes) + bytes > settings().memory_bytes) {
      return CUDA_ERROR_OUT_OF_MEMORY;
    }
  }
  physical->fd = ::memfd_create(name_of(prop).c_str(), MFD_CLOEXEC);
  if (physical->fd < 0 || ::ftruncate(physical->fd, static_cast<off_t>(bytes)) != 0) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  *out = std::move(physical);
  return CUDA_SUCCESS;
}

CUresult Memory::create(CUmemGenericAllocationHandle* out, std::size_t bytes,
                        const CUmemAllocationProp& prop) {
  if (out == nullptr || bytes == 0 || bytes % settings().granularity != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (prop.type != CU_MEM_ALLOCATION_TYPE_PINNED) return CUDA_ERROR_INVALID_VALUE;
  constexpr unsigned kTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  if ((prop.requestedHandleTypes & ~kTypes) != 0) return CUDA_ERROR_NOT_SUPPORTED;
  switch (prop.location.type) {
    case CU_MEM_LOCATION_TYPE_DEVICE:
      if (prop.location.id != 0) return CUDA_ERROR_INVALID_DEVICE;
      break;
    case CU_MEM_LOCATION_TYPE_HOST:
      if (prop.requestedHandleTypes != 0) return CUDA_ERROR_INVALID_VALUE;
      break;
    case CU_MEM_LOCATION_TYPE_HOST_NUMA:
      if (prop.location.id < 0 || prop.location.id > 63 || !node_exists(prop.location.id)) {
        return CUDA_ERROR_INVALID_VALUE;
      }
      if ((settings().refuse_numa >> prop.location.id & 1) != 0) return CUDA_ERROR_NOT_SUPPORTED;
      break;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  const std::lock_guard lock(mu_);
  std::shared_ptr<Physical> physical;
  if (const CUresult made = create_locked(&physical, bytes, prop); made != CUDA_SUCCESS) {
    return made;
  }
  *out = next_handle_++;
  handles_[*out] = {std::move(physical), 1};
  return CUDA_SUCCESS;
}

bool Memory::handle(CUmemGenericAllocationHandle handle, Handle** out) {
  const auto found = handles_.find(handle);
  if (found == handles_.end()) return false;
  *out = &found->second;
  return true;
}

CUresult Memory::retain(CUmemGenericAllocationHandle* out, CUdeviceptr at) {
  const std::lock_guard lock(mu_);
  const auto mapping = mapping_of(at);
  const auto range = range_of(at);
  if (out == nullptr || mapping == mappings_.end()) return CUDA_ERROR_INVALID_VALUE;
  if (range == ranges_.end() || range->second.owner != Owner::kVmm) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  for (auto& [id, handle] : handles_) {
    if (handle.physical != mapping->second.physical) continue;
    ++handle.references;
    *out = id;
    return CUDA_SUCCESS;
  }
  *out = next_handle_++;
  handles_[*out] = {mapping->second.physical, 1};
  return CUDA_SUCCESS;
}

CUresult Memory::release(CUmemGenericAllocationHandle id) {
  const std::lock_guard lock(mu_);
  Handle* found = nullptr;
  if (!handle(id, &found)) return CUDA_ERROR_INVALID_VALUE;
  if (--found->references == 0) handles_.erase(id);
  return CUDA_SUCCESS;
}

CUresult Memory::properties(CUmemGenericAllocationHandle id, CUmemAllocationProp* out) {
  const std::lock_guard lock(mu_);
  Handle* found = nullptr;
  if (out == nullptr || !handle(id, &found)) return CUDA_ERROR_INVALID_VALUE;
  *out = found->physical->prop;
  return CUDA_SUCCESS;
}

CUresult Memory::export_fd(CUmemGenericAllocationHandle id, int* out) {
  const std::lock_guard lock(mu_);
  Handle* found = nullptr;
  if (out == nullptr || !handle(id, &found)) return CUDA_ERROR_INVALID_VALUE;
  if ((found->physical->prop.requestedHandleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) ==
      0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *out = ::fcntl(found->physical->fd, F_DUPFD_CLOEXEC, 0);
  return *out >= 0 ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}

CUresult Memory::import_fd(CUmemGenericAllocationHandle* out, int fd) {
  struct stat imported {};
  pid_t maker = 0;
  CUmemAllocationProp prop{};
  if (out == nullptr || ::fstat(fd, &imported) != 0 || !read_name(fd, &maker, &prop)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const std::lock_guard lock(mu_);
  const auto same = [&imported](const std::shared_ptr<Physical>& physical) {
    struct stat other {};
    return ::fstat(physical->fd, &other) == 0 && other.st_ino == imported.st_ino &&
           other.st_dev == imported.st_dev;
  };
  *out = next_handle_;
  for (const auto& [id, handle] : handles_) {
    if (same(handle.physical)) {
      handles_[next_handle_++] = {handle.physical, 1};
      return CUDA_SUCCESS;
    }
  }
  for (const auto& [at, mapping] : mappings_) {
    if (same(mapping.physical)) {
      handles_[next_handle_++] = {mapping.physical, 1};
      return CUDA_SUCCESS;
    }
  }
  // Nothing here refers to it any more, or it is another process's: that one's share of the device.
  auto physical = std::make_shared<Physical>();
  ++physical_count;
  physical->fd = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  physical->bytes = static_cast<std::size_t>(imported.st_size);
  physical->prop = prop;
  physical->imported = maker != ::getpid();
  if (physical->on_device() && !physical->imported) device_bytes_used += physical->bytes;
  if (physical->fd < 0) return CUDA_ERROR_OPERATING_SYSTEM;
  handles_[next_handle_++] = {std::move(physical), 1};
  return CUDA_SUCCESS;
}

std::map<CUdeviceptr, Memory::Range>::iterator Memory::range_of(CUdeviceptr at) {
  auto range = ranges_.upper_bound(at);
  if (range == ranges_.begin()) return ranges_.end();
  --range;
  return at - range->first < range->second.bytes ? range : ranges_.end();
}

std::map<CUdeviceptr, Memory::Mapping>::iterator Memory::mapping_of(CUdeviceptr at) {
  auto mapping = mappings_.upper_bound(at);
  if (mapping == mappings_.begin()) return mappings_.end();
  --mapping;
  return at - mapping->first < mapping->second.bytes ? mapping : mappings_.end();
}

CUresult Memory::map(CUdeviceptr at, std::size_t bytes, CUmemGenericAllocationHandle id) {
  const std::size_t granularity = settings().granularity;
  if (at % granularity != 0 || bytes == 0 || bytes % granularity != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const std::lock_guard lock(mu_);
  Handle* found = nullptr;
  if (!handle(id, &found) || bytes > found->physical->bytes) return CUDA_ERROR_INVALID_VALUE;
  const auto range = range_of(at);
  if (range == ranges_.end() || range->second.owner != Owner::kVmm ||
      at + bytes > range->first + range->second.bytes) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const auto next = mappings_.lower_bound(at);
  if (next != mappings_.end() && next->first < at + bytes) return CUDA_ERROR_INVALID_VALUE;
  if (next != mappings_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second.bytes > at) return CUDA_ERROR_INVALID_VALUE;
  }
  // Without access nothing is mapped for the processor yet.
  mappings_[at] = {.bytes = bytes, .physical = found->physical};
  ++range->second.mapped;
  return CUDA_SUCCESS;
}

bool Memory::whole_mappings(CUdeviceptr at, std::size_t bytes) {
  CUdeviceptr expected = at;
  for (auto it = mappings_.find(at); it != mappings_.end() && it->first == expected; ++it) {
    expected += it->second.bytes;
    if (expected >= at + bytes) return expected == at + bytes;
  }
  return false;
}

CUresult Memory::unmap(CUdeviceptr at, std::size_t bytes) {
  const std::lock_guard lock(mu_);
  const auto range = range_of(at);
  if (range == ranges_.end() || range->second.owner != Owner::kVmm || bytes == 0 ||
      !whole_mappings(at, bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  hide(at, bytes);
  const auto first = mappings_.find(at);
  const auto last = mappings_.lower_bound(at + bytes);
  range->second.mapped -= static_cast<std::size_t>(std::distance(first, last));
  mappings_.erase(first, last);
  return CUDA_SUCCESS;
}

CUresult Memory::set_access(CUdeviceptr at, std::size_t bytes, const CUmemAccessDesc* desc,
                            std::size_t count) {
  if (desc == nullptr || count == 0 || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard lock(mu_);
  const auto range = range_of(at);
  if (range == ranges_.end() || range->second.owner != Owner::kVmm || !whole_mappings(at, bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  for (std::size_t i = 0; i < count; ++i) {
    const CUmemLocation& location = desc[i].location;
    const bool device = location.type == CU_MEM_LOCATION_TYPE_DEVICE;
    if (device && location.id != 0) return CUDA_ERROR_INVALID_DEVICE;
    if (!device && location.type != CU_MEM_LOCATION_TYPE_HOST &&
        location.type != CU_MEM_LOCATION_TYPE_HOST_NUMA) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    if (desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE &&
        desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READ &&
        desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    for (auto m = mappings_.find(at); m != mappings_.end() && m->first < at + bytes; ++m) {
      // The processor reaches host memory only, that of a node under this name only.
      const CUmemLocationType type = m->second.physical->prop.location.type;
      if (!device && m->second.physical->on_device()) return CUDA_ERROR_INVALID_VALUE;
      if (location.type == CU_MEM_LOCATION_TYPE_HOST_NUMA && type != location.type) {
        return CUDA_ERROR_INVALID_VALUE;
      }
    }
  }
  for (auto m = mappings_.find(at); m != mappings_.end() && m->first < at + bytes; ++m) {
    for (std::size_t i = 0; i < count; ++i) {
      const bool device = desc[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE;
      (device ? m->second.device : m->second.host) = desc[i].flags;
    }
    const int prot = protection(m->second.device) | protection(m->second.host);
    void* mapped = ::mmap(pointer(m->first), m->second.bytes, prot, MAP_SHARED | MAP_FIXED,
                          m->second.physical->fd, 0);
    if (mapped == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  }
  return CUDA_SUCCESS;
}

CUresult Memory::access(unsigned long long* flags, const CUmemLocation& location, CUdeviceptr at) {
  const std::lock_guard lock(mu_);
  const auto mapping = mapping_of(at);
  if (flags == nullptr || mapping == mappings_.end()) return CUDA_ERROR_INVALID_VALUE;
  *flags =
      location.type == CU_MEM_LOCATION_TYPE_DEVICE ? mapping->second.device : mapping->second.host;
  return CUDA_SUCCESS;
}

CUresult Memory::alloc(CUdeviceptr* out, std::size_t bytes) {
  if (out == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  const std::size_t whole = (bytes + 4095) / 4096 * 4096;
  const std::lock_guard lock(mu_);
  CUmemAllocationProp prop{};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  std::shared_ptr<Physical> physical;
  if (const CUresult made = create_locked(&physical, whole, prop); made != CUDA_SUCCESS) {
    return made;
  }
  return place_locked(out, std::move(physical), {.bytes = bytes, .owner = Owner::kAlloc});
}

CUresult Memory::place_locked(CUdeviceptr* out, std::shared_ptr<Physical> physical,
                              const Range& range) {
  const std::size_t whole = physical->bytes;
  const CUdeviceptr at = reserve_addresses(whole, 4096, 0);
  if (at == 0) return CUDA_ERROR_OUT_OF_MEMORY;
  ::mmap(pointer(at), whole, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, physical->fd, 0);
  ranges_[at] = range;
  ranges_[at].id = next_id_++;
  ranges_[at].mapped = 1;
  mappings_[at] = {.bytes = whole,
                   .physical = std::move(physical),
                   .device = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  *out = at;
  return CUDA_SUCCESS;
}

CUresult Memory::alloc_host(void** out, std::size_t bytes) {
  if (out == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  const std::size_t whole = (bytes + 4095) / 4096 * 4096;
  void* at = ::mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  const std::lock_guard lock(mu_);
  ranges_[reinterpret_cast<CUdeviceptr>(at)] = {
      .bytes = whole, .owner = Owner::kHost, .id = next_id_++};
  *out = at;
  return CUDA_SUCCESS;
}

CUresult Memory::free(CUdeviceptr at, Owner owner) {
  const std::lock_guard lock(mu_);
  const auto range = ranges_.find(at);
  if (range == ranges_.end() || range->second.owner != owner || range->second.registered) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::size_t whole = range->second.bytes;
  if (const auto mapping = mappings_.find(at); mapping != mappings_.end()) {
    whole = mapping->second.bytes;
    mappings_.erase(mapping);
  }
  ::munmap(pointer(at), whole);
  ranges_.erase(range);
  return CUDA_SUCCESS;
}

CUresult Memory::register_host(void* host, std::size_t bytes) {
  const auto at = reinterpret_cast<CUdeviceptr>(host);
  if (host == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard lock(mu_);
  const auto next = ranges_.lower_bound(at);
  if ((next != ranges_.end() && next->first < at + bytes) || range_of(at) != ranges_.end()) {
    return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  }
  ranges_[at] = {.bytes = bytes, .owner = Owner::kHost, .registered = true, .id = next_id_++};
  return CUDA_SUCCESS;
}

CUresult Memory::unregister_host(void* host) {
  const std::lock_guard lock(mu_);
  const auto range = ranges_.find(reinterpret_cast<CUdeviceptr>(host));
  if (range == ranges_.end() || !range->second.registered) {
    return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
  }
  ranges_.erase(range);
  return CUDA_SUCCESS;
}

CUresult Memory::ipc_handle(CUipcMemHandle* out, CUdeviceptr at) {
  const std::lock_guard lock(mu_);
  const auto range = ranges_.find(at);
  // Not what was mapped by hand, nor what is another process's.
  if (out == nullptr || range == ranges_.end() || range->second.owner != Owner::kAlloc) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const Physical& physical = *mappings_.find(at)->second.physical;
  struct stat memory {};
  if (::fstat(physical.fd, &memory) != 0) return CUDA_ERROR_OPERATING_SYSTEM;
  IpcHandle handle{{}, ::getpid(), physical.fd, memory.st_ino, range->second.bytes};
  std::memcpy(handle.magic, kIpcMagic, sizeof kIpcMagic);
  *out = {};
  std::memcpy(out, &handle, sizeof handle);
  return CUDA_SUCCESS;
}

CUresult Memory::ipc_open(CUdeviceptr* out, const CUipcMemHandle& opaque) {
  IpcHandle handle{};
  std::memcpy(&handle, &opaque, sizeof handle);
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (std::memcmp(handle.magic, kIpcMagic, sizeof kIpcMagic) != 0) return CUDA_ERROR_INVALID_HANDLE;
  if (handle.pid == ::getpid()) return CUDA_ERROR_INVALID_CONTEXT;
  const std::string path =
      "/proc/" + std::to_string(handle.pid) + "/fd/" + std::to_string(handle.fd);
  auto physical = std::make_shared<Physical>();
  ++physical_count;
  physical->imported = true;
  physical->fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  struct stat memory {};
  pid_t maker = 0;
  // The number may be another file's by now: the allocation is gone.
  if (physical->fd < 0 || ::fstat(physical->fd, &memory) != 0 || memory.st_ino != handle.inode ||
      !read_name(physical->fd, &maker, &physical->prop)) {
    return CUDA_ERROR_INVALID_HANDLE;
  }
  physical->bytes = static_cast<std::size_t>(memory.st_size);
  const std::lock_guard lock(mu_);
  for (auto& [at, range] : ranges_) {
    if (range.owner != Owner::kIpc) continue;
    struct stat other {};
    if (::fstat(mappings_[at].physical->fd, &other) != 0 || other.st_ino != memory.st_ino) continue;
    ++range.opened;
    *out = at;
    return CUDA_SUCCESS;
  }
  return place_locked(out, std::move(physical),
                      {.bytes = handle.bytes, .owner = Owner::kIpc, .opened = 1});
}

CUresult Memory::ipc_close(CUdeviceptr at) {
  {
    const std::lock_guard lock(mu_);
    const auto range = ranges_.find(at);
    if (range == ranges_.end() || range->second.owner != Owner::kIpc) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    if (--range->second.opened > 0) return CUDA_SUCCESS;
  }
  return free(at, Owner::kIpc);
}

CUresult Memory::dma_buf(int* out, CUdeviceptr at, std::size_t bytes) {
  if (out == nullptr || bytes == 0 || at % 4096 != 0 || bytes % 4096 != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const std::lock_guard lock(mu_);
  const auto first = mapping_of(at);
  const auto range = range_of(at);
  if (first == mappings_.end() || range == ranges_.end()) return CUDA_ERROR_INVALID_VALUE;
  const CUmemAllocationProp& prop = first->second.physical->prop;
  if (range->second.owner == Owner::kIpc) return CUDA_ERROR_INVALID_VALUE;
  if (range->second.owner == Owner::kVmm && prop.allocFlags.gpuDirectRDMACapable == 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  for (CUdeviceptr next = at; next < at + bytes;) {
    const auto mapping = mapping_of(next);
    if (mapping == mappings_.end()) return CUDA_ERROR_INVALID_VALUE;
    const Physical& physical = *mapping->second.physical;
    if (!physical.on_device() || physical.prop.requestedHandleTypes != prop.requestedHandleTypes ||
        physical.prop.allocFlags.gpuDirectRDMACapable != prop.allocFlags.gpuDirectRDMACapable) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    next = mapping->first + mapping->second.bytes;
  }
  // To the processor there is nothing in one: that it is a descriptor of one part is not seen.
  *out = ::fcntl(first->second.physical->fd, F_DUPFD_CLOEXEC, 0);
  return *out >= 0 ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}

CUresult Memory::set_sync_memops(CUdeviceptr at, bool on) {
  const std::lock_guard lock(mu_);
  const auto range = range_of(at);
  if (range == ranges_.end()) return CUDA_ERROR_INVALID_VALUE;
  if (range->second.owner == Owner::kVmm) return CUDA_ERROR_NOT_SUPPORTED;  // ucx issue 9895
  range->second.sync_memops = on;
  return CUDA_SUCCESS;
}

bool Memory::find(CUdeviceptr at, Place* out) {
  const std::lock_guard lock(mu_);
  const auto range = range_of(at);
  if (range == ranges_.end()) return false;
  *out = Place{};
  out->base = range->first;
  out->bytes = range->second.bytes;
  out->owner = range->second.owner;
  out->id = range->second.id;
  out->sync_memops = range->second.sync_memops;
  if (const auto mapping = mapping_of(at); mapping != mappings_.end()) {
    out->physical = mapping->second.physical;
    out->mapping = mapping->first;
  }
  return true;
}

bool Memory::in_one_place(CUdeviceptr at, std::size_t bytes) {
  const std::lock_guard lock(mu_);
  auto mapping = mappings_.upper_bound(at);
  if (mapping != mappings_.begin()) --mapping;
  const Physical* first = nullptr;
  for (; mapping != mappings_.end() && mapping->first < at + bytes; ++mapping) {
    if (mapping->first + mapping->second.bytes <= at) continue;
    const Physical* other = mapping->second.physical.get();
    if (first != nullptr && first->on_device() != other->on_device()) return false;
    first = other;
  }
  return true;
}

std::uint64_t Memory::live(int kind) {
  const std::lock_guard lock(mu_);
  std::uint64_t count = 0;
  switch (kind) {
    case SOFTGPU_RESERVATIONS:
      for (const auto& [at, range] : ranges_) count += range.owner == Owner::kVmm;
      return count;
    case SOFTGPU_HANDLES:
      return physical_count.load();
    case SOFTGPU_MAPPINGS:
      for (const auto& [at, range] : ranges_) {
        if (range.owner == Owner::kVmm) count += range.mapped;
      }
      return count;
    default:
      return device_bytes_used.load();
  }
}

}  // namespace softgpu
