// The disk below a path.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/status.h"

namespace kvmem::os {

// The whole disk that `path` lies on, or would: a file that is not there yet is looked for in its
// folder. Goes through partitions and through device-mapper devices of one disk.
// kUnsupported: the file system or the device lies on none, or on several. Reads below `sys`, which
// only tests give.
Result<dev_t> disk_of(const std::string& path, const std::string& sys = "/sys");

}  // namespace kvmem::os
