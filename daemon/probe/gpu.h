// GpuProbe: who holds the GPUs' memory, of all processes that use the CUDA driver, whether kvmem is
// in them or not. What was allocated before the probe was there is not known.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "ebpf/shared.h"
#include "probe/object.h"

struct kvmem_gpu_bpf;

namespace kvmem::probe {

struct GpuProcess {
  pid_t pid = 0;
  uid_t uid = 0;
  std::string cgroup;  // as in /proc/PID/cgroup; tells the container
  kvmem_gpu_process counts{};
};

class GpuProbe {
 public:
  // `driver` is the libcuda.so.1 that the processes use: another copy of it is not seen.
  // kNotFound: there is none; kUnsupported: no right to, or not in this kernel.
  static Result<std::unique_ptr<GpuProbe>> create(const std::string& driver);
  ~GpuProbe();
  GpuProbe(const GpuProbe&) = delete;
  GpuProbe& operator=(const GpuProbe&) = delete;

  // Those that live. Forgets the others.
  std::vector<GpuProcess> read();

 private:
  GpuProbe() = default;
  void forget(const std::vector<kvmem_gpu_key>& ended);

  kvmem_gpu_bpf* skeleton_ = nullptr;
  std::vector<Link> links_;
};

// Where a CUDA driver usually lies on this machine; empty: nowhere known.
std::string find_cuda_driver();

}  // namespace kvmem::probe
