#include "cli/rates.h"

#include <cmath>
#include <map>

#include "cli/fields.h"
#include "cli/text.h"

namespace kvmem::cli {
namespace {

using nlohmann::json;

// The rows of `list` by what names them for good.
std::map<std::string, const json*> by_key(const json& list, const char* key) {
  std::map<std::string, const json*> out;
  for (const json& row : list) {
    if (std::string name = fields::text(row, key); !name.empty()) out.emplace(name, &row);
  }
  return out;
}

double stall_ms(const json& engine) {
  const json& s = fields::member(engine, "stalls");
  return fields::real(s, "reclaim_ms") + fields::real(s, "limit_reclaim_ms") +
         fields::real(s, "compaction_ms");
}

bool is_restarted(const json& before, const json& now) {
  const json& a = fields::member(before, "daemon");
  const json& b = fields::member(now, "daemon");
  return fields::text(a, "pid") != fields::text(b, "pid") ||
         fields::real(b, "uptime_s") < fields::real(a, "uptime_s");
}

// Of two answers of one daemon.
class Between {
 public:
  Between(const json& before, const json& now, double elapsed_s)
      : before_(before), now_(now), elapsed_s_(elapsed_s) {}

  Rate of(double before, double now) const {
    if (elapsed_s_ <= 0 || !std::isfinite(now - before) || now < before) return std::nullopt;
    return (now - before) / elapsed_s_;
  }
  Rate counter(const char* name) const {
    const json& a = fields::member(before_, "counters");
    const json& b = fields::member(now_, "counters");
    if (!fields::has(a, name) || !fields::has(b, name)) return std::nullopt;
    return of(fields::real(a, name), fields::real(b, name));
  }

 private:
  const json& before_;
  const json& now_;
  double elapsed_s_;
};

Rate sum(std::initializer_list<Rate> rates) {
  double total = 0;
  for (const Rate& rate : rates) {
    if (!rate) return std::nullopt;
    total += *rate;
  }
  return total;
}

json or_null(const Rate& rate) { return rate ? json(*rate) : json(nullptr); }

}  // namespace

Rates rates_between(const json& before, const json& now, double elapsed_s) {
  Rates out;
  const bool is_first = !before.is_object();
  out.restarted = !is_first && is_restarted(before, now);
  out.elapsed_s = is_first ? 0 : elapsed_s;
  const Between between(before, now, is_first || out.restarted ? 0 : elapsed_s);

  const auto engines = by_key(fields::array(before, "engines"), "session");
  for (const json& e : fields::array(now, "engines")) {
    Rates::Engine row{fields::text(e, "pid"),
                      fields::text(e, "tag"),
                      fields::number(e, "size_bytes"),
                      fields::number(e, "resident_bytes"),
                      std::nullopt,
                      std::nullopt};
    if (const auto it = engines.find(fields::text(e, "session")); it != engines.end()) {
      if (fields::has(e, "faults")) {
        row.faults = between.of(fields::real(*it->second, "faults"), fields::real(e, "faults"));
      }
      if (fields::has(e, "stalls")) row.stall_ms = between.of(stall_ms(*it->second), stall_ms(e));
    }
    out.engines.push_back(std::move(row));
  }

  const auto regions = by_key(fields::array(before, "regions"), "id");
  for (const json& r : fields::array(now, "regions")) {
    const std::uint64_t page_bytes = fields::number(r, "page_bytes");
    const double heat_bytes = fields::real(r, "heat_pages") * static_cast<double>(page_bytes);
    Rates::Region row{
        fields::text(r, "region"),
        fields::text(r, "pid"),
        joined({fields::text(r, "tag"), fields::text(r, "path")}, ", "),
        fields::number(r, "size_bytes"),
        fields::number(r, "resident_pages") * page_bytes,
        heat_bytes > 0 && heat_bytes < 1e18 ? static_cast<std::uint64_t>(heat_bytes) : 0,
        std::nullopt};
    const auto it = regions.find(fields::text(r, "id"));
    if (it != regions.end() && fields::has(r, "faults")) {
      row.faults = between.of(fields::real(*it->second, "faults"), fields::real(r, "faults"));
    }
    out.regions.push_back(std::move(row));
  }

  // A reason that was not there before is one that had no moves.
  const json& reasons = fields::member(before, "moves_by_reason");
  for (const auto& item : fields::member(now, "moves_by_reason").items()) {
    const char* const name = item.key().c_str();
    const double moves = fields::real(fields::member(now, "moves_by_reason"), name);
    const Rate rate = between.of(fields::real(reasons, name), moves);
    if (rate && *rate > 0) out.moves.emplace_back(printable(item.key()), *rate);
  }

  out.faults = sum({between.counter("faults_missing"), between.counter("faults_minor"),
                    between.counter("faults_wp")});
  out.demand_waits = between.counter("demand_waits");
  out.promotions = between.counter("promotions");
  out.demotions = between.counter("demotions");
  out.prefetches = between.counter("prefetches");
  out.store_read_bytes = between.counter("store_read_bytes");
  out.store_write_bytes = between.counter("store_write_bytes");
  out.origin_read_bytes = between.counter("origin_read_bytes");
  out.ahead_used = between.counter("prefetch_useful");
  out.ahead_unused = between.counter("prefetch_wasted");
  return out;
}

json rates_json(const Rates& rates, const json& now) {
  json engines = json::array();
  for (const Rates::Engine& e : rates.engines) {
    engines.push_back({{"pid", e.pid},
                       {"tag", e.name},
                       {"size_bytes", e.size_bytes},
                       {"resident_bytes", e.resident_bytes},
                       {"faults_s", or_null(e.faults)},
                       {"stall_ms_s", or_null(e.stall_ms)}});
  }
  json regions = json::array();
  for (const Rates::Region& r : rates.regions) {
    regions.push_back({{"region", r.region},
                       {"pid", r.pid},
                       {"what", r.name},
                       {"size_bytes", r.size_bytes},
                       {"resident_bytes", r.resident_bytes},
                       {"heat_bytes", r.heat_bytes},
                       {"faults_s", or_null(r.faults)}});
  }
  json moves = json::object();
  for (const auto& [reason, rate] : rates.moves) moves[reason] = rate;
  return {{"elapsed_s", rates.elapsed_s},
          {"restarted", rates.restarted},
          {"daemon", fields::member(now, "daemon")},
          {"tiers", fields::array(now, "tiers")},
          {"engines", engines},
          {"regions", regions},
          {"moves_s", moves},
          {"faults_s", or_null(rates.faults)},
          {"demand_waits_s", or_null(rates.demand_waits)},
          {"promotions_s", or_null(rates.promotions)},
          {"demotions_s", or_null(rates.demotions)},
          {"prefetches_s", or_null(rates.prefetches)},
          {"prefetch_useful_s", or_null(rates.ahead_used)},
          {"prefetch_wasted_s", or_null(rates.ahead_unused)},
          {"store_read_bytes_s", or_null(rates.store_read_bytes)},
          {"store_write_bytes_s", or_null(rates.store_write_bytes)},
          {"origin_read_bytes_s", or_null(rates.origin_read_bytes)},
          {"gpu_processes", fields::array(now, "gpu_processes")},
          {"sources", fields::array(now, "sources")}};
}

}  // namespace kvmem::cli
