// Random: for drawing pages. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvmem::heat {

// splitmix64 (Steele, Lea, Flood 2014): any seed is good, one word of state.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  // REQUIRES: bound > 0. The bias of the remainder is below 2^-32.
  std::size_t below(std::size_t bound) { return next() % bound; }
  double unit() { return static_cast<double>(next() >> 11) / 9007199254740992.0; }

 private:
  std::uint64_t state_;
};

}  // namespace kvmem::heat
