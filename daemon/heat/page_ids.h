// PageIds: one dense 32-bit number for every page of every region, so that heat keeps 4-byte links.
// A region gets consecutive numbers; those of a removed region are used again. O(regions) to add,
// O(1) page -> id, O(log regions) id -> page. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "model/page.h"

namespace kvmem::heat {

using PageId = std::uint32_t;
inline constexpr PageId kNoPage = UINT32_MAX;

class PageIds {
 public:
  // 2^31 pages of 2 MiB are 4 PiB of address space; also keeps differences of ids signed.
  static constexpr std::uint32_t kPagesMax = std::uint32_t{1} << 31;
  static constexpr std::uint32_t kSlotsMax = std::uint32_t{1} << 20;

  // First id of the region, kNoPage when there is no room (or page_count is 0).
  // REQUIRES: the slot is not in use.
  PageId add(model::RegionSlot slot, std::uint32_t page_count);
  void remove(model::RegionSlot slot);

  bool has(model::RegionSlot slot) const {
    return slot < regions_.size() && regions_[slot].page_count != 0;
  }
  PageId first(model::RegionSlot slot) const { return regions_[slot].first; }
  std::uint32_t page_count(model::RegionSlot slot) const { return regions_[slot].page_count; }
  // kNoPage for pages of no region.
  PageId id(model::PageRef page) const {
    if (!has(page.region) || page.page >= regions_[page.region].page_count) return kNoPage;
    return regions_[page.region].first + page.page;
  }
  // REQUIRES: `id` belongs to a region.
  model::PageRef page(PageId id) const;
  // One past the highest id in use.
  PageId end() const;

 private:
  struct Range {
    PageId first = 0;
    std::uint32_t page_count = 0;
  };
  std::vector<Range> regions_;                    // by slot
  std::map<PageId, model::RegionSlot> by_first_;  // in id order
};

}  // namespace kvmem::heat
