#include "os/numa.h"

#include <numaif.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <tuple>

#include "base/check.h"
#include "os/kernel_file.h"
#include "os/rights.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace kvmem::os {
namespace {

constexpr std::size_t kStepsMax = 512;                       // of 4 KiB: a page of ours
constexpr unsigned long kMaskBits = NodeSet::kNodesMax + 1;  // the kernel takes one off

// Nodes whose memory is in ZONE_MOVABLE alone.
NodeSet movable_nodes(const std::string& root) {
  NodeSet movable;
  NodeSet other;
  std::ifstream in(root + "/proc/zoneinfo");
  int node = -1;
  bool is_movable = false;
  for (std::string line; std::getline(in, line);) {
    std::array<char, 32> zone{};
    if (std::sscanf(line.c_str(), "Node %d, zone %31s", &node, zone.data()) == 2) {
      is_movable = std::string_view(zone.data()) == "Movable";
      continue;
    }
    unsigned long pages = 0;
    if (std::sscanf(line.c_str(), " present %lu", &pages) != 1 || pages == 0) continue;
    if (node < 0 || node >= NodeSet::kNodesMax) continue;
    (is_movable ? movable : other).add(node);
  }
  NodeSet alone;
  for (int n = 0; n < NodeSet::kNodesMax; ++n) {
    if (movable.has(n) && !other.has(n)) alone.add(n);
  }
  return alone;
}

}  // namespace

Result<NodeSet> NodeSet::parse(std::string_view text) {
  NodeSet nodes;
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
  while (!text.empty()) {
    const std::string_view part = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), part.size() + 1));
    const char* const end = part.data() + part.size();
    int first = -1;
    auto read = std::from_chars(part.data(), end, first);
    int last = first;
    if (read.ec == std::errc{} && read.ptr != end && *read.ptr == '-') {
      read = std::from_chars(read.ptr + 1, end, last);
    }
    if (read.ec != std::errc{} || read.ptr != end || first < 0 || last < first)
      return Status(Code::kInvalid, "no list of nodes, such as 1 or 1-2,4");
    if (last >= kNodesMax) return Status(Code::kInvalid, "a node's number is beyond 63");
    for (int node = first; node <= last; ++node) nodes.add(node);
  }
  return nodes;
}

std::string NodeSet::text() const {
  std::string out;
  for (int first = 0; first < kNodesMax; ++first) {
    if (!has(first)) continue;
    int last = first;
    while (has(last + 1)) ++last;
    if (!out.empty()) out += ',';
    out += std::to_string(first);
    if (last > first) out += '-' + std::to_string(last);
    first = last;
  }
  return out;
}

std::vector<NumaNode> numa_nodes(const std::string& root) {
  const std::string folder = root + "/sys/devices/system/node/";
  // Of a list that cannot be read: none.
  const auto list = [&folder](const char* name) {
    auto nodes = NodeSet::parse(kernel_text(folder + name));
    return nodes.ok() ? *nodes : NodeSet();
  };
  const NodeSet with_memory = list("has_memory");
  const NodeSet with_cpus = list("has_cpu");
  const NodeSet online = list("online");
  std::vector<NumaNode> nodes;
  const NodeSet movable = movable_nodes(root);
  for (int number = 0; number < NodeSet::kNodesMax; ++number) {
    if (!with_memory.has(number)) continue;
    const std::string its = folder + "node" + std::to_string(number);
    NumaNode node;
    node.number = number;
    node.has_cpus = with_cpus.has(number);
    node.is_movable = movable.has(number);
    node.total_bytes = kernel_bytes(its + "/meminfo", "MemTotal:");
    node.free_bytes = kernel_bytes(its + "/meminfo", "MemFree:");
    std::istringstream distances(kernel_text(its + "/distance"));
    // Listed in the order of the nodes that are online.
    for (int other = 0; other < NodeSet::kNodesMax; ++other) {
      int distance = 0;
      if (!online.has(other) || !(distances >> distance)) continue;
      if (with_cpus.has(other) && (node.distance == 0 || distance < node.distance))
        node.distance = distance;
    }
    const std::string access = its + "/access0/initiators/";
    node.latency_ns = static_cast<std::uint32_t>(kernel_number(access + "read_latency"));
    node.bandwidth_mbps = static_cast<std::uint32_t>(kernel_number(access + "read_bandwidth"));
    nodes.push_back(node);
  }
  return nodes;
}

bool is_numa_balancing(const std::string& root) {
  return kernel_number(root + "/proc/sys/kernel/numa_balancing") != 0;
}

NodeBinding::NodeBinding(NodeSet nodes) {
  if (nodes.empty()) return;
  const unsigned long mask = nodes.mask();
  if (::set_mempolicy(MPOL_BIND, &mask, kMaskBits) != 0) {
    status_ = Status::from_errno("set_mempolicy: the node is gone, or not in the daemon's cpuset");
    return;
  }
  is_bound_ = true;
}

NodeBinding::~NodeBinding() {
  if (is_bound_) (void)::set_mempolicy(MPOL_DEFAULT, nullptr, 0);
}

Status move_memory(std::byte* data, std::size_t size_bytes, std::size_t step_bytes, int node) {
  // The kernel moves what this process has in its own page table.
  if (::madvise(data, size_bytes, MADV_POPULATE_READ) != 0)
    return Status::from_errno("madvise(MADV_POPULATE_READ)");
  std::array<void*, kStepsMax> pages{};
  std::array<int, kStepsMax> nodes{};
  std::array<int, kStepsMax> where{};
  const std::size_t count = size_bytes / step_bytes;
  KV_CHECK(count <= kStepsMax);
  for (std::size_t i = 0; i < count; ++i) pages[i] = data + i * step_bytes;
  nodes.fill(node);
  where.fill(-EBUSY);
  const long left = ::move_pages(0, count, pages.data(), nodes.data(), where.data(),
                                 may_move_shared_pages() ? MPOL_MF_MOVE_ALL : MPOL_MF_MOVE);
  if (left < 0) return Status::from_errno("move_pages");
  // (A count of pages that were left does not say which; what each one's status says does.)
  for (std::size_t i = 0; i < count; ++i) {
    if (where[i] == node) continue;
    if (where[i] == -ENOMEM) return Status(Code::kNoMemory, "the node has no memory", ENOMEM);
    if (where[i] >= 0) return Status(Code::kBusy, "move_pages: a page stayed");
    return Status(Code::kBusy, "move_pages: a page is in use", -where[i]);
  }
  return {};
}

std::vector<int> by_room(NodeSet nodes, bool huge) {
  std::vector<std::tuple<std::uint64_t, std::uint64_t, int>> free;
  for (int node = 0; node < NodeSet::kNodesMax; ++node) {
    if (!nodes.has(node)) continue;
    const std::string folder = "/sys/devices/system/node/node" + std::to_string(node);
    const std::uint64_t pool =
        huge ? kernel_number(folder + "/hugepages/hugepages-2048kB/free_hugepages") : 0;
    free.emplace_back(pool, kernel_bytes(folder + "/meminfo", "MemFree:"), node);
  }
  std::sort(free.rbegin(), free.rend());
  std::vector<int> order;
  order.reserve(free.size());
  for (const auto& entry : free) order.push_back(std::get<2>(entry));
  return order;
}

int node_of(std::byte* data) {
  void* page = data;
  int where = -1;
  if (::madvise(data, 1, MADV_POPULATE_READ) != 0) return -1;
  if (::move_pages(0, 1, &page, nullptr, &where, 0) != 0) return -1;
  return where;
}

}  // namespace kvmem::os
