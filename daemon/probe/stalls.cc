#include "probe/stalls.h"

#include <stalls.skel.h>  // made by ebpf/

#include <array>

namespace kvmem::probe {

Result<std::unique_ptr<StallProbe>> StallProbe::create() {
  std::unique_ptr<StallProbe> probe(new StallProbe);
  probe->skeleton_ = kvmem_stalls_bpf::open_and_load();
  if (probe->skeleton_ == nullptr) return refused(-errno, "load of the stall probe");
  KV_TRY(attach_all(probe->skeleton_->obj, probe->links_));
  return probe;
}

StallProbe::~StallProbe() {
  links_.clear();
  kvmem_stalls_bpf::destroy(skeleton_);
}

void StallProbe::follow(pid_t pid) {
  const auto key = static_cast<std::uint32_t>(pid);
  const kvmem_stalls none{};
  (void)bpf_map_update_elem(bpf_map__fd(skeleton_->maps.followed), &key, &none, BPF_NOEXIST);
}

void StallProbe::forget(pid_t pid) {
  const auto key = static_cast<std::uint32_t>(pid);
  (void)bpf_map_delete_elem(bpf_map__fd(skeleton_->maps.followed), &key);
}

Result<kvmem_stalls> StallProbe::read(pid_t pid) const {
  const auto key = static_cast<std::uint32_t>(pid);
  kvmem_stalls found{};
  if (bpf_map_lookup_elem(bpf_map__fd(skeleton_->maps.followed), &key, &found) != 0)
    return Status(Code::kNotFound, "process is not followed");
  return found;
}

Result<kvmem_migrations> StallProbe::migrations() const {
  return sum_of<kvmem_migrations>(skeleton_->maps.migrations);
}

const char* migrate_reason_name(unsigned reason) {
  static constexpr std::array kNames = {
      "compaction",     "memory_failure", "memory_hotplug", "syscall",  "mempolicy_mbind",
      "numa_misplaced", "contig_range",   "longterm_pin",   "demotion", "damon"};
  return reason < kNames.size() ? kNames[reason] : "other";
}

}  // namespace kvmem::probe
