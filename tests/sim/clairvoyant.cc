#include "tests/sim/clairvoyant.h"

#include <algorithm>
#include <set>
#include <unordered_map>

#include "base/check.h"
#include "policy/write_budget.h"

namespace kvmem::sim {

Hits run_clairvoyant(const Trace& trace, std::size_t capacity_blocks) {
  constexpr std::uint64_t kNever = UINT64_MAX;
  // When each block of each request is asked for again: the number of the request.
  std::vector<std::vector<std::uint64_t>> next(trace.size());
  std::unordered_map<policy::BlockKey, std::uint64_t> seen;
  for (std::size_t n = trace.size(); n-- > 0;) {
    next[n].resize(trace[n].path.size());
    for (std::size_t i = 0; i < trace[n].path.size(); ++i) {
      const auto it = seen.find(trace[n].path[i]);
      next[n][i] = it == seen.end() ? kNever : it->second;
    }
    for (const policy::BlockKey key : trace[n].path) seen[key] = n;
  }
  struct Rank {
    std::uint64_t next;
    std::size_t depth;  // of those asked for at once, the deeper one goes first
    policy::BlockKey key;
    auto operator<=>(const Rank&) const = default;
  };
  std::set<Rank> resident;
  std::unordered_map<policy::BlockKey, Rank> ranks;
  Hits hits;
  for (std::size_t n = 0; n < trace.size(); ++n) {
    const auto& path = trace[n].path;
    std::size_t run = 0;
    while (run < path.size() && ranks.contains(path[run])) ++run;
    hits.hit_blocks += run;
    hits.blocks += path.size();
    for (std::size_t i = path.size(); i-- > 0;) {
      if (const auto it = ranks.find(path[i]); it != ranks.end()) {
        resident.erase(it->second);
        ranks.erase(it);
      }
      if (next[n][i] == kNever) continue;
      const Rank rank{next[n][i], i, path[i]};
      ranks[path[i]] = rank;
      resident.insert(rank);
      if (resident.size() <= capacity_blocks) continue;
      ranks.erase(std::prev(resident.end())->key);
      resident.erase(std::prev(resident.end()));
    }
  }
  return hits;
}

Hits run_policy(const Trace& trace, policy::BlockPolicy& policy) {
  Hits hits;
  std::vector<policy::BlockKey> gone;
  for (const TraceRequest& request : trace) {
    hits.hit_blocks += policy.resident_run(request.path);
    hits.blocks += request.path.size();
    gone.clear();
    policy.serve({request.time_ms, request.path, true, request.input_tokens, request.output_tokens},
                 &gone);
  }
  return hits;
}

Hits run_written(const Trace& trace, policy::BlockPolicy& policy, double writes_per_1000) {
  constexpr std::uint32_t kTenant = 0;
  struct Writes final : policy::Admission {
    bool admits(double chance) override {
      const bool is_worth_it = budget.admits(kTenant, chance, 1, planned);
      planned += is_worth_it;
      return is_worth_it;
    }
    policy::WriteBudget budget;
    std::uint64_t planned = 0;
  } writes;
  double blocks = 0;
  for (const TraceRequest& request : trace) blocks += static_cast<double>(request.path.size());
  // The horizon at least some blocks: a trace may be short.
  writes.budget.set_rate(writes_per_1000 / 1000, std::max(blocks / 24, 10'000.0));
  writes.budget.set_active(kTenant, true);
  Hits hits;
  std::vector<policy::BlockKey> gone;
  std::vector<bool> was_there;
  const auto is_there = [&](const policy::BlockKey& key) {
    return policy.resident_run(std::span(&key, 1)) == 1;
  };
  for (const TraceRequest& request : trace) {
    hits.hit_blocks += policy.resident_run(request.path);
    hits.blocks += request.path.size();
    gone.clear();
    was_there.clear();
    for (const policy::BlockKey& key : request.path) was_there.push_back(is_there(key));
    writes.budget.pass_time(hits.blocks);
    writes.planned = 0;
    policy.serve({.time_ms = request.time_ms,
                  .path = request.path,
                  .input_tokens = request.input_tokens,
                  .output_tokens = request.output_tokens,
                  .admission = &writes},
                 &gone);
    for (std::size_t i = 0; i < request.path.size(); ++i) {
      if (was_there[i] || !is_there(request.path[i])) continue;
      KV_CHECK(writes.budget.spend(kTenant, 1));
      ++hits.written;
    }
  }
  return hits;
}

}  // namespace kvmem::sim
