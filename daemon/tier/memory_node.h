// MemoryNode: the tier of frames on one NUMA node. DRAM is one, a CXL expander another.
//
// A frame is a populated page of some region's memory; the node counts frames against its budget
// and binds regions to itself. Loop only.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "base/check.h"

namespace kvmem::tier {

class MemoryNode {
 public:
  MemoryNode(std::string name, int node, std::uint64_t capacity_pages)
      : name_(std::move(name)), node_(node), capacity_pages_(capacity_pages) {}

  const std::string& name() const { return name_; }
  int node() const { return node_; }
  std::uint64_t capacity_pages() const { return capacity_pages_; }
  std::uint64_t used_pages() const { return used_pages_; }
  // 0 also while more is used than the budget allows, after it was lowered.
  std::uint64_t free_pages() const {
    return used_pages_ < capacity_pages_ ? capacity_pages_ - used_pages_ : 0;
  }
  void set_capacity(std::uint64_t pages) { capacity_pages_ = pages; }

  void take() { ++used_pages_; }
  void give_back() {
    KV_CHECK(used_pages_ > 0);
    --used_pages_;
  }

 private:
  std::string name_;
  int node_ = 0;
  std::uint64_t capacity_pages_ = 0;
  std::uint64_t used_pages_ = 0;
};

}  // namespace kvmem::tier
