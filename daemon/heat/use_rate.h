// UseRate: how often a page is used, in uses a second, from looks at it. A look takes the page's
// mapping away and ends with the next use: one use in so many seconds. While nothing comes the look
// goes on and costs nothing, and the estimate falls. This is the rate of a process whose waits were
// partly cut off (maximum likelihood: uses / time looked), older looks counting less. Pure.
#pragma once

#include <algorithm>

namespace kvmem::heat {

class UseRate {
 public:
  // What of a look is left when the next one has ended: about two and a half count.
  static constexpr float kKept = 0.6F;
  // And when the next use comes so soon that the rate cannot be what it was.
  static constexpr float kKeptSurprised = 0.05F;
  static constexpr float kSurprise = 0.03F;  // the chance of a use that soon
  static constexpr float kMostSeconds = 8;   // a page long unused may be wanted again
  // Taking the mapping away takes some time, and so does the fault: no use is seen sooner.
  static constexpr float kLeastSeconds = 50e-6F;

  // A look ended with a use, after `seconds` more.
  void used_after(float seconds) {
    seconds = std::max(seconds, kLeastSeconds);
    const bool is_surprise = pending_ + seconds < kSurprise * seconds_ / std::max(uses_, 0.5F);
    const float kept = is_surprise ? kKeptSurprised : kKept;
    uses_ = uses_ * kept + 1;
    seconds_ = std::min(seconds_ * kept + pending_ + seconds, kMostSeconds * uses_);
    pending_ = 0;
  }
  // The look has taken so long already, and goes on.
  void unused_for(float seconds) { pending_ += seconds; }
  void forget() { *this = {}; }

  bool is_known() const { return seconds_ + pending_ > 0; }
  // `open_seconds`: of the look under way. `usual`: the rate of a page of which nothing is known,
  // above 0; it counts as half a look.
  float per_second(float open_seconds, float usual) const {
    return (uses_ + 0.5F) / (seconds_ + pending_ + open_seconds + 0.5F / usual);
  }

 private:
  float uses_ = 0;
  float seconds_ = 0;
  float pending_ = 0;  // of the look under way
};

}  // namespace kvmem::heat
