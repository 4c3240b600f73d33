// Histogram: latencies in microseconds, constant memory, quantiles within 1/8 of their value.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace kvmem::model {

class Histogram {
 public:
  void add(std::uint64_t value) {
    ++buckets_[bucket_of(value)];
    ++count_;
  }
  std::uint64_t count() const { return count_; }
  // The value below which a fraction `q` (0..1) of the samples lies; 0 without samples.
  std::uint64_t quantile(double q) const {
    if (count_ == 0) return 0;
    const auto rank = static_cast<std::uint64_t>(q * static_cast<double>(count_ - 1));
    std::uint64_t seen = 0;
    for (unsigned i = 0; i < buckets_.size(); ++i) {
      seen += buckets_[i];
      if (seen > rank) return upper_of(i);
    }
    return upper_of(buckets_.size() - 1);
  }

 private:
  // 8 linear buckets for each power of two.
  static unsigned bucket_of(std::uint64_t v) {
    if (v < 8) return static_cast<unsigned>(v);
    const unsigned shift = static_cast<unsigned>(std::bit_width(v)) - 4;
    const unsigned index = (shift + 1) * 8 + static_cast<unsigned>((v >> shift) & 7);
    return index < kBuckets ? index : kBuckets - 1;
  }
  static std::uint64_t upper_of(unsigned i) {
    if (i < 8) return i;
    const unsigned shift = i / 8 - 1;
    return ((std::uint64_t{8} + i % 8 + 1) << shift) - 1;
  }

  static constexpr unsigned kBuckets = 320;  // up to 2^41 us
  std::array<std::uint32_t, kBuckets> buckets_{};
  std::uint64_t count_ = 0;
};

}  // namespace kvmem::model
