#include "os/rights.h"

#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace kvmem::os {

Status drop_capabilities() {
  if (::geteuid() == 0) return {};
  // (Those of the ambient set go with the permitted ones.)
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  const __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  if (::syscall(SYS_capset, &header, none) != 0) return Status::from_errno("capset");
  return {};
}

}  // namespace kvmem::os
