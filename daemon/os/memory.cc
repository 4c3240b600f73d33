#include "os/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cstdio>
#include <string>

#include "base/page.h"
#include "os/kernel_file.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace kvmem::os {
namespace {

constexpr unsigned kHugeTlb2MiB = 21U << 26;  // MFD_HUGE_2MB, absent from glibc 2.36's headers
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;

}  // namespace

Result<SharedMemory> SharedMemory::map(UniqueFd fd, std::size_t size_bytes, MemoryKind kind) {
  // Aligned to the page by hand: a memfd mapping is not, unless its pages are huge.
  const std::size_t reserve_bytes = size_bytes + kPageBytes;
  void* reserve =
      ::mmap(nullptr, reserve_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserve == MAP_FAILED) return Status::from_errno("mmap: address space");
  const auto low = reinterpret_cast<std::uintptr_t>(reserve);
  const std::uintptr_t start = align_up(low, kPageBytes);
  const std::uintptr_t end = start + size_bytes;
  if (start > low) ::munmap(reserve, start - low);
  if (low + reserve_bytes > end) ::munmap(reinterpret_cast<void*>(end), low + reserve_bytes - end);
  // NORESERVE: huge TLB pages are taken page by page, not all at once.
  void* address = ::mmap(reinterpret_cast<void*>(start), size_bytes, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd.get(), 0);
  if (address == MAP_FAILED) {
    const Status status = Status::from_errno("mmap: region memory");
    ::munmap(reinterpret_cast<void*>(start), size_bytes);
    return status;
  }
  SharedMemory memory;
  memory.mapping_ = UniqueMapping({address, size_bytes});
  memory.fd_ = std::move(fd);
  memory.kind_ = kind;
  (void)::madvise(address, size_bytes, MADV_DONTDUMP);
  (void)::madvise(address, size_bytes, MADV_DONTFORK);
  if (kind == MemoryKind::kHugeShmem) (void)::madvise(address, size_bytes, MADV_HUGEPAGE);
  return memory;
}

Result<SharedMemory> SharedMemory::create(const char* name, std::size_t size_bytes, MemoryKind kind,
                                          bool shared_read_only) {
  const unsigned huge = kind == MemoryKind::kHugeTlb ? MFD_HUGETLB | kHugeTlb2MiB : 0U;
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | huge));
  if (!fd) return Status::from_errno("memfd_create");
  if (::fchmod(fd.get(), shared_read_only ? 0444 : 0600) != 0) return Status::from_errno("fchmod");
  if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0)
    return Status::from_errno("ftruncate");
  if (::fcntl(fd.get(), F_ADD_SEALS, kSeals | F_SEAL_SEAL) != 0)
    return Status::from_errno("F_ADD_SEALS");
  return map(std::move(fd), size_bytes, kind);
}

Result<SharedMemory> SharedMemory::adopt(UniqueFd fd, std::size_t size_bytes, MemoryKind kind,
                                         std::uint32_t owner_uid) {
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return Status::from_errno("fstat");
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals)
    return Status(Code::kInvalid, "not sealed region memory");
  if (static_cast<std::uint64_t>(st.st_size) != size_bytes)
    return Status(Code::kInvalid, "region memory of another size");
  if (st.st_uid != owner_uid) return Status(Code::kInvalid, "region memory of another owner");
  if ((st.st_blksize == static_cast<blksize_t>(kPageBytes)) != (kind == MemoryKind::kHugeTlb) &&
      kind != MemoryKind::kHugeShmem) {
    return Status(Code::kInvalid, "region memory of another kind");
  }
  if ((::fcntl(fd.get(), F_GETFL) & O_ACCMODE) != O_RDWR) {
    KV_ASSIGN_OR_RETURN(fd, reopen(fd.get(), O_RDWR));
  }
  return map(std::move(fd), size_bytes, kind);
}

Status SharedMemory::populate(std::size_t offset, std::size_t size_bytes, NodeSet nodes) const {
  const NodeBinding binding(nodes);
  // (Whatever the reason: there is no memory to be had there.)
  if (!binding.status().ok())
    return Status(Code::kNoMemory, binding.status().what(), binding.status().detail());
  if (::madvise(data() + offset, size_bytes, MADV_POPULATE_WRITE) == 0) return {};
  // EFAULT: the fault would have raised SIGBUS, the pool is empty.
  if (errno == ENOMEM || errno == EFAULT)
    return Status(Code::kNoMemory, "no memory for a page", errno);
  return Status::from_errno("madvise(MADV_POPULATE_WRITE)");
}

Status SharedMemory::punch(std::size_t offset, std::size_t size_bytes) const {
  if (::fallocate(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                  static_cast<off_t>(size_bytes)) != 0) {
    return Status::from_errno("fallocate(PUNCH_HOLE)");
  }
  return {};
}

Status SharedMemory::move_to(std::size_t offset, std::size_t size_bytes, NodeSet nodes) const {
  const bool huge = kind_ == MemoryKind::kHugeTlb;
  const std::size_t step = huge ? kPageBytes : kOsPageBytes;
  Status status(Code::kNoMemory, "there is no node");
  for (const int node : by_room(nodes, huge)) {
    status = move_memory(data() + offset, size_bytes, step, node);
    if (status.code() != Code::kNoMemory) break;
  }
  return status;
}

Result<UniqueFd> reopen(int fd, int open_flags) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  UniqueFd again(::open(path, open_flags | O_CLOEXEC));
  if (!again) return Status::from_errno("open: reopening a descriptor");
  return again;
}

std::uint64_t huge_tlb_pages_available() {
  const std::string pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  const auto value = [&](const char* name) { return kernel_number(pool + name); };
  const std::uint64_t overcommit = value("nr_overcommit_hugepages");
  const std::uint64_t surplus = value("surplus_hugepages");
  const std::uint64_t reserved = value("resv_hugepages");
  const std::uint64_t free = value("free_hugepages");
  return (free > reserved ? free - reserved : 0) +
         (overcommit > surplus ? overcommit - surplus : 0);
}

bool huge_shmem_available() {
  const std::string text = kernel_text("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  const auto is = [&](const char* choice) { return text.find(choice) != std::string::npos; };
  return is("[advise]") || is("[always]") || is("[within_size]") || is("[force]");
}

MemoryKind ordinary_memory() {
  return huge_shmem_available() ? MemoryKind::kHugeShmem : MemoryKind::kShmem;
}

std::uint64_t memory_total_bytes() { return kernel_bytes("/proc/meminfo", "MemTotal:"); }

std::uint64_t memory_available_bytes() { return kernel_bytes("/proc/meminfo", "MemAvailable:"); }

std::uint64_t private_resident_bytes() {
  return kernel_bytes("/proc/self/status", "RssAnon:") +
         kernel_bytes("/proc/self/status", "RssFile:");
}

}  // namespace kvmem::os
