// SampleBudget: how many resident pages may lose their mapping to show whether they are used.
// A sample that is touched costs the engine a fault (10-50 us); one that is never touched costs
// nothing. So the touched ones are rationed: a share of all touches, and one for every ten reads
// (of 400 us or more each, so that is at most one percent of the time they take). And the number
// open at once doubles while they prove unused: a thousand dead pages are found in ten probes, and
// in a set that is all alive sampling stays at its ration. Pure.
#pragma once

#include <algorithm>
#include <cstdint>

namespace kvmem::policy {

class SampleBudget {
 public:
  static constexpr std::uint32_t kOpenMin = 8;
  static constexpr std::uint32_t kOpenMax = 4096;
  // What may be saved up: a burst of 16 faults is below a millisecond.
  static constexpr double kTokensMax = 16;

  explicit SampleBudget(std::uint32_t permille) : per_touch_(permille / 1000.0) {}

  static constexpr double kPerRead = 0.1;

  void touched() { tokens_ = std::min(tokens_ + per_touch_, kTokensMax); }
  void read() { tokens_ = std::min(tokens_ + kPerRead, kTokensMax); }
  // For a page that is probably alive: paid at once. One that is probably dead pays on hit().
  bool take() {
    if (tokens_ < 1) return false;
    tokens_ -= 1;
    return true;
  }
  void give_back() { tokens_ += 1; }
  void hit(bool paid) {
    if (paid) return;
    tokens_ -= 1;  // may go below 0
    open_max_ = std::max(open_max_ / 2, kOpenMin);
  }
  // A sample was not touched while it was on probation.
  void survived() { open_max_ = std::min(open_max_ + 1, kOpenMax); }
  // So many proved unused, and hardly any did not, that a short look is enough for the next.
  bool sure() const { return open_max_ >= 8 * kOpenMin; }
  // How many more may be opened while `open` are on probation.
  std::uint32_t allowance(std::uint32_t open) const {
    return tokens_ < 1 || open >= open_max_ ? 0 : open_max_ - open;
  }

 private:
  double per_touch_;
  double tokens_ = 1;
  std::uint32_t open_max_ = kOpenMin;
};

}  // namespace kvmem::policy
