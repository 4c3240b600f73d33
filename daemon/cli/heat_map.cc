#include "cli/heat_map.h"

#include <algorithm>
#include <utility>

namespace kvmem::cli {
namespace {

bool in_memory(char state) {
  return state == 'R' || state == 'r' || state == 'C' || state == 'c' || state == 'W';
}

void merge(HeatSample* into, const HeatSample& later) {
  into->until_s = later.until_s;
  for (std::size_t i = 0; i < into->heat.size(); ++i) {
    into->heat[i] = std::max(into->heat[i], later.heat[i]);
    into->resident[i] = std::min(into->resident[i], later.resident[i]);
  }
}

}  // namespace

HeatMap::HeatMap(std::uint64_t first_page, std::uint64_t page_count, std::uint64_t page_bytes,
                 std::size_t bins_max, std::size_t rows_max)
    : first_page_(first_page),
      page_count_(page_count),
      page_bytes_(page_bytes),
      bin_pages_((page_count - 1) / bins_max + 1),
      rows_max_(rows_max) {}

HeatSample HeatMap::sample(std::string_view state, std::string_view heat) const {
  HeatSample out{0, 0, std::string(bins(), '0'), std::string(bins(), '0')};
  for (std::size_t bin = 0; bin < bins(); ++bin) {
    const std::uint64_t begin = bin * bin_pages_;
    const std::uint64_t end = std::min(begin + bin_pages_, page_count_);
    std::uint64_t resident = 0;
    for (std::uint64_t page = begin; page < end; ++page) {
      resident += page < state.size() && in_memory(state[page]) ? 1 : 0;
      const char h = page < heat.size() ? heat[page] : '0';
      if (h >= '0' && h <= '9') out.heat[bin] = std::max(out.heat[bin], h);
    }
    if (2 * resident >= end - begin) out.resident[bin] = '1';
  }
  return out;
}

void HeatMap::add(double at_s, double until_s, std::string_view state, std::string_view heat) {
  if (!samples_.empty()) samples_.back().until_s = at_s;
  HeatSample next = sample(state, heat);
  next.at_s = at_s;
  next.until_s = until_s;
  if (last_merged_ == merged_ && samples_.size() == rows_max_) {
    // Only here is every row of as many samples, so that an odd one left over is half a row.
    std::vector<HeatSample> halved;
    for (std::size_t i = 0; i < samples_.size(); i += 2) {
      halved.push_back(std::move(samples_[i]));
      if (i + 1 < samples_.size()) merge(&halved.back(), samples_[i + 1]);
    }
    last_merged_ = samples_.size() % 2 != 0 ? merged_ : 2 * merged_;
    merged_ *= 2;
    samples_ = std::move(halved);
  }
  if (!samples_.empty() && last_merged_ < merged_) {
    merge(&samples_.back(), next);
    ++last_merged_;
  } else {
    samples_.push_back(std::move(next));
    last_merged_ = 1;
  }
}

}  // namespace kvmem::cli
