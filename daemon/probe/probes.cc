#include "probe/probes.h"

#include <malloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "os/disk.h"
#include "os/log.h"

namespace kvmem::probe {
namespace {

// Processes are told to the programs by the pid that the daemon sees, so both must mean the same.
bool in_first_pid_namespace() {
  constexpr ino_t kFirst = 0xEFFFFFFC;  // PROC_PID_INIT_INO, include/linux/proc_ns.h
  struct stat info {};
  return ::stat("/proc/self/ns/pid", &info) == 0 && info.st_ino == kFirst;
}

// libbpf says on stderr what it tries; what matters comes back as an error.
int say_nothing(libbpf_print_level /*level*/, const char* /*format*/, va_list /*arguments*/) {
  return 0;
}

}  // namespace

template <class T>
void Probes::Slot<T>::set(Result<std::unique_ptr<T>> made) {
  if (made.ok()) {
    probe = *std::move(made);
  } else {
    why_off = os::reason_of(made.status());
  }
}

std::unique_ptr<Probes> Probes::start(const ProbeOptions& options) {
  auto probes = std::make_unique<Probes>();
  std::string why_none;
  if (!options.enabled) why_none = "ebpf.enable is false";
  if (options.enabled && !in_first_pid_namespace())
    why_none = "kvmemd runs in a pid namespace of its own, where BPF sees other pids";
  if (!why_none.empty()) {
    probes->disk_.why_off = probes->stalls_.why_off = probes->gpu_.why_off = why_none;
    return probes;
  }
  libbpf_set_print(say_nothing);
  if (options.store_path.empty()) {
    probes->disk_.why_off = "there is no page store: set nvme.path";
  } else if (auto disk = os::disk_of(options.store_path); !disk.ok()) {
    probes->disk_.why_off = os::reason_of(disk.status());
  } else {
    probes->disk_.set(DiskProbe::create(*disk, os::paths_of(*disk)));
  }
  probes->stalls_.set(StallProbe::create());
  probes->follow(::getpid());
  probes->gpu_.set(
      GpuProbe::create(options.gpu_driver.empty() ? find_cuda_driver() : options.gpu_driver));
  ::malloc_trim(0);  // the kernel's types were read for it, some 20 MB
  return probes;
}

std::vector<Probes::Source> Probes::sources() const {
  const auto source = [](const char* name, const char* tells, const auto& slot) {
    return Source{name, tells, slot.probe != nullptr, slot.why_off};
  };
  return {source("disk", "who uses the store's disk, and how long its requests take", disk_),
          source("stalls", "what the kernel's own memory management costs engines", stalls_),
          source("gpu", "who holds the GPUs' memory", gpu_)};
}

void Probes::tick(std::uint64_t now_ns) {
  if (disk_.probe != nullptr) {
    if (auto counts = disk_.probe->read(); counts.ok())
      samples_[ticks_++ % samples_.size()] = {now_ns, *counts};
  }
  if (gpu_.probe != nullptr && now_ns - swept_ns_ > kSweepNs) {
    (void)gpu_.probe->read();
    swept_ns_ = now_ns;
  }
}

std::optional<DiskUse> Probes::disk_use() const {
  if (ticks_ < 2) return std::nullopt;
  const std::uint64_t kept = std::min<std::uint64_t>(ticks_, samples_.size());
  const Sample& first = samples_[(ticks_ - kept) % samples_.size()];
  const Sample& last = samples_[(ticks_ - 1) % samples_.size()];
  return use_between(first.counts, last.counts, last.time_ns - first.time_ns);
}

void Probes::follow(pid_t pid) {
  if (stalls_.probe != nullptr) stalls_.probe->follow(pid);
}

void Probes::forget(pid_t pid) {
  if (stalls_.probe != nullptr) stalls_.probe->forget(pid);
}

std::optional<kvmem_stalls> Probes::stalls(pid_t pid) const {
  if (stalls_.probe == nullptr) return std::nullopt;
  auto found = stalls_.probe->read(pid);
  if (!found.ok()) return std::nullopt;
  return *found;
}

std::optional<kvmem_migrations> Probes::migrations() const {
  if (stalls_.probe == nullptr) return std::nullopt;
  auto found = stalls_.probe->migrations();
  if (!found.ok()) return std::nullopt;
  return *found;
}

std::vector<GpuProcess> Probes::gpu_processes() {
  if (gpu_.probe == nullptr) return {};
  return gpu_.probe->read();
}

}  // namespace kvmem::probe
