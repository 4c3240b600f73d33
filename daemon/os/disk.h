// The disk below a path.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"

namespace kvmem::os {

// The kernel's name of the whole disk that `path` lies on, or would: a file that is not there yet
// is looked for in its folder. Goes through partitions and through device-mapper devices of one
// disk. kUnsupported: the file system or the device lies on none, or on several. Reads below `sys`,
// which only tests give.
Result<std::string> disk_of(const std::string& path, const std::string& sys = "/sys");

// Disks that carry out the requests of `disk`: its paths, where it is an NVMe disk of several.
std::vector<std::string> paths_of(const std::string& disk, const std::string& sys = "/sys");

}  // namespace kvmem::os
