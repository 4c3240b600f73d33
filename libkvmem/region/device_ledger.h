// The ledger, from the engine's side: what this process may hold of each GPU that it shares with
// others, and what it tells the daemon of its regions there.
//
// Any thread; calls wait for the agent, and it for the daemon. Without a daemon the process has its
// GPUs to itself; one that has had a daemon waits for the next for a few seconds, once, before it
// takes more than it was granted.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvmem::device {

struct Gpu {
  std::uint64_t uuid[2];  // the same in every process
  std::uint64_t total_bytes;
};

struct Claim {
  std::uint64_t bytes;  // that the process may hold
  bool others_asked;    // the rest is other processes', who have been asked for it: ask again
};
// Asks to hold `needed_bytes` of the GPU's own memory in all, and as far as nobody needs it
// `wanted_bytes`.
Claim claim(const Gpu& gpu, std::uint64_t needed_bytes, std::uint64_t wanted_bytes);

// Says that so much exists. Returns how much may.
std::uint64_t claim_existing(const Gpu& gpu, std::uint64_t bytes);

struct RegionReport {
  std::uint64_t address;
  std::uint64_t size_bytes;  // 0: it is gone
  std::uint64_t hbm_bytes;
  std::uint64_t host_bytes;
  std::uint64_t stored_bytes;
  const char* tag;
  const char* why;  // its pages were moved last; static
};
// False: there is no daemon to tell.
bool report(const Gpu& gpu, const RegionReport& region);

// Whether anything has been claimed: a lost daemon is then to be found again.
bool has_claims();

}  // namespace kvmem::device
