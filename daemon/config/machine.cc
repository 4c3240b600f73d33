#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>

#include "config/config.h"

namespace kvmem::config {
namespace {

// The first number after `prefix` at the start of a line; 0 when there is none ("max" included).
std::uint64_t number_after(std::istream& in, std::string_view prefix) {
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(prefix)) continue;
    const std::size_t begin = line.find_first_of("0123456789", prefix.size());
    if (begin == std::string::npos) return 0;
    std::uint64_t value = 0;
    const auto result = std::from_chars(line.data() + begin, line.data() + line.size(), value);
    return result.ec == std::errc{} ? value : 0;
  }
  return 0;
}

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
  std::ifstream meminfo(root + "/proc/meminfo");
  machine.memory_bytes = number_after(meminfo, "MemTotal:") * 1024;
  machine.nodes = os::numa_nodes(root);
  for (std::string path = cgroup_path(root);;) {
    std::string limit_path = root;
    limit_path.append("/sys/fs/cgroup").append(path).append("/memory.max");
    std::ifstream limit(limit_path);
    const std::uint64_t limit_bytes = number_after(limit, "");
    if (limit_bytes != 0) machine.memory_bytes = std::min(machine.memory_bytes, limit_bytes);
    if (path.empty() || path == "/") return machine;
    path.resize(path.find_last_of('/'));
  }
}

}  // namespace kvmem::config
