#include "os/rights.h"

#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace kvmem::os {
namespace {

constexpr unsigned kWords = _LINUX_CAPABILITY_U32S_3;
constexpr unsigned kNiceWord = CAP_SYS_NICE / 32;
constexpr std::uint32_t kNice = 1U << CAP_SYS_NICE % 32;

__user_cap_header_struct own_header() { return {_LINUX_CAPABILITY_VERSION_3, 0}; }

Status read_capabilities(__user_cap_data_struct (&sets)[kWords]) {
  __user_cap_header_struct header = own_header();
  return ::syscall(SYS_capget, &header, sets) == 0 ? Status{} : Status::from_errno("capget");
}

}  // namespace

Status drop_capabilities(bool keeps_nice) {
  if (::geteuid() == 0) return {};
  // (Those of the ambient set go with the permitted ones.)
  __user_cap_data_struct sets[kWords] = {};
  KV_TRY(read_capabilities(sets));
  for (unsigned i = 0; i < kWords; ++i) {
    const std::uint32_t kept = keeps_nice && i == kNiceWord ? sets[i].permitted & kNice : 0;
    sets[i] = {kept, kept, 0};
  }
  __user_cap_header_struct header = own_header();
  if (::syscall(SYS_capset, &header, sets) != 0) return Status::from_errno("capset");
  return {};
}

bool may_move_shared_pages() {
  __user_cap_data_struct sets[kWords] = {};
  return read_capabilities(sets).ok() && (sets[kNiceWord].effective & kNice) != 0;
}

}  // namespace kvmem::os
