#include "heat/page_ids.h"

#include <iterator>

#include "base/check.h"

namespace kvmem::heat {

PageId PageIds::add(model::RegionSlot slot, std::uint32_t page_count) {
  KV_CHECK(!has(slot));
  if (page_count == 0 || page_count > kPagesMax || slot >= kSlotsMax) return kNoPage;
  PageId first = 0;
  for (const auto& [start, other] : by_first_) {
    if (start - first >= page_count) break;
    first = start + regions_[other].page_count;
  }
  if (first > kPagesMax - page_count) return kNoPage;
  if (slot >= regions_.size()) regions_.resize(slot + std::size_t{1});
  regions_[slot] = {first, page_count};
  by_first_.emplace(first, slot);
  return first;
}

void PageIds::remove(model::RegionSlot slot) {
  if (!has(slot)) return;
  by_first_.erase(regions_[slot].first);
  regions_[slot] = {};
}

model::PageRef PageIds::page(PageId id) const {
  const auto after = by_first_.upper_bound(id);
  KV_CHECK(after != by_first_.begin());
  const auto& [first, slot] = *std::prev(after);
  KV_CHECK(id - first < regions_[slot].page_count);
  return {slot, id - first};
}

PageId PageIds::end() const {
  if (by_first_.empty()) return 0;
  const auto& [first, slot] = *by_first_.rbegin();
  return first + regions_[slot].page_count;
}

}  // namespace kvmem::heat
