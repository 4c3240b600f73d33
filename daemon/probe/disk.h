// DiskProbe: how busy the page store's disk is, for whom, and how long its requests take.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "ebpf/shared.h"
#include "probe/object.h"

struct kvmem_disk_bpf;

namespace kvmem::probe {

class DiskProbe {
 public:
  // `disk` is the kernel's name of a whole disk, `paths` those of it that have its requests.
  // kUnsupported: no right to, or not in this kernel.
  static Result<std::unique_ptr<DiskProbe>> create(const std::string& disk,
                                                   const std::vector<std::string>& paths);
  ~DiskProbe();
  DiskProbe(const DiskProbe&) = delete;
  DiskProbe& operator=(const DiskProbe&) = delete;

  // Since create().
  Result<kvmem_disk> read() const;

 private:
  DiskProbe() = default;

  kvmem_disk_bpf* skeleton_ = nullptr;
  std::vector<Link> links_;
};

// From what was counted between two reads.
struct DiskUse {
  double own_read_bytes_s = 0;
  double own_write_bytes_s = 0;
  double other_read_bytes_s = 0;
  double other_write_bytes_s = 0;
  // Upper ends of the buckets: within a factor of 2. 0 where there was no request.
  std::uint64_t read_p50_us = 0;
  std::uint64_t read_p99_us = 0;
  std::uint64_t write_p50_us = 0;
  std::uint64_t write_p99_us = 0;
};
DiskUse use_between(const kvmem_disk& from, const kvmem_disk& to, std::uint64_t elapsed_ns);

}  // namespace kvmem::probe
