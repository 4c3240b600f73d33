// userfaultfd as the daemon uses it: an engine's descriptor, its faults, and the edits that answer
// them. Calls act on the engine's address space; each wakes the threads that wait in the range.
//
// An engine that exits or unmaps makes every call end with kPeerGone or do nothing: never an error
// of ours.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "base/unique_handle.h"

namespace kvmem::os {

struct Fault {
  std::uint64_t address = 0;
  bool write = false;            // the access writes
  bool write_protected = false;  // the page is mapped and write-protected
  bool minor = false;            // the page is in the memfd but not mapped
};

// /dev/userfaultfd, to be lent to engines that may not open it themselves.
Result<UniqueFd> open_userfault_device();

// Maps the memfd's pages of the range. Parts that are mapped already stay as they are.
// kNotFound: the memfd has no page there; nobody was woken.
// kUnsupported: `write_protected` asked for and the kernel (before 6.4) cannot.
// `step_bytes`: the size of the memory's own pages.
Status map_pages(int fd, std::uint64_t address, std::size_t size_bytes, std::size_t step_bytes,
                 bool write_protected);
// Parts that the engine has unmapped are passed over; all others are done when it returns ok.
Status write_protect(int fd, std::uint64_t address, std::size_t size_bytes, bool on);
Status wake(int fd, std::uint64_t address, std::size_t size_bytes);
// Access raises SIGBUS from now on. kUnsupported before 6.6.
Status poison(int fd, std::uint64_t address, std::size_t size_bytes);

}  // namespace kvmem::os
