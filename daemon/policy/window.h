// The window: frames that stream instead of staying. Each costs one read a round, because the page
// that would have stayed in it does not: with n pages used in turn, c frames and w of them in the
// window, a round reads n - c + w. So the window is a share of what is read anyway, but no less
// than the disk needs to be busy. Pure.
//
// recent   pages just used are kept a little longer: another thread may still be in them
// reserve  free frames, so that a fault need not wait for a demotion first
// ahead    pages fetched or being fetched before their use
#pragma once

#include <cstdint>

namespace kvmem::policy {

struct WindowFacts {
  double reads_per_round = 0;  // 0: not known yet
  double demand_share = 0;     // of the pages that needed a frame, those the engine waited for
  std::uint32_t inflight_max = 8;
  std::uint32_t recent = 2;
  std::uint64_t capacity_pages = 0;
};

struct Window {
  std::uint32_t reserve = 0;
  std::uint32_t ahead = 0;
};

Window window_size(const WindowFacts& facts);

// How many of the pages just used must stay: one more after each that was demoted too early within
// kOften touches of another; after quiet_needed_ touches without, half of what is above kMin goes.
// A narrowing that proves wrong doubles quiet_needed_, up to kQuietMax.
class Recent {
 public:
  static constexpr std::uint32_t kMin = 2;         // one for each of two threads
  static constexpr std::uint32_t kMax = 16;        // one for each of sixteen
  static constexpr std::uint32_t kOften = 64;      // touches between two of them, or fewer
  static constexpr std::uint32_t kQuietMin = 512;  // touches
  static constexpr std::uint32_t kQuietMax = 4096;

  std::uint32_t pages() const { return pages_; }
  void touched();
  void demoted_early();

 private:
  std::uint32_t pages_ = 3;
  std::uint32_t quiet_ = 0;
  std::uint32_t since_early_ = kOften;  // touches, up to kOften
  std::uint32_t quiet_needed_ = kQuietMin;
  bool narrowed_ = false;  // the last change
};

}  // namespace kvmem::policy
