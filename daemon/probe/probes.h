// Probes: what the kernel can tell by BPF, all of it optional. Each probe is on, or off for a
// reason that is kept; nothing else of the daemon depends on one.
//
// Loop thread only. Must be started while the process still has its rights, and goes on without.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "probe/disk.h"
#include "probe/gpu.h"
#include "probe/stalls.h"

namespace kvmem::probe {

struct ProbeOptions {
  bool enabled = true;
  std::string store_path;  // empty: no disk to watch
  std::string gpu_driver;  // empty: where it usually lies
};

class Probes {
 public:
  static std::unique_ptr<Probes> start(const ProbeOptions& options);

  struct Source {
    const char* name;
    const char* tells;
    bool on;
    std::string why_off;
  };
  std::vector<Source> sources() const;

  // Once a second: the disk's use is that of the last kWindowSeconds.
  void tick(std::uint64_t now_ns);
  std::optional<DiskUse> disk_use() const;

  void follow(pid_t pid);
  void forget(pid_t pid);
  std::optional<kvmem_stalls> stalls(pid_t pid) const;
  std::optional<kvmem_migrations> migrations() const;

  std::vector<GpuProcess> gpu_processes();

 private:
  static constexpr unsigned kWindowSeconds = 10;
  static constexpr std::uint64_t kSweepNs = 60'000'000'000;  // of GPU processes that have ended

  // A probe, or why there is none.
  template <class T>
  struct Slot {
    std::unique_ptr<T> probe;
    std::string why_off;
    void set(Result<std::unique_ptr<T>> made);
  };
  struct Sample {
    std::uint64_t time_ns = 0;
    kvmem_disk counts{};
  };

  Slot<DiskProbe> disk_;
  Slot<StallProbe> stalls_;
  Slot<GpuProbe> gpu_;
  std::array<Sample, kWindowSeconds + 1> samples_;  // a ring
  std::uint64_t ticks_ = 0;
  std::uint64_t swept_ns_ = 0;
};

}  // namespace kvmem::probe
