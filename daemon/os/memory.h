// Shared memory whose pages come and go: a memfd, the daemon's own mapping of it, and the calls
// that fill and empty it.
//
// A page that is not populated costs nothing; populate() allocates it zeroed and charges it to the
// daemon's memory cgroup (the hugetlb controller for huge TLB pages); punch() gives it back and
// removes it from every mapping in every process.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "base/unique_handle.h"
#include "os/numa.h"

namespace kvmem::os {

enum class MemoryKind : std::uint32_t {
  kHugeTlb = 1,    // 2 MiB TLB pages: page-table edits cost microseconds
  kHugeShmem = 2,  // shmem with transparent huge pages
  kShmem = 3,      // 4 KiB pages: a 2 MiB page-table edit costs 60 to 700 us
};

class SharedMemory {
 public:
  SharedMemory() = default;
  // Creates `size_bytes` (a multiple of 2 MiB) of empty memory, sealed against resizing.
  // `shared_read_only`: others may open it for reading only (mode 0444).
  static Result<SharedMemory> create(const char* name, std::size_t size_bytes, MemoryKind kind,
                                     bool shared_read_only);
  // Takes over memory made by create() in an earlier process. kInvalid unless it is a memfd of
  // exactly that size, sealed against resizing, and owned by `owner_uid`.
  static Result<SharedMemory> adopt(UniqueFd fd, std::size_t size_bytes, MemoryKind kind,
                                    std::uint32_t owner_uid);

  int fd() const { return fd_.get(); }
  std::byte* data() const { return static_cast<std::byte*>(mapping_.get().address); }
  std::size_t size_bytes() const { return mapping_.get().size_bytes; }
  MemoryKind kind() const { return kind_; }

  // Allocates and zeroes [offset, offset+size), from `nodes`, or wherever the kernel likes. Pages
  // that are there keep their bytes and their place. Any thread. kNoMemory when the pool, the node
  // or the machine has none left.
  Status populate(std::size_t offset, std::size_t size_bytes, NodeSet nodes = {}) const;
  // Frees [offset, offset+size); it reads as absent everywhere. Any thread.
  Status punch(std::size_t offset, std::size_t size_bytes) const;
  // Moves [offset, offset+size), which is in memory, to one of `nodes`, if it can the one with the
  // most free. As os::move_memory().
  Status move_to(std::size_t offset, std::size_t size_bytes, NodeSet nodes) const;

 private:
  static Result<SharedMemory> map(UniqueFd fd, std::size_t size_bytes, MemoryKind kind);

  UniqueFd fd_;
  UniqueMapping mapping_;
  MemoryKind kind_ = MemoryKind::kShmem;
};

// A second descriptor of the same memory that cannot write. Works for any open file of ours.
Result<UniqueFd> reopen(int fd, int open_flags);

// How many 2 MiB TLB pages can be had now: free in the pool plus what overcommit still allows.
std::uint64_t huge_tlb_pages_available();
// Whether shmem gives transparent huge pages to those that ask.
bool huge_shmem_available();
// The better of the kinds that need no pool.
MemoryKind ordinary_memory();
std::uint64_t memory_total_bytes();
// What can be had without swapping and without the out-of-memory killer; pools are not part of it.
std::uint64_t memory_available_bytes();
// Resident set of this process without shared memory.
std::uint64_t private_resident_bytes();

}  // namespace kvmem::os
