// Settings: the environment, read once at load.
//
//   KVMEM=off              nothing is intercepted, the C API answers -ENOTSUP
//   KVMEM_INTERCEPT=1      intercept although LD_PRELOAD does not name the library
//   KVMEM_SOCKET=PATH      the daemon's socket
//   KVMEM_THRESHOLD=BYTES  smallest allocation that becomes a region (K, M, G understood)
//   KVMEM_TAG=TEXT         name of this engine in kvmemctl; default: the program's
//   KVMEM_DEVICE=1         device memory, too, becomes regions (under construction: off by default)
//   KVMEM_HBM=BYTES        how much memory of each GPU this engine's regions may use; default: all
//   KVMEM_GPU_CAPACITY=BYTES  with a smaller KVMEM_HBM: how much cuMemGetInfo says that each has;
//                          what KVMEM_HBM does not grant is host memory at the same addresses
//   KVMEM_GPU_THRESHOLD=BYTES  smallest GPU allocation that becomes a region; at least 2M
//   KVMEM_PARK_AFTER=SECONDS  an engine that has done nothing on its GPUs for so long gives their
//                          memory back until it does; default: never
//   KVMEM_VERBOSE=1        more than one line on standard error
//   KVMEM_USER_FAULTS_ONLY=1  accept a userfaultfd that cannot serve the kernel's own faults:
//                          read(2) into a cold page then fails with EFAULT
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvmem {

struct Settings {
  bool off = false;
  bool intercept = false;
  bool verbose = false;
  bool user_faults_only = false;
  bool device = false;
  std::size_t hbm_bytes = SIZE_MAX;
  std::size_t gpu_capacity_bytes = 0;  // 0: not set
  std::uint64_t park_after_ns = 0;     // 0: never
  std::size_t gpu_threshold_bytes = std::size_t{2} << 20;
  std::size_t threshold_bytes = std::size_t{32} << 20;
  char socket_path[108] = {};  // sun_path
  char tag[64] = {};
};

// `environment` as main's third argument. Never allocates.
Settings read_settings(char* const* environment);

// Written by init before any other use, constant afterwards.
extern Settings g_settings;

}  // namespace kvmem
