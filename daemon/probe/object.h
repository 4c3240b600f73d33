// What every probe needs of libbpf: its objects and links as owners, its messages kept quiet, its
// errors as Status.
#pragma once

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <memory>
#include <vector>

#include "base/status.h"

namespace kvmem::probe {

struct DestroyLink {
  void operator()(bpf_link* link) const { (void)bpf_link__destroy(link); }
};
using Link = std::unique_ptr<bpf_link, DestroyLink>;  // detached when it goes

// Why the kernel or libbpf refused. `error` is negative, as libbpf's are.
Status refused(int error, const char* what);

// Sum over the processors of the one entry of a per-CPU array.
// T: 64-bit counters and nothing else.
template <class T>
Result<T> sum_of(const bpf_map* map) {
  static_assert(sizeof(T) % sizeof(std::uint64_t) == 0);
  const int processors = libbpf_num_possible_cpus();
  if (processors <= 0) return refused(processors, "processors");
  std::vector<T> parts(static_cast<std::size_t>(processors));
  const std::uint32_t zero = 0;
  if (const int error = bpf_map_lookup_elem(bpf_map__fd(map), &zero, parts.data()); error != 0)
    return refused(error, "read of a probe");
  T sum{};
  auto* into = reinterpret_cast<std::uint64_t*>(&sum);
  for (const T& part : parts) {
    const auto* from = reinterpret_cast<const std::uint64_t*>(&part);
    for (std::size_t i = 0; i < sizeof(T) / sizeof(std::uint64_t); ++i) into[i] += from[i];
  }
  return sum;
}

// Attaches every program of `object` that says itself where it goes.
Status attach_all(const bpf_object* object, std::vector<Link>& links);

}  // namespace kvmem::probe
