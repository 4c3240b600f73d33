// MemoryNode: a tier of frames, on one NUMA node or several alike. DRAM is one, a CXL expander
// another. MemoryNodes: all of them, a page's frame being in one. Loop only.
//
// A frame is a populated page of some region's memory; a node counts frames against its budget.
// What can be lived with is less while the machine gives less.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <utility>

#include "base/check.h"
#include "model/page.h"
#include "os/numa.h"

namespace kvmem::tier {

class MemoryNode {
 public:
  // `nodes` empty: wherever the kernel likes.
  MemoryNode(std::string name, os::NodeSet nodes, std::uint64_t budget_pages)
      : name_(std::move(name)), nodes_(nodes), budget_(budget_pages), capacity_(budget_pages) {}

  const std::string& name() const { return name_; }
  os::NodeSet nodes() const { return nodes_; }
  std::uint64_t budget_pages() const { return budget_; }
  // The budget, or less while the machine gives less.
  std::uint64_t capacity_pages() const { return capacity_; }
  bool is_short() const { return capacity_ < budget_; }
  std::uint64_t used_pages() const { return used_; }
  // 0 also while more is used than the budget allows, after it was lowered.
  std::uint64_t free_pages() const { return used_ < capacity_ ? capacity_ - used_ : 0; }
  void set_budget(std::uint64_t pages) { budget_ = capacity_ = pages; }
  // The machine gives no more than `pages`.
  void live_with(std::uint64_t pages) { capacity_ = std::min(pages, budget_); }

  void take() { ++used_; }
  void give_back() {
    KV_CHECK(used_ > 0);
    --used_;
  }

 private:
  std::string name_;
  os::NodeSet nodes_;
  std::uint64_t budget_ = 0;
  std::uint64_t capacity_ = 0;
  std::uint64_t used_ = 0;
};

class MemoryNodes {
 public:
  MemoryNodes(MemoryNode dram, MemoryNode cxl) : nodes_{std::move(dram), std::move(cxl)} {}

  MemoryNode& operator[](model::Memory memory) { return nodes_[static_cast<std::size_t>(memory)]; }
  const MemoryNode& operator[](model::Memory memory) const {
    return nodes_[static_cast<std::size_t>(memory)];
  }

  std::uint64_t capacity_pages() const { return sum(&MemoryNode::capacity_pages); }
  std::uint64_t used_pages() const { return sum(&MemoryNode::used_pages); }
  // Of all together: one of them may for a moment hold more than its budget, for pages that change
  // places.
  std::uint64_t free_pages() const {
    const std::uint64_t used = used_pages();
    const std::uint64_t capacity = capacity_pages();
    return used < capacity ? capacity - used : 0;
  }
  // Where a new frame of `memory` is to come from. While CXL memory has no budget and holds nothing
  // the machine's nodes are one: DRAM is wherever the kernel likes.
  os::NodeSet nodes(model::Memory memory) const {
    const MemoryNode& cxl = (*this)[model::Memory::kCxl];
    const bool is_apart =
        memory == model::Memory::kCxl || cxl.budget_pages() > 0 || cxl.used_pages() > 0;
    return is_apart ? (*this)[memory].nodes() : os::NodeSet();
  }
  // Where the next page goes: into DRAM while it has a frame, or when none has.
  model::Memory next() const {
    const bool dram = (*this)[model::Memory::kDram].free_pages() > 0;
    return dram || (*this)[model::Memory::kCxl].free_pages() == 0 ? model::Memory::kDram
                                                                  : model::Memory::kCxl;
  }

 private:
  std::uint64_t sum(std::uint64_t (MemoryNode::*of)() const) const {
    std::uint64_t total = 0;
    for (const MemoryNode& node : nodes_) total += (node.*of)();
    return total;
  }

  std::array<MemoryNode, model::kMemoryCount> nodes_;
};

}  // namespace kvmem::tier
