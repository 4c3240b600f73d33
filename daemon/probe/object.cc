#include "probe/object.h"

#include <cerrno>
#include <cstdarg>

namespace kvmem::probe {

Status refused(int error, const char* what) {
  if (error == -EPERM || error == -EACCES) {
    return {Code::kUnsupported,
            "kvmemd may not: run it as root, or give it CAP_BPF and CAP_PERFMON"};
  }
  if (error == -ESRCH || error == -ENOENT || error == -EINVAL || error == -ENOTSUP)
    return {Code::kUnsupported, "the kernel lacks it: BPF, BTF and tracepoints of 6.1 or later"};
  return Status::from_errno(what, -error);
}

Status attach_all(const bpf_object* object, std::vector<Link>& links) {
  const bpf_program* program = nullptr;
  while ((program = bpf_object__next_program(object, const_cast<bpf_program*>(program))) !=
         nullptr) {
    Link link(bpf_program__attach(program));
    if (!link) return refused(-errno, "attach of a probe");
    links.push_back(std::move(link));
  }
  return {};
}

}  // namespace kvmem::probe
