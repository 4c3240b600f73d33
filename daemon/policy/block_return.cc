#include "policy/block_return.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace kvmem::policy {
namespace {

// Steps of AdaGrad: the terms that every observation has find their place sooner than the hundreds
// of features. Of half to double these any does: a matter of 0.2 points.
constexpr float kTermStep = 0.3F;
constexpr float kFeatureStep = 0.08F;

constexpr float kFirstChance = 0.1F;

float chance(float logit) { return 1 / (1 + std::exp(-std::clamp(logit, -30.0F, 30.0F))); }

// Of the last bin: as long as all before it.
float width_s(unsigned bin) { return bin == 0 ? 1 : static_cast<float>(1U << (bin - 1)); }

// Of a kind that is counted: two to five times each for itself, then octaves: 6-10, 11-20 ...
std::uint32_t least_refs(unsigned kind) { return kind < 6 ? kind : (5U << (kind - 6)) + 1; }

// New blocks, partial ones, those seen a few times and those seen often.
unsigned group_of(std::uint8_t kind) {
  if (kind <= ReturnModel::kTail) return kind;
  return kind < 7 ? 2 : 3;
}

// Up to half a minute, two, eight, and beyond.
unsigned era_of(unsigned bin) { return bin < 6 ? 0 : std::min((bin - 4) / 2, 3U); }

}  // namespace

ReturnModel::ReturnModel() {
  for (Weight& weight : age_) {
    weight.value = std::log(kFirstChance / (1 - kFirstChance));
  }
  for (std::uint8_t kind = kTail + 1; kind < kLeft; ++kind) {
    kind_[kind].value = std::log(static_cast<float>(least_refs(kind)));
  }
}

unsigned ReturnModel::bin_of(std::uint64_t age_ms) {
  return std::min<unsigned>(kBins - 1, static_cast<unsigned>(std::bit_width(age_ms / 1000)));
}

std::uint8_t ReturnModel::kind_of(std::uint32_t refs) {
  if (refs < 2) return kNew;
  std::uint8_t kind = 2;
  while (kind + 1 < kLeft && refs >= least_refs(kind + 1)) ++kind;
  return kind;
}

std::uint8_t ReturnModel::bucket_of(std::uint64_t value) {
  return static_cast<std::uint8_t>(
      std::min<unsigned>(kBuckets - 1, static_cast<unsigned>(std::bit_width(value))));
}

float ReturnModel::sum(const Features& features, const Run& run) {
  float sum = 0;
  for (unsigned f = 0; f < kFeatures; ++f) sum += features[f][run.buckets[f]].value;
  return sum;
}

float ReturnModel::logit(const Run& run, unsigned bin) const {
  const unsigned group = group_of(run.kind);
  return age_[bin].value + kind_[run.kind].value + kind_age_[run.kind][bin].value +
         sum(feature_[group], run) + sum(aged_[group][era_of(bin)], run);
}

void ReturnModel::observe(const Run& run, std::size_t blocks, unsigned bin, bool returned) {
  const float wrong = (returned ? 1.0F : 0.0F) - chance(logit(run, bin));
  const float gradient = wrong * std::sqrt(static_cast<float>(blocks));
  const auto step = [&](Weight& weight, float size) {
    weight.squares += gradient * gradient;
    weight.value += size * gradient / std::sqrt(1 + weight.squares);
  };
  const unsigned group = group_of(run.kind);
  step(age_[bin], kTermStep);
  step(kind_[run.kind], kTermStep);
  step(kind_age_[run.kind][bin], kFeatureStep);
  for (unsigned f = 0; f < kFeatures; ++f) {
    step(feature_[group][f][run.buckets[f]], kFeatureStep);
    step(aged_[group][era_of(bin)][f][run.buckets[f]], kFeatureStep);
  }
}

std::array<float, ReturnModel::kBins> ReturnModel::chances_from(const Run& run,
                                                                unsigned first) const {
  std::array<float, kBins> chances{};
  const unsigned group = group_of(run.kind);
  const float base = kind_[run.kind].value + sum(feature_[group], run);
  float aged = 0;
  for (unsigned bin = first, era = kEras; bin < kBins; ++bin) {
    if (era != era_of(bin)) aged = sum(aged_[group][era = era_of(bin)], run);
    chances[bin] = chance(base + aged + age_[bin].value + kind_age_[run.kind][bin].value);
  }
  return chances;
}

double ReturnModel::chance_of_return(const Run& run, std::uint64_t age_ms) const {
  float stays_away = 1;
  for (const float returns : chances_from(run, bin_of(age_ms))) stays_away *= 1 - returns;
  return 1 - stays_away;
}

double ReturnModel::index(const Run& run, std::uint64_t age_ms) const {
  const unsigned first = bin_of(age_ms);
  const std::array<float, kBins> chances = chances_from(run, first);
  const auto from = [&](unsigned start) {
    float left = 1;  // of a run, by that bin
    float returns = 0;
    float seconds = 0;
    float best = 0;
    for (unsigned bin = start; bin < kBins; ++bin) {
      returns += left * chances[bin];
      seconds += left * width_s(bin) * (1 - chances[bin] / 2);
      best = std::max(best, returns / seconds);
      left *= 1 - chances[bin];
    }
    return std::log(best);
  };
  const float here = from(first);
  if (first + 1 == kBins) return here;
  const std::uint64_t begin_ms = first == 0 ? 0 : bin_end_ms(first - 1);
  const float part =
      static_cast<float>(age_ms - begin_ms) / static_cast<float>(bin_end_ms(first) - begin_ms);
  return here + part * (from(first + 1) - here);
}

}  // namespace kvmem::policy
