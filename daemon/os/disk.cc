#include "os/disk.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

namespace kvmem::os {
namespace {

namespace fs = std::filesystem;

constexpr int kLayersMax = 16;

Result<dev_t> number_in(const fs::path& file) {
  std::ifstream in(file);
  unsigned device_major = 0;
  unsigned device_minor = 0;
  char colon = 0;
  if (!(in >> device_major >> colon >> device_minor) || colon != ':')
    return Status(Code::kUnsupported, "the disk below the store is not to be found in sysfs");
  return makedev(device_major, device_minor);
}

}  // namespace

Result<dev_t> disk_of(const std::string& path, const std::string& sys) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    const std::string folder = fs::path(path).parent_path();
    if (::stat(folder.empty() ? "." : folder.c_str(), &info) != 0)
      return Status::from_errno("stat store");
  }
  dev_t device = S_ISBLK(info.st_mode) ? info.st_rdev : info.st_dev;
  for (int layer = 0; layer < kLayersMax; ++layer) {
    if (major(device) == 0) {
      return Status(Code::kUnsupported,
                    "the store's file system lies on no one disk (tmpfs, btrfs, overlay)");
    }
    char name[64];
    std::snprintf(name, sizeof name, "/dev/block/%u:%u", major(device), minor(device));
    std::error_code error;
    const fs::path entry = fs::canonical(sys + name, error);
    if (error) return Status(Code::kUnsupported, "the store's disk is not in sysfs");
    fs::path next;
    if (fs::exists(entry / "partition", error)) {
      next = entry.parent_path();
    } else {
      for (const auto& below : fs::directory_iterator(entry / "slaves", error)) {
        if (!next.empty())
          return Status(Code::kUnsupported, "the store's device lies on several disks");
        next = below.path();
      }
    }
    if (next.empty()) return device;
    auto number = number_in(next / "dev");
    if (!number.ok()) return number;
    device = *number;
  }
  return Status(Code::kUnsupported, "the store's device has too many layers");
}

}  // namespace kvmem::os
