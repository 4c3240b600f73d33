// The machine's memory nodes: what they are, what is said of their speed, and moving pages between
// them. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace kvmem::os {

// Memory nodes by number. Empty: the kernel's choice.
class NodeSet {
 public:
  static constexpr int kNodesMax = 64;

  constexpr NodeSet() = default;
  static constexpr NodeSet of(int node) { return NodeSet(std::uint64_t{1} << node); }
  // From the kernel's notation, "0-1,3". kInvalid: it is none, or a number is too large.
  static Result<NodeSet> parse(std::string_view text);

  constexpr bool empty() const { return mask_ == 0; }
  constexpr bool has(int node) const {
    return node >= 0 && node < kNodesMax && (mask_ >> node & 1) != 0;
  }
  constexpr void add(int node) { mask_ |= std::uint64_t{1} << node; }
  constexpr NodeSet without(NodeSet other) const { return NodeSet(mask_ & ~other.mask_); }
  constexpr std::uint64_t mask() const { return mask_; }
  std::string text() const;  // "0-1,3"
  bool operator==(const NodeSet&) const = default;

 private:
  constexpr explicit NodeSet(std::uint64_t mask) : mask_(mask) {}

  std::uint64_t mask_ = 0;
};

struct NumaNode {
  int number = 0;
  bool has_cpus = false;
  // All of it is in ZONE_MOVABLE: what is pinned for long (registered buffers) leaves it.
  bool is_movable = false;
  std::uint64_t total_bytes = 0;
  std::uint64_t free_bytes = 0;
  int distance = 0;  // from the nearest node with CPUs, as the firmware says; 10: itself
  // From the nearest CPUs, as the firmware states it (HMAT); 0: it does not.
  std::uint32_t latency_ns = 0;
  std::uint32_t bandwidth_mbps = 0;  // read, MB/s
};

// Every node with memory, by number. `root` is another one in tests only.
std::vector<NumaNode> numa_nodes(const std::string& root = "");
// The kernel moves pages between nodes by itself (kernel.numa_balancing).
bool is_numa_balancing(const std::string& root = "");

// Until its end what this thread populates comes from `nodes`, and from nowhere else.
class NodeBinding {
 public:
  explicit NodeBinding(NodeSet nodes);
  ~NodeBinding();
  NodeBinding(const NodeBinding&) = delete;
  NodeBinding& operator=(const NodeBinding&) = delete;
  // kErrno: the node is gone, or the daemon's cpuset does not have it.
  const Status& status() const { return status_; }

 private:
  bool is_bound_ = false;
  Status status_;
};

// Moves what this process has mapped at [data, data + size), at most 2 MiB, to `node`; every
// process sees the bytes throughout, a thread that touches a page while it is under way waits.
// `step_bytes`: of the OS pages it consists of. kNoMemory: the node has none; kBusy: something
// holds a page (direct I/O under way, registered buffers), and what is moved already is there.
Status move_memory(std::byte* data, std::size_t size_bytes, std::size_t step_bytes, int node);
// The nodes by the memory they have free, most first; `huge`: by the pages of 2 MiB free in their
// pools, before what is free besides.
std::vector<int> by_room(NodeSet nodes, bool huge);
// Where the page at `data`, which is in memory, lies. -1: nobody knows.
int node_of(std::byte* data);

}  // namespace kvmem::os
