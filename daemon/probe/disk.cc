#include "probe/disk.h"

#include <disk.skel.h>  // made by ebpf/
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace kvmem::probe {
namespace {

constexpr int kRead = 0;
constexpr int kWrite = 1;

std::uint64_t quantile(const kvmem_disk& from, const kvmem_disk& to, int direction, double q) {
  std::uint64_t total = 0;
  for (int i = 0; i < KVMEM_DISK_BUCKETS; ++i)
    total += to.latency[direction][i] - from.latency[direction][i];
  if (total == 0) return 0;
  const auto rank = static_cast<std::uint64_t>(q * static_cast<double>(total - 1));
  std::uint64_t seen = 0;
  int bucket = 0;
  for (; bucket < KVMEM_DISK_BUCKETS - 1; ++bucket) {
    seen += to.latency[direction][bucket] - from.latency[direction][bucket];
    if (seen > rank) break;
  }
  return std::uint64_t{2} << bucket;
}

}  // namespace

Result<std::unique_ptr<DiskProbe>> DiskProbe::create(const std::string& disk,
                                                     const std::vector<std::string>& paths) {
  std::unique_ptr<DiskProbe> probe(new DiskProbe);
  probe->skeleton_ = kvmem_disk_bpf::open();
  if (probe->skeleton_ == nullptr) return refused(-errno, "open of the disk probe");
  kvmem_disk_bpf& skeleton = *probe->skeleton_;
  // (Of more paths than there is room for, some go untimed.)
  std::size_t used = 0;
  const auto watch = [&](const std::string& name) {
    if (used == KVMEM_DISK_NAMES) return;
    kvmem_disk_name& into = skeleton.rodata->disks[used++];
    std::memcpy(&into, name.data(), std::min(name.size(), sizeof into - 1));
  };
  watch(disk);
  for (const std::string& path : paths) watch(path);
  skeleton.rodata->daemon_tgid = static_cast<std::uint32_t>(::getpid());
  if (const int error = kvmem_disk_bpf::load(&skeleton); error != 0)
    return refused(error, "load of the disk probe");
  KV_TRY(attach_all(skeleton.obj, probe->links_));
  return probe;
}

DiskProbe::~DiskProbe() {
  links_.clear();
  kvmem_disk_bpf::destroy(skeleton_);
}

Result<kvmem_disk> DiskProbe::read() const { return sum_of<kvmem_disk>(skeleton_->maps.totals); }

DiskUse use_between(const kvmem_disk& from, const kvmem_disk& to, std::uint64_t elapsed_ns) {
  if (elapsed_ns == 0) return {};
  const auto rate = [&](std::uint64_t before, std::uint64_t after) {
    return static_cast<double>(after - before) * 1e9 / static_cast<double>(elapsed_ns);
  };
  return {.own_read_bytes_s = rate(from.own_bytes[kRead], to.own_bytes[kRead]),
          .own_write_bytes_s = rate(from.own_bytes[kWrite], to.own_bytes[kWrite]),
          .other_read_bytes_s = rate(from.other_bytes[kRead], to.other_bytes[kRead]),
          .other_write_bytes_s = rate(from.other_bytes[kWrite], to.other_bytes[kWrite]),
          .read_p50_us = quantile(from, to, kRead, 0.5),
          .read_p99_us = quantile(from, to, kRead, 0.99),
          .write_p50_us = quantile(from, to, kWrite, 0.5),
          .write_p99_us = quantile(from, to, kWrite, 0.99)};
}

}  // namespace kvmem::probe
