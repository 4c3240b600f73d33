#include "policy/window.h"

#include <algorithm>
#include <utility>

namespace kvmem::policy {

Window window_size(const WindowFacts& facts) {
  Window window;
  // With every second page waited for, two frames: one for each of two threads that fault at once.
  window.reserve = facts.demand_share > 0.5 ? 2 : facts.demand_share > 0.1 ? 1 : 0;
  // Twice the disk's depth: a full queue, and as much again ready.
  const std::uint32_t ahead_max = 2 * facts.inflight_max;
  // Three reads keep an NVMe disk at about nine tenths of its bandwidth.
  const std::uint32_t ahead_min = std::min(3U, facts.inflight_max);
  double ahead = facts.inflight_max;
  if (facts.reads_per_round > 0) {
    // 3.5 % of the reads: 5 % is the aim, the rest is for mistakes.
    ahead = 0.035 * facts.reads_per_round - facts.recent - window.reserve;
  }
  // Never more than a quarter of all frames.
  const double bound = std::min<double>(ahead_max, static_cast<double>(facts.capacity_pages) / 4);
  window.ahead = static_cast<std::uint32_t>(
      std::clamp(ahead, std::min<double>(ahead_min, bound), std::max(bound, 0.0)));
  return window;
}

void Recent::touched() {
  since_early_ = std::min(since_early_ + 1, kOften);
  if (++quiet_ < quiet_needed_ || pages_ == kMin) return;
  pages_ -= (pages_ - kMin + 1) / 2;
  quiet_ = 0;
  narrowed_ = true;
}

void Recent::demoted_early() {
  if (std::exchange(since_early_, 0) >= kOften) return;  // that page's own habit, so far
  if (narrowed_) quiet_needed_ = std::min(2 * quiet_needed_, kQuietMax);
  narrowed_ = false;
  quiet_ = 0;
  pages_ = std::min(pages_ + 1, kMax);
}

}  // namespace kvmem::policy
