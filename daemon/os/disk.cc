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

Result<std::string> disk_of(const std::string& path, const std::string& sys) {
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
    if (next.empty()) return entry.filename().string();
    auto number = number_in(next / "dev");
    if (!number.ok()) return number.status();
    device = *number;
  }
  return Status(Code::kUnsupported, "the store's device has too many layers");
}

std::vector<std::string> paths_of(const std::string& disk, const std::string& sys) {
  // The paths of nvme0n1 are nvme0c0n1, nvme0c1n1, ...: drivers/nvme/host/multipath.c.
  std::vector<std::string> paths;
  const std::size_t digits = disk.find_first_of("0123456789");
  const std::size_t space = digits == std::string::npos ? digits : disk.find('n', digits);
  if (!disk.starts_with("nvme") || space == std::string::npos) return paths;
  const std::string before = disk.substr(0, space) + "c";
  const std::string after = disk.substr(space);
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(sys + "/block", error)) {
    const std::string name = entry.path().filename();
    if (name.starts_with(before) && name.ends_with(after)) paths.push_back(name);
  }
  return paths;
}

}  // namespace kvmem::os
