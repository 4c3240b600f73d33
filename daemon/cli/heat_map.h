// HeatMap: the heat of a region's pages over time, in bins of pages, bounded in both directions.
//
// A bin's heat is its hottest page's. A bin counts as in DRAM when at least half of its pages are.
// When there are more samples than rows, two neighbours become one: the hotter, and in DRAM when
// both were.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvmem::cli {

struct HeatSample {
  double at_s = 0;       // since the first
  double until_s = 0;    // what it stands for
  std::string heat;      // a digit a bin
  std::string resident;  // '1' or '0' a bin
};

class HeatMap {
 public:
  // REQUIRES: page_count, bins_max and rows_max are not 0.
  HeatMap(std::uint64_t first_page, std::uint64_t page_count, std::uint64_t page_bytes,
          std::size_t bins_max, std::size_t rows_max);

  // `state` and `heat` of the daemon's answer, one character a page. What is missing is cold and
  // not in DRAM.
  HeatSample sample(std::string_view state, std::string_view heat) const;
  // It stands for the time until the next one, as long as there is none until `until_s`.
  // REQUIRES: at_s >= that of the sample before.
  void add(double at_s, double until_s, std::string_view state, std::string_view heat);

  std::uint64_t first_page() const { return first_page_; }
  std::uint64_t page_count() const { return page_count_; }
  std::uint64_t page_bytes() const { return page_bytes_; }
  std::uint64_t bin_pages() const { return bin_pages_; }
  std::size_t bins() const { return static_cast<std::size_t>((page_count_ - 1) / bin_pages_ + 1); }
  const std::vector<HeatSample>& samples() const { return samples_; }  // oldest first

 private:
  std::uint64_t first_page_;
  std::uint64_t page_count_;
  std::uint64_t page_bytes_;
  std::uint64_t bin_pages_;
  std::size_t rows_max_;
  std::vector<HeatSample> samples_;
  std::size_t merged_ = 1;       // samples that make a row
  std::size_t last_merged_ = 0;  // those that made the last one so far
};

}  // namespace kvmem::cli
