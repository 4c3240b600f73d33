#include "heat/frequency.h"

#include <algorithm>
#include <cmath>

namespace kvmem::heat {
namespace {

constexpr double kSteps = 1024;  // an octave; 64 octaves fit in 16 bits
// The least that is kept: a thousandth of an access, and a nanosecond.
constexpr double kLeastAccesses = 1.0 / 1024;
constexpr double kLeastNs = 1;
constexpr std::uint64_t kFadesAHalfLife = 4;
constexpr double kFadeSteps = kSteps / kFadesAHalfLife;

double unpack(std::uint16_t packed, double least) {
  return packed == 0 ? 0 : least * std::exp2((packed - 1) / kSteps);
}

std::uint16_t fade(std::uint16_t packed, double steps) {
  return packed <= steps ? std::uint16_t{0}
                         : static_cast<std::uint16_t>(std::lround(packed - steps));
}

}  // namespace

std::uint16_t Frequency::pack(double value, double least) {
  if (value < least) return 0;
  return static_cast<std::uint16_t>(
      std::min(1 + std::log2(value / least) * kSteps + random_.unit(), 65535.0));
}

void Frequency::forget(PageId first, std::uint32_t count) {
  for (PageId id = first; id < first + count; ++id) {
    all_accesses_ = std::max(0.0, all_accesses_ - seen(id));
    all_exposure_ns_ = std::max(0.0, all_exposure_ns_ - exposure_s(id) * 1e9);
    pages_[id] = {};
  }
}

void Frequency::observe(PageId id, double accesses, std::uint64_t ns) {
  Page& page = pages_[id];
  all_accesses_ += accesses;
  all_exposure_ns_ += static_cast<double>(ns);
  if (accesses > 0) page.accesses = pack(seen(id) + accesses, kLeastAccesses);
  page.exposure =
      pack(unpack(page.exposure, kLeastNs) + std::max(1.0, static_cast<double>(ns)), kLeastNs);
}

void Frequency::touched_after(PageId id, std::uint64_t ns, std::uint64_t told_ns) {
  // Likelihoods of the logarithm of the wait: x e^-x if the rate is what it was, x being the
  // accesses that were to be expected meanwhile, else the same for each of kSpread e-folds.
  const double expected = per_second(id) * static_cast<double>(ns) / 1e9;
  if (expected < 1) {
    const double ratio = 1 / (kSpread * std::max(expected, 1e-9) * std::exp(-expected));
    const double steps = std::min(std::log2(1 + kChange * std::max(0.0, ratio - 1)), 1.0) * kSteps;
    Page& page = pages_[id];
    page.accesses = fade(page.accesses, steps);
    page.exposure = fade(page.exposure, steps);
  }
  observe(id, 1, ns - std::min(ns, told_ns));
}

void Frequency::scanned(PageId id, std::uint64_t ns, bool accessed) {
  if (!accessed) return observe(id, 0, ns);
  const double expected = per_second(id) * static_cast<double>(ns) / 1e9;
  // x / (1 - e^-x), which is 1 + x / 2 near 0.
  observe(id, expected < 1e-6 ? 1 : expected / -std::expm1(-expected), ns);
}

void Frequency::advance(std::uint64_t now_ns) {
  if (faded_ns_ == 0) faded_ns_ = now_ns;
  const std::uint64_t each_ns = std::max<std::uint64_t>(half_life_ns_ / kFadesAHalfLife, 1);
  const std::uint64_t fades = (now_ns - faded_ns_) / each_ns;
  if (fades == 0) return;
  faded_ns_ += fades * each_ns;
  const double steps = std::min(static_cast<double>(fades) * kFadeSteps, 65535.0);
  for (Page& page : pages_) {
    page.accesses = fade(page.accesses, steps);
    page.exposure = fade(page.exposure, steps);
  }
  const double left = std::exp2(-steps / kSteps);
  all_accesses_ *= left;
  all_exposure_ns_ *= left;
}

double Frequency::seen(PageId id) const { return unpack(pages_[id].accesses, kLeastAccesses); }

double Frequency::exposure_s(PageId id) const {
  return unpack(pages_[id].exposure, kLeastNs) / 1e9;
}

double Frequency::usual_per_second() const {
  return (all_accesses_ + kPriorAccesses) / (all_exposure_ns_ / 1e9 + 1);
}

double Frequency::per_second(PageId id) const {
  const double accesses = seen(id) + kPriorAccesses;
  const double usual_s = kPriorAccesses / usual_per_second();
  return accesses / (exposure_s(id) + usual_s * kPriorAccesses / accesses);
}

double Frequency::deviation(PageId id) const {
  return per_second(id) / std::sqrt(seen(id) + kPriorAccesses);
}

}  // namespace kvmem::heat
