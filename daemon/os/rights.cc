#include "os/rights.h"

#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace kvmem::os {

Status drop_capabilities(bool keeps_nice) {
  if (::geteuid() == 0) return {};
  // (Those of the ambient set go with the permitted ones.)
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {};
  if (::syscall(SYS_capget, &header, sets) != 0) return Status::from_errno("capget");
  for (unsigned i = 0; i < _LINUX_CAPABILITY_U32S_3; ++i) {
    const bool is_here = keeps_nice && i == CAP_SYS_NICE / 32;
    const std::uint32_t kept = is_here ? 1U << CAP_SYS_NICE % 32 : 0;
    sets[i] = {sets[i].permitted & kept, sets[i].permitted & kept, 0};
  }
  if (::syscall(SYS_capset, &header, sets) != 0) return Status::from_errno("capset");
  return {};
}

}  // namespace kvmem::os
