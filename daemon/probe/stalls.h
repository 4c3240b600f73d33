// StallProbe: what the kernel's own memory management costs the processes it follows, and how many
// OS pages it moves on the whole machine, by reason.
#pragma once

#include <sys/types.h>

#include <memory>
#include <vector>

#include "base/status.h"
#include "ebpf/shared.h"
#include "probe/object.h"

struct kvmem_stalls_bpf;

namespace kvmem::probe {

class StallProbe {
 public:
  // kUnsupported: no right to, or not in this kernel.
  static Result<std::unique_ptr<StallProbe>> create();
  ~StallProbe();
  StallProbe(const StallProbe&) = delete;
  StallProbe& operator=(const StallProbe&) = delete;

  // A process that is followed already goes on. One beyond the table's room is not followed.
  void follow(pid_t pid);
  void forget(pid_t pid);
  // Since follow(). kNotFound: not followed.
  Result<kvmem_stalls> read(pid_t pid) const;
  // Since create().
  Result<kvmem_migrations> migrations() const;

 private:
  StallProbe() = default;

  kvmem_stalls_bpf* skeleton_ = nullptr;
  std::vector<Link> links_;
};

// The kernel's word for a reason of kvmem_migrations.
const char* migrate_reason_name(unsigned reason);

}  // namespace kvmem::probe
