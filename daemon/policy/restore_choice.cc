#include "policy/restore_choice.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace kvmem::policy {
namespace {

// How fast the past fades: of the time between pages, and for each report of computing.
constexpr double kFadeNs = 150e6;
constexpr double kFade = 0.95;
// Times what was expected: more was not computing alone.
constexpr double kOutlier = 8;
// Of a new time to the first page.
constexpr double kFirstWeight = 0.25;
// Pages that what was known counts for once it is stale.
constexpr double kStalePages = 0.01;
constexpr double kSoonerByAFifth = 0.8;

}  // namespace

void ReadCost::begins(std::uint64_t now_ns) {
  if (is_stale(now_ns)) {
    if (pages_ > 0) pages_took_ns_ *= kStalePages / pages_;
    pages_ = std::min(pages_, kStalePages);
    is_first_known_ = false;
  }
  if (in_flight_++ > 0) return;
  last_ns_ = now_ns;
  is_first_ = true;
}

void ReadCost::ends(std::uint64_t begin_ns, std::uint64_t now_ns) {
  --in_flight_;
  if (is_first_) {
    const double took = std::max(1.0, static_cast<double>(now_ns - begin_ns));
    first_ns_ = is_first_known_ ? first_ns_ + kFirstWeight * (took - first_ns_) : took;
    is_first_known_ = true;
    is_first_ = false;
  } else {
    const auto gap = static_cast<double>(now_ns - last_ns_);
    const double fade = std::exp(-gap / kFadeNs);
    pages_ = pages_ * fade + 1;
    pages_took_ns_ = pages_took_ns_ * fade + gap;
  }
  last_ns_ = now_ns;
}

ReadCost::Estimate ReadCost::estimate(std::uint64_t queued, std::uint64_t now_ns) const {
  Estimate e{first_ns_, pages_ > 0 ? pages_took_ns_ / pages_ : first_ns_};
  if (in_flight_ > 0) {  // the next page takes at least as long as it has taken so far
    const auto gap = static_cast<double>(now_ns - last_ns_);
    const double fade = std::exp(-gap / kFadeNs);
    e.page_ns = std::max(e.page_ns, (pages_took_ns_ * fade + gap) / (pages_ * fade + 1));
    e.first_ns = std::max(e.first_ns, gap);
  }
  e.first_ns += static_cast<double>(in_flight_ + queued) * e.page_ns;
  return e;
}

// A line through what a block took at its mean position.
void ComputeCost::took(std::uint64_t first, std::uint64_t count, std::uint64_t took_ns) {
  if (count == 0 || took_ns == 0) return;
  const double x = static_cast<double>(first) + static_cast<double>(count) / 2;
  double y = static_cast<double>(took_ns) / static_cast<double>(count);
  if (is_known()) y = std::min(y, kOutlier * (block_ns_ + position_ns_ * x));
  weight_ = weight_ * kFade + 1;
  x_ = x_ * kFade + x;
  xx_ = xx_ * kFade + x * x;
  y_ = y_ * kFade + y;
  xy_ = xy_ * kFade + x * y;
  const double variance = weight_ * xx_ - x_ * x_;
  // Prompts of one length alone do not tell one term from the other.
  const bool tells = variance > 1e-4 * weight_ * xx_;
  position_ns_ = tells ? std::max(0.0, (weight_ * xy_ - x_ * y_) / variance) : 0;
  block_ns_ = (y_ - position_ns_ * x_) / weight_;
  if (block_ns_ < 0) {
    block_ns_ = 0;
    position_ns_ = xy_ / xx_;
  }
}

RestoreChoice choose_restore(std::span<const bool> is_stored, std::uint64_t pages_per_block,
                             const ReadCost::Estimate& read, const ComputeCost& compute,
                             bool overlaps, RestoreKind before) {
  std::uint64_t left = 0;
  double compute_all = 0;
  for (std::size_t i = 0; i < is_stored.size(); ++i) {
    if (!is_stored[i]) continue;
    ++left;
    compute_all += compute.ns(i);
  }
  RestoreChoice all_read;
  all_read.ns = all_read.read_ns = read.ns(left * pages_per_block);
  all_read.compute_ns = compute_all;
  if (left == 0) return all_read;
  RestoreChoice all_computed = all_read;
  all_computed.kind = RestoreKind::kCompute;
  all_computed.compute_end = is_stored.size();
  all_computed.ns = compute_all;
  RestoreChoice split = all_read;
  split.kind = RestoreKind::kSplit;
  split.ns = std::numeric_limits<double>::infinity();
  double computed = 0;
  for (std::size_t i = 0; i < is_stored.size() && left > 1; ++i) {
    if (!is_stored[i]) continue;
    computed += compute.ns(i);
    const double reading = read.ns(--left * pages_per_block);
    const double ns = overlaps ? std::max(computed, reading) : computed + reading;
    if (ns >= split.ns) continue;
    split.ns = ns;
    split.compute_end = i + 1;
  }
  const RestoreChoice* best = &all_read;
  for (const RestoreChoice* other : {&all_computed, &split}) {
    if (other->ns < best->ns) best = other;
  }
  for (const RestoreChoice* last : {&all_read, &all_computed, &split}) {
    if (last->kind == before && best->ns > kSoonerByAFifth * last->ns) best = last;
  }
  return *best;
}

}  // namespace kvmem::policy
