#include "server/probe_json.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "os/clock.h"

namespace kvmem::server {

using nlohmann::json;

json disk_json(Server& server) {
  const auto use = server.probes().disk_use();
  if (!use) return nullptr;
  return {{"own_read_bytes_s", use->own_read_bytes_s},
          {"own_write_bytes_s", use->own_write_bytes_s},
          {"other_read_bytes_s", use->other_read_bytes_s},
          {"other_write_bytes_s", use->other_write_bytes_s},
          {"read_p50_us", use->read_p50_us},
          {"read_p99_us", use->read_p99_us},
          {"write_p50_us", use->write_p50_us},
          {"write_p99_us", use->write_p99_us}};
}

json stalls_json(Server& server, pid_t pid) {
  const auto found = server.probes().stalls(pid);
  if (!found) return nullptr;
  const auto ms = [](std::uint64_t ns) { return static_cast<double>(ns) / 1e6; };
  return {{"reclaims", found->reclaims},
          {"reclaim_ms", ms(found->reclaim_ns)},
          {"limit_reclaims", found->limit_reclaims},
          {"limit_reclaim_ms", ms(found->limit_reclaim_ns)},
          {"compactions", found->compactions},
          {"compaction_ms", ms(found->compaction_ns)},
          {"migrated_os_pages", found->migrated_pages}};
}

json migrations_json(Server& server) {
  const auto found = server.probes().migrations();
  if (!found) return nullptr;
  json out = json::object();
  for (unsigned i = 0; i < KVMEM_MIGRATE_REASONS; ++i) {
    if (found->moved_pages[i] == 0 && found->failed_pages[i] == 0) continue;
    // Several reasons that have no name here share a row.
    const char* const name = probe::migrate_reason_name(i);
    json row = out.value(name, json{{"moved_os_pages", 0U}, {"failed_os_pages", 0U}});
    row["moved_os_pages"] = row["moved_os_pages"].get<std::uint64_t>() + found->moved_pages[i];
    row["failed_os_pages"] = row["failed_os_pages"].get<std::uint64_t>() + found->failed_pages[i];
    out[name] = std::move(row);
  }
  return out;
}

json gpu_processes_json(Server& server, const os::Peer& peer) {
  json out = json::array();
  const std::uint64_t now = os::now_ns();
  for (const probe::GpuProcess& process : server.probes().gpu_processes()) {
    if (!may_see(peer, process.uid)) continue;
    const kvmem_gpu_process& counts = process.counts;
    const auto& sessions = server.sessions();
    const bool is_engine = std::any_of(sessions.begin(), sessions.end(), [&](const auto& s) {
      return s.second->id != 0 && !s.second->ending && s.second->pid == process.pid;
    });
    out.push_back(
        {{"pid", process.pid},
         {"uid", process.uid},
         {"name", std::string(counts.comm, ::strnlen(counts.comm, sizeof counts.comm))},
         {"cgroup", process.cgroup},
         {"under_kvmem", is_engine},
         {"device_bytes", counts.device_bytes},
         {"device_peak_bytes", counts.device_peak_bytes},
         {"host_bytes", counts.host_bytes},
         {"allocations", counts.allocations},
         {"frees", counts.frees},
         {"failures", counts.failures},
         {"untracked", counts.untracked},
         {"contexts", counts.contexts},
         {"modules", counts.modules},
         {"idle_s",
          static_cast<double>(now - std::min<std::uint64_t>(now, counts.last_ns)) / 1e9}});
  }
  return out;
}

json sources_json(Server& server) {
  const bool sampling = server.config().policy.sampling;
  json out = json::array(
      {{{"name", "faults"}, {"tells", "which pages engines touch that are away"}, {"on", true}},
       {{"name", "sampling"},
        {"tells", "which pages in DRAM are in use, by minor faults"},
        {"on", sampling},
        {"why_off", sampling ? "" : "policy.sampling is false"}}});
  for (const auto& source : server.probes().sources()) {
    out.push_back({{"name", source.name},
                   {"tells", source.tells},
                   {"on", source.on},
                   {"why_off", source.why_off}});
  }
  return out;
}

}  // namespace kvmem::server
