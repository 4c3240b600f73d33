// ReturnModel: whether a run of blocks will be asked for again, and when; learned online, from
// nothing.
//
// The chance to be asked for in age bin b, given that it was not before, is logistic and additive:
//
//   logit h(b) = age[b] + kind[k] + kind_age[k][b]
//              + Σ over features f of (feature[group of k][f][bucket] + aged[group of k][era of
//              b][f][bucket])
//
// Bins double: [0, 1) s, [1, 2), [2, 4) ... [2048, 4096), beyond; an era is a few of them: what
// tells about the next seconds may tell nothing about the next hour. Before anything is learned
// every bin has the same chance of 0.1, so that the rate falls with 1/age, least recently used goes
// first; and what was asked for n times comes back with n times the odds of what is new (Laplace's
// rule of succession).
//
// Each observation is one step of AdaGrad (Duchi et al., 2011) on the logistic loss, weighted by
// the root of the run's length: between counting runs, which are what is observed, and counting
// blocks, which are what is hit.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvmem::policy {

class ReturnModel {
 public:
  static constexpr unsigned kBins = 14;
  static constexpr unsigned kKinds = 24;
  static constexpr unsigned kFeatures = 7;
  static constexpr unsigned kBuckets = 24;

  // The kinds that are no count of references: never seen before, the partial block at the end, and
  // what is left where a request went on elsewhere from the middle of a run.
  static constexpr std::uint8_t kNew = 0;
  static constexpr std::uint8_t kTail = 1;
  static constexpr std::uint8_t kLeft = kKinds - 1;

  struct Run {
    std::uint8_t kind = kNew;                       // < kKinds
    std::array<std::uint8_t, kFeatures> buckets{};  // < kBuckets
  };

  ReturnModel();

  static unsigned bin_of(std::uint64_t age_ms);
  // When a run leaves the bin. The last one is never left.
  static std::uint64_t bin_end_ms(unsigned bin) { return std::uint64_t{1000} << bin; }
  // Of blocks that were asked for so many times.
  static std::uint8_t kind_of(std::uint32_t refs);
  // log2 of what is counted, for features: 0, 1, 2-3, 4-7 ...
  static std::uint8_t bucket_of(std::uint64_t value);

  // A run of so many blocks was asked for in that bin, or the bin passed without.
  void observe(const Run& run, std::size_t blocks, unsigned bin, bool returned);
  // The logarithm of the best rate of returns per second still to be had from a run of that age:
  // over all times to give up, the returns expected until then per second spent waiting for them
  // (Gittins, 1979). Between the bins' edges it is interpolated.
  double index(const Run& run, std::uint64_t age_ms) const;
  // That a run of that age is asked for again, at any time, 0..1.
  double chance_of_return(const Run& run, std::uint64_t age_ms) const;

 private:
  static constexpr unsigned kGroups = 4;  // of kinds
  static constexpr unsigned kEras = 4;

  struct Weight {
    float value = 0;
    float squares = 0;  // of gradients, summed
  };
  using Features = std::array<std::array<Weight, kBuckets>, kFeatures>;

  static float sum(const Features& features, const Run& run);
  float logit(const Run& run, unsigned bin) const;
  // Of the bins before it 0.
  std::array<float, kBins> chances_from(const Run& run, unsigned first) const;

  std::array<Weight, kBins> age_;
  std::array<Weight, kKinds> kind_;
  std::array<std::array<Weight, kBins>, kKinds> kind_age_;
  std::array<Features, kGroups> feature_;
  std::array<std::array<Features, kEras>, kGroups> aged_;
};

}  // namespace kvmem::policy
