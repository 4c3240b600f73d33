// PlacePace: how many pages a second may change places between DRAM and CXL memory. No more than
// the limit; and it adapts to what earlier moves brought: of the pages that were moved up and down
// it hears how often they are used since. Where those moved up are not used clearly more often, the
// choice was noise, and the pace halves, or more; where they are, it doubles, or more. It never
// stops: what does not pay now may later. Pure: time is handed in.
//
// Uses a second are compared as logarithms: of two pages alike one look may see ten times the rate
// of the other, and a mean would follow the largest.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace kvmem::policy {

class PlacePace {
 public:
  static constexpr double kLeastShare = 0.02;      // of the limit
  static constexpr std::uint32_t kLooksMin = 12;   // each way, before they are compared
  static constexpr std::uint32_t kLooksLeast = 4;  // before even a large difference is believed
  // exp(0.3): moved up, it must be used a third more often than what had to go.
  static constexpr double kPaysFrom = 0.3;
  static constexpr double kPaysPlainly = 1.1;  // three times as often, beyond doubt
  static constexpr double kBurstSeconds = 0.25;

  explicit PlacePace(double limit_per_s) { set_limit(limit_per_s); }

  void set_limit(double limit_per_s) {
    limit_ = limit_per_s;
    pace_ = limit_per_s;
  }
  double limit_per_s() const { return limit_; }
  double pace_per_s() const { return pace_; }
  // The last comparison: how many times as often pages moved up were used as those moved down; 0:
  // none yet.
  double gain() const { return gain_; }

  // A page that was moved is used so often a second since.
  void found(bool moved_up, double per_second) {
    (moved_up ? up_ : down_).add(std::log(std::max(per_second, 1e-3)));
    if (up_.count < kLooksLeast || down_.count < kLooksLeast) return;
    const double more = up_.mean - down_.mean;
    const double error = std::sqrt(up_.variance() / up_.count + down_.variance() / down_.count);
    const bool is_plain = more - 3 * error > kPaysPlainly;
    if (!is_plain && (up_.count < kLooksMin || down_.count < kLooksMin)) return;
    gain_ = std::exp(more);
    if (more < kPaysFrom) {
      pace_ = std::max(pace_ / (more < 0 ? 4 : 2), limit_ * kLeastShare);
    } else if (more - error > kPaysFrom) {
      pace_ = std::min(pace_ * (is_plain ? 4 : 2), limit_);
    }
    up_ = down_ = {};
  }

  void advance(std::uint64_t now_ns) {
    const double seconds = last_ns_ == 0 ? 0 : static_cast<double>(now_ns - last_ns_) / 1e9;
    last_ns_ = now_ns;
    const auto fill = [seconds](double tokens, double per_s) {
      return std::min(tokens + seconds * per_s, std::max(2.0, kBurstSeconds * per_s));
    };
    paced_ = fill(paced_, pace_);
    all_ = fill(all_, limit_);
  }
  // How many pages may move now in exchange for others; and how many at all, for room.
  double to_exchange() const { return std::min(paced_, all_); }
  double to_move() const { return all_; }
  void exchanged(double pages) {
    paced_ -= pages;
    all_ -= pages;
  }
  void moved(double pages) { all_ -= pages; }

 private:
  struct Looks {  // Welford's mean and variance
    std::uint32_t count = 0;
    double mean = 0;
    double squares = 0;

    void add(double value) {
      ++count;
      const double off = value - mean;
      mean += off / count;
      squares += off * (value - mean);
    }
    // No less than that of the logarithm of one wait between uses that come at random, pi^2 / 6: a
    // few looks may by chance be alike.
    double variance() const { return std::max(1.65, squares / (count - 1)); }
  };

  double limit_ = 0;
  double pace_ = 0;
  double gain_ = 0;
  double paced_ = 0;
  double all_ = 0;
  std::uint64_t last_ns_ = 0;
  Looks up_;
  Looks down_;
};

}  // namespace kvmem::policy
