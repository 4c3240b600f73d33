#include <algorithm>
#include <fstream>
#include <string>

#include "config/config.h"
#include "os/kernel_file.h"

namespace kvmem::config {
namespace {

// This process's path in the unified hierarchy: the line "0::/a/b" of /proc/self/cgroup.
std::string cgroup_path(const std::string& root) {
  std::ifstream in(root + "/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("0::/")) return line.substr(3);
  }
  return "/";
}

}  // namespace

Machine Machine::detect(const std::string& root) {
  Machine machine;
  machine.memory_bytes = os::kernel_bytes(root + "/proc/meminfo", "MemTotal:");
  machine.nodes = os::numa_nodes(root);
  for (std::string path = cgroup_path(root);;) {
    std::string limit_path = root;
    limit_path.append("/sys/fs/cgroup").append(path).append("/memory.max");
    const std::uint64_t limit_bytes = os::kernel_number(limit_path);  // "max": 0
    if (limit_bytes != 0) machine.memory_bytes = std::min(machine.memory_bytes, limit_bytes);
    if (path.empty() || path == "/") return machine;
    path.resize(path.find_last_of('/'));
  }
}

}  // namespace kvmem::config
