// What changed between two answers of the daemon's status, per second. Pure.
//
// Counters only grow while a daemon lives. One that restarted between the answers, or an engine
// that came back, begins at zero again: what would be negative is not known, never a rate. The same
// holds for what was in one of the answers only.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace kvmem::cli {

using Rate = std::optional<double>;  // per second; nothing: not known

struct Rates {
  double elapsed_s = 0;    // between the two; 0: there was one answer only
  bool restarted = false;  // another daemon answered the second time

  struct Engine {
    std::string pid, name;
    std::uint64_t size_bytes = 0;
    std::uint64_t resident_bytes = 0;
    Rate faults;
    Rate stall_ms;  // in the kernel's memory management, of each second; of all its threads
  };
  std::vector<Engine> engines;

  struct Region {
    std::string region, pid, name;
    std::uint64_t size_bytes = 0;
    std::uint64_t resident_bytes = 0;
    std::uint64_t heat_bytes = 0;  // in use every time around
    Rate faults;
  };
  std::vector<Region> regions;

  std::vector<std::pair<std::string, double>> moves;  // by reason, those above 0
  Rate faults, demand_waits, promotions, demotions, prefetches;
  Rate store_read_bytes, store_write_bytes, origin_read_bytes;
  Rate ahead_used, ahead_unused;  // pages fetched ahead: touched; demoted untouched
};

// `before` may be null: then nothing is known of rates.
Rates rates_between(const nlohmann::json& before, const nlohmann::json& now, double elapsed_s);

// For scripts: the rates, and of the second answer what they belong to. Unknown rates are null.
nlohmann::json rates_json(const Rates& rates, const nlohmann::json& now);

}  // namespace kvmem::cli
