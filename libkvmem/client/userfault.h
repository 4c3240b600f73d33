// The process's userfaultfd: one a process, all regions' ranges are registered with it.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "base/unique_handle.h"

namespace kvmem {

// `device`: /dev/userfaultfd lent by the daemon, or -1. Tried in turn: the lent device (needs no
// right of the caller's and passes seccomp profiles that deny userfaultfd(2)), the caller's own
// /dev/userfaultfd, userfaultfd(2). A descriptor that serves only user-mode faults is accepted
// with KVMEM_USER_FAULTS_ONLY alone.
Result<UniqueFd> open_userfault(int device);

// 0 or -errno. Both ends are multiples of the backing's OS page.
int userfault_register(int fd, std::uint64_t address, std::uint64_t size_bytes, bool write_protect);
int userfault_write_protect(int fd, std::uint64_t address, std::uint64_t size_bytes);
// Threads that wait for a fault in the range try again.
int userfault_wake(int fd, std::uint64_t address, std::uint64_t size_bytes);

}  // namespace kvmem
