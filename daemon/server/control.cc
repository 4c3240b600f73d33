// What kvmemctl may ask: the daemon's state as JSON, one page explained, pages moved by hand.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "os/clock.h"
#include "os/memory.h"
#include "os/numa.h"
#include "server/probe_json.h"
#include "server/server.h"

namespace kvmem::server {
namespace {

using migrate::Region;
using nlohmann::json;
using residency::PageState;
using residency::Residency;
using wire::ControlOp;
using wire::Reply;
using wire::Request;

constexpr std::uint32_t kExplainMovesMax = 16;
// Of so many at most a number each; whoever wants those of more asks for a part at a time.
constexpr std::uint32_t kPageNumbersMax = 1U << 16;

const char* backing_name(os::MemoryKind kind) {
  switch (kind) {
    case os::MemoryKind::kHugeTlb:
      return "hugetlb";
    case os::MemoryKind::kHugeShmem:
      return "thp";
    case os::MemoryKind::kShmem:
      return "4k";
  }
  return "?";
}

const char* state_name(PageState state) {
  static constexpr std::array kNames = {"fresh",  "resident", "writing", "stored",
                                        "origin", "filling",  "lost"};
  return kNames[static_cast<std::size_t>(state)];
}

const char* tier_name(PageState state, model::Memory memory) {
  switch (state) {
    case PageState::kResident:
    case PageState::kWriting:
      return memory == model::Memory::kCxl ? "cxl" : "dram";
    case PageState::kStored:
      return "nvme";
    case PageState::kOrigin:
      return "origin";
    case PageState::kFilling:
      return memory == model::Memory::kCxl ? "cxl (arriving)" : "dram (arriving)";
    case PageState::kFresh:
      return "none (never touched)";
    case PageState::kLost:
      return "none (lost)";
  }
  return "?";
}

// Resident pages in CXL memory have another letter of their own.
char state_char(Residency entry, model::Memory memory, bool is_clean) {
  const bool in_cxl = memory == model::Memory::kCxl;
  switch (entry.state) {
    case PageState::kFresh:
      return '.';
    case PageState::kResident:
      if (is_clean || (entry.flags & Residency::kHasCopy) != 0) return in_cxl ? 'c' : 'r';
      return in_cxl ? 'C' : 'R';
    case PageState::kWriting:
      return 'W';
    case PageState::kStored:
      return 'S';
    case PageState::kOrigin:
      return 'O';
    case PageState::kFilling:
      return 'F';
    case PageState::kLost:
      return 'X';
  }
  return '?';
}

// `wanted`: the memory that regions are made of where it can be had.
json region_json(const loop::Planner& planner, const Region& region, os::MemoryKind wanted) {
  std::array<std::uint64_t, 8> states{};
  std::uint64_t pinned = 0;
  std::uint64_t aside = 0;
  std::uint64_t cxl = 0;
  double heat = 0;
  for (std::uint32_t page = 0; page < region.page_count(); ++page) {
    const Residency entry = region.table.read(page);
    heat += planner.heat(region.ref(page));
    ++states[static_cast<std::size_t>(entry.state)];
    // An origin page that the file holds is resident and clean.
    pinned += (entry.flags & Residency::kPinned) != 0;
    aside += (entry.flags & Residency::kAside) != 0;
    const bool has_frame = entry.state == PageState::kResident ||
                           entry.state == PageState::kWriting || entry.state == PageState::kFilling;
    cxl += has_frame && region.frame_of(page) == model::Memory::kCxl;
  }
  const auto of = [&](PageState state) { return states[static_cast<std::size_t>(state)]; };
  std::string backing = backing_name(region.memory.kind());
  const char* why = "";
  if (aside > 0) {
    backing += std::string("+") + backing_name(region.aside.kind());
    why = "the kernel had no huge page for some of its pages";
  } else if (wanted == os::MemoryKind::kHugeTlb && region.memory.kind() != wanted) {
    why = "the kernel had no huge page when it was made";
  }
  json sessions = json::array();
  for (const auto& view : region.views) {
    json session = std::to_string(view->session_id);
    // (One for each stretch that lies at several addresses.)
    if (sessions.empty() || sessions.back() != session) sessions.push_back(std::move(session));
  }
  return {{"region", region.slot},
          {"id", std::to_string(region.id)},  // its number is another's when it is gone
          {"session", std::to_string(region.session_id)},
          {"pid", region.pid},
          {"uid", region.uid},
          {"tag", region.tag},
          {"kind", region.origin != nullptr ? "origin" : "anonymous"},
          {"path", region.origin != nullptr ? region.origin->path() : ""},
          {"size_bytes", static_cast<std::uint64_t>(region.page_count()) << kPageShift},
          {"page_bytes", kPageBytes},
          {"page_count", region.page_count()},
          {"backing", backing},
          {"backing_why", why},
          {"aside_pages", aside},
          {"views", region.views.size()},
          {"sessions", sessions},
          {"resident_pages",
           of(PageState::kResident) + of(PageState::kWriting) + of(PageState::kFilling)},
          {"cxl_pages", cxl},  // of the resident ones
          {"stored_pages", of(PageState::kStored)},
          {"origin_pages", of(PageState::kOrigin)},
          {"fresh_pages", of(PageState::kFresh)},
          {"lost_pages", of(PageState::kLost)},
          {"pinned_pages", pinned},
          {"heat_pages", heat},  // the sum of their heats: pages in use every time around
          {"faults", region.faults}};
}

// CXL memory: what it is, and what moves between it and DRAM.
json cxl_json(loop::Loop& loop) {
  const tier::MemoryNode& cxl = loop.cxl();
  json nodes = json::array();
  for (const os::NumaNode& node : os::numa_nodes()) {
    if (!cxl.nodes().has(node.number)) continue;
    nodes.push_back({{"node", node.number},
                     {"total_bytes", node.total_bytes},
                     {"free_bytes", node.free_bytes},
                     {"distance", node.distance},
                     {"latency_ns", node.latency_ns},
                     {"bandwidth_bytes_s", node.bandwidth_mbps * std::uint64_t{1'000'000}},
                     {"movable_only", node.is_movable}});
  }
  const model::Counters& c = loop.migrator().counters();
  const loop::PlacerStats stats = loop.placer().stats();
  return {{"name", "cxl"},
          {"nodes", cxl.nodes().text()},
          {"capacity_bytes", cxl.capacity_pages() * kPageBytes},
          {"used_bytes", cxl.used_pages() * kPageBytes},
          {"each_node", nodes},
          {"pages_to_dram", c.pages_to_dram},
          {"pages_to_cxl", c.pages_to_cxl},
          {"place_failures", c.place_failures},
          {"swaps_hotter", stats.swaps_hotter},
          {"ups_room", stats.ups_room},
          {"downs_room", stats.downs_room},
          {"looks", stats.looks},
          {"looks_used", stats.looks_used},
          {"pace_bytes_s", static_cast<std::uint64_t>(stats.pace_per_s * kPageBytes)},
          {"limit_bytes_s", static_cast<std::uint64_t>(stats.limit_per_s * kPageBytes)},
          {"gain", stats.gain}};
}

// Null: none.
json write_budget_json(Server& server) {
  const policy::WriteBudget& budget = server.caches().write_budget();
  if (!budget.is_limited()) return nullptr;
  return {{"bytes_per_day", server.config().cache.write_bytes_per_day},
          {"spent_bytes", budget.spent_bytes()},
          {"saved_bytes", static_cast<std::uint64_t>(budget.saved_bytes())},
          {"saved_max_bytes", static_cast<std::uint64_t>(budget.burst_bytes())}};
}

json tiers_json(Server& server) {
  loop::Loop& loop = server.loop();
  json tiers = json::array();
  tiers.push_back({{"name", "dram"},
                   {"nodes", loop.dram().nodes().text()},
                   {"capacity_bytes", loop.dram().capacity_pages() * kPageBytes},
                   {"used_bytes", loop.dram().used_pages() * kPageBytes},
                   {"block_cache_bytes", server.caches().dram_pages() * kPageBytes},  // beside it
                   {"backing", backing_name(loop.memory_kind())}});
  if (loop.cxl().budget_pages() > 0 || loop.cxl().used_pages() > 0) tiers.push_back(cxl_json(loop));
  if (const tier::Store* store = loop.store(); store != nullptr) {
    const tier::StoreStats stats = store->stats();
    tiers.push_back({{"name", "nvme"},
                     {"path", server.config().nvme.path},
                     {"capacity_bytes", stats.slots_max * kPageBytes},
                     {"used_bytes", (stats.slots_live[0] + stats.slots_live[1]) * kPageBytes},
                     {"blocks_bytes", stats.slots_live[1] * kPageBytes},
                     {"blocks_unsynced_bytes", stats.slots_unsynced * kPageBytes},
                     {"blocks_unasked_bytes", server.caches().records().pages_left() * kPageBytes},
                     {"write_budget", write_budget_json(server)},
                     {"file_bytes", stats.file_bytes},
                     {"disk", disk_json(server)},
                     {"quarantined", stats.slots_retired},
                     {"segments_failed", stats.segments_failed},
                     {"queued", stats.queued}});
  }
  std::uint64_t files = 0;
  std::uint64_t bytes = 0;
  for (const Region* region : loop.regions()) {
    if (region == nullptr || region->origin == nullptr) continue;
    ++files;
    bytes += region->origin->size_bytes();
  }
  tiers.push_back({{"name", "origin"}, {"files", files}, {"size_bytes", bytes}});
  return tiers;
}

json regions_json(Server& server, const os::Peer& peer) {
  json regions = json::array();
  for (const Region* region : server.loop().regions()) {
    if (region == nullptr || !may_see(peer, region->uid)) continue;
    regions.push_back(region_json(server.loop().planner(), *region, server.loop().memory_kind()));
  }
  return regions;
}

std::string uuid_text(const GpuUuid& uuid) {
  static constexpr char kDigits[] = "0123456789abcdef";
  const auto bytes = std::as_bytes(std::span(uuid));
  std::string out = "GPU-";
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out += '-';
    out += kDigits[std::to_integer<unsigned>(bytes[i]) >> 4];
    out += kDigits[std::to_integer<unsigned>(bytes[i]) & 15];
  }
  return out;
}

// GPUs of whose memory an engine holds some. Who holds how much is its owner's business.
json gpus_json(Server& server, const os::Peer& peer) {
  json out = json::array();
  for (const auto& [uuid, gpu] : server.gpus()) {
    json holders = json::array();
    for (const auto& [number, session] : server.sessions()) {
      const std::uint64_t held = gpu.claims.held_by(session->id);
      if (session->id == 0 || held == 0 || !may_see(peer, session->peer.uid)) continue;
      holders.push_back({{"pid", session->pid}, {"tag", session->tag}, {"claimed_bytes", held}});
    }
    std::uint64_t absent_bytes = 0;
    for (const std::uint64_t id : server.orphans()) absent_bytes += gpu.claims.held_by(id);
    out.push_back({{"gpu", uuid_text(uuid)},
                   {"total_bytes", gpu.total_bytes},
                   {"budget_bytes", gpu.claims.budget_bytes()},
                   {"claimed_bytes", gpu.claims.claimed_bytes()},
                   {"absent_bytes", absent_bytes},  // of engines that are not back yet
                   {"engines", gpu.claims.holders()},
                   {"holders", holders}});
  }
  return out;
}

json gpu_regions_json(Server& server, const os::Peer& peer) {
  json out = json::array();
  for (const auto& [number, session] : server.sessions()) {
    if (session->id == 0 || session->ending || !may_see(peer, session->peer.uid)) continue;
    for (const auto& [address, region] : session->gpu_regions) {
      char at[32];
      std::snprintf(at, sizeof at, "0x%llx", static_cast<unsigned long long>(address));
      out.push_back({{"session", std::to_string(session->id)},
                     {"pid", session->pid},
                     {"uid", session->peer.uid},
                     {"tag", region.tag},
                     {"gpu", uuid_text(region.gpu)},
                     {"address", at},
                     {"size_bytes", region.size_bytes},
                     {"hbm_bytes", region.hbm_bytes},
                     {"host_bytes", region.host_bytes},
                     {"stored_bytes", region.stored_bytes},
                     {"last_move", region.why}});
    }
  }
  return out;
}

// The last choice between reading and computing stored blocks, and what it was made from.
json choice_json(const cache::ChoiceMade& made) {
  if (made.ns == 0) return nullptr;
  constexpr const char* kNames[] = {"read", "compute", "split"};
  const auto ms = [](double ns) { return ns / 1e6; };
  json out{{"ago_s", static_cast<double>(os::now_ns() - made.ns) / 1e9},
           {"kind", kNames[static_cast<std::size_t>(made.choice.kind)]},
           {"blocks", made.blocks},
           {"stored", made.stored},
           {"compute_end", made.choice.compute_end},
           {"overlaps", made.overlaps},
           {"is_known", made.is_known}};
  if (made.is_known) {
    out["chosen_ms"] = ms(made.choice.ns);
    out["read_ms"] = ms(made.choice.read_ns);
    out["compute_ms"] = ms(made.choice.compute_ns);
    out["read_first_ms"] = ms(made.read.first_ns);
    out["read_page_ms"] = ms(made.read.page_ns);
    out["compute_first_block_ms"] = ms(made.compute.ns(0));
    out["compute_block_more_ms"] = ms(made.compute.ns(1) - made.compute.ns(0));
  }
  return out;
}

json caches_json(Server& server, const os::Peer& peer) {
  json out = json::array();
  const Caches& caches = server.caches();
  const std::uint64_t now_ms = os::now_ns() / 1'000'000;
  for (const auto& [key, held] : caches.all()) {
    if (!may_see(peer, key.uid)) continue;
    const auto share_bytes = [&, uid = key.uid](const policy::BlockShares& shares) {
      return shares.share_of(uid, now_ms) * kPageBytes;
    };
    const cache::CacheOptions& options = held.cache->options();
    const cache::CacheStats stats = held.cache->stats();
    const std::uint64_t slot_bytes = held.cache->slot_bytes();
    out.push_back({{"uid", key.uid},
                   {"block_bytes", key.block_bytes},
                   {"policy", options.policy},
                   {"connections", held.connections},
                   {"dram_capacity_bytes", options.slots * slot_bytes},
                   {"dram_used_bytes", stats.slots_used * slot_bytes},
                   {"dram_share_bytes", share_bytes(caches.dram_shares())},
                   {"store_capacity_bytes", options.stored_blocks * slot_bytes},
                   {"store_share_bytes", share_bytes(caches.store_shares())},
                   {"store_used_bytes", stats.stored * slot_bytes},
                   {"blocks_ready", stats.ready},
                   {"blocks_leased", stats.leased},
                   {"blocks_stored", stats.stored},
                   {"requests", stats.requests},
                   {"blocks_asked", stats.asked},
                   {"hits_dram", stats.hits_dram},
                   {"hits_stored", stats.hits_stored},
                   {"hits_lost", stats.hits_lost},
                   {"left_to_compute", stats.left_to_compute},
                   {"choices_read", stats.choices[0]},
                   {"choices_compute", stats.choices[1]},
                   {"choices_split", stats.choices[2]},
                   {"last_choice", choice_json(held.cache->last_choice())},
                   {"puts", stats.puts},
                   {"puts_known", stats.puts_known},
                   {"puts_refused", stats.puts_refused},
                   {"blocks_written", stats.written},
                   {"write_errors", stats.write_errors},
                   {"write_budget_refused", stats.write_budget_refused},
                   {"write_chance_least", caches.write_budget().price(key.uid)},
                   {"blocks_read", stats.read},
                   {"read_errors", stats.read_errors},
                   {"dropped_dram", stats.dropped_dram},
                   {"dropped_stored", stats.dropped_stored}});
  }
  return out;
}

json status_json(Server& server, const os::Peer& peer) {
  loop::Loop& loop = server.loop();
  json engines = json::array();
  for (const auto& [number, session] : server.sessions()) {
    if (session->id == 0 || session->ending || !may_see(peer, session->peer.uid)) continue;
    std::uint64_t size = 0;
    std::uint64_t resident = 0;
    for (const auto& [address, view] : session->views) {
      size += static_cast<std::uint64_t>(view->page_count) << kPageShift;
      for (std::uint32_t i = 0; i < view->page_count; ++i) {
        const PageState state = view->region->table.read(view->first_page + i).state;
        resident += state == PageState::kResident || state == PageState::kWriting ? kPageBytes : 0;
      }
    }
    engines.push_back({{"session", std::to_string(session->id)},
                       {"pid", session->pid},
                       {"uid", session->peer.uid},
                       {"tag", session->tag},
                       {"regions", session->views.size()},
                       {"size_bytes", size},
                       {"resident_bytes", resident},
                       {"faults", session->fault_count},
                       {"stalls", stalls_json(server, session->pid)},
                       {"connected", true}});
  }
  const model::Counters& c = loop.migrator().counters();
  const loop::PlannerStats& p = loop.planner().stats();
  json reasons = json::object();
  for (std::size_t i = 0; i < model::kReasonCount; ++i) {
    if (p.moves[i] > 0)
      reasons[std::string(model::reason_name(static_cast<model::Reason>(i)))] = p.moves[i];
  }
  for (const auto& [reason, pages] : {std::pair(model::Reason::kPlaceUp, c.pages_to_dram),
                                      std::pair(model::Reason::kPlaceDown, c.pages_to_cxl)}) {
    if (pages > 0) reasons[std::string(model::reason_name(reason))] = pages;
  }
  json counters = {
      {"faults_missing", c.faults_missing},
      {"faults_minor", c.faults_minor},
      {"faults_wp", c.faults_wp},
      {"fresh_pages", c.fresh_pages},
      {"origin_read_bytes", c.origin_read_bytes},
      {"store_read_bytes", c.store_read_bytes},
      {"store_write_bytes", c.store_write_bytes},
      {"pages_dropped", c.pages_dropped},
      {"promotions", c.promotions},
      {"demotions", c.demotions},
      {"prefetches", c.prefetches},
      {"prefetch_useful", p.ahead_used},
      {"prefetch_wasted", p.ahead_unused},
      {"samples", c.samples},
      {"writes_cancelled", c.writes_cancelled},
      {"store_corrupt", c.store_corrupt},
      {"store_write_errors", c.store_write_errors},
      {"origin_read_errors", c.origin_read_errors},
      {"pages_lost", c.pages_lost},
      {"pages_forked", c.pages_forked},
      {"frames_over_budget", c.frames_over_budget},
      {"read_busy_s", static_cast<double>(c.read_busy_ns) / 1e9},
      {"read_depth_mean", c.read_busy_ns == 0 ? 0.0
                                              : static_cast<double>(c.read_depth_ns) /
                                                    static_cast<double>(c.read_busy_ns)},
      {"populate_failures", c.populate_failures},
      {"pages_aside", c.pages_aside},
      {"demand_waits", p.demand},
      {"demoted_early", p.demoted_early},
      {"sessions_total", server.totals().sessions},
      {"sessions_resumed", server.totals().resumed},
      {"requests_refused", server.totals().refused}};
  std::vector<std::string> warnings = server.warnings();
  if (const std::uint64_t used = loop.memory().used_pages(),
      capacity = loop.memory().capacity_pages();
      used > capacity) {
    warnings.push_back("over the DRAM budget by " + std::to_string(used - capacity) + " pages: " +
                       (loop.store() == nullptr
                            ? "there is no page store; raise dram.budget or set nvme.path"
                            : "the store is full or pages are pinned; raise dram.budget or "
                              "nvme.size"));
  }
  if (loop.huge_pages_gone()) {
    warnings.push_back(
        "the kernel has no huge pages left, and what comes in is ordinary memory, whose page-table "
        "edits cost 50 times more: set vm.nr_overcommit_hugepages=" +
        std::to_string(loop.dram().capacity_pages()));
  }
  const auto& restore = loop.migrator().restore_us();
  const auto& first = loop.migrator().first_touch_us();
  return {{"daemon",
           {{"pid", ::getpid()},
            {"version", "0.1.0"},
            {"uptime_s", static_cast<double>(os::now_ns() - server.started_ns()) / 1e9},
            {"rss_bytes", os::private_resident_bytes()},
            {"socket", server.config().daemon.socket},
            {"huge_pages", backing_name(loop.memory_kind())},
            {"metadata_bytes", loop.planner().metadata_bytes() + loop.placer().metadata_bytes()},
            {"stalls", stalls_json(server, ::getpid())},
            {"warnings", warnings}}},
          {"tiers", tiers_json(server)},
          {"engines", engines},
          {"regions", regions_json(server, peer)},
          {"gpus", gpus_json(server, peer)},
          {"gpu_regions", gpu_regions_json(server, peer)},
          {"gpu_processes", gpu_processes_json(server, peer)},
          {"kernel_migrations", migrations_json(server)},
          {"caches", caches_json(server, peer)},
          {"counters", counters},
          {"moves_by_reason", reasons},
          {"learned",
           {{"cycle_touches", p.cycle_touches},
            {"keep_recent", p.keep_recent},
            {"ahead_target", p.ahead_target},
            {"reserve", p.reserve}}},
          {"latency",
           {{"restore_count", restore.count()},
            {"restore_p50_us", restore.quantile(0.5)},
            {"restore_p99_us", restore.quantile(0.99)},
            {"first_touch_count", first.count()},
            {"first_touch_p50_us", first.quantile(0.5)},
            {"first_touch_p99_us", first.quantile(0.99)}}},
          {"sources", sources_json(server)}};
}

json pages_json(Server& server, const Region& region, std::uint32_t first, std::uint32_t count) {
  std::string state(count, '?');
  std::string heat(count, '0');
  std::string pinned(count, '0');
  const bool has_numbers = count <= kPageNumbersMax;
  json heat_ppm = json::array();
  json age_touches = json::array();
  for (std::uint32_t i = 0; i < count; ++i) {
    const Residency entry = region.table.read(first + i);
    state[i] = state_char(entry, region.frame_of(first + i), region.origin != nullptr);
    const model::PageView view = server.loop().planner().view(region.ref(first + i));
    heat[i] =
        static_cast<char>('0' + std::clamp(static_cast<int>(std::lround(view.heat * 9.0)), 0, 9));
    if ((entry.flags & Residency::kPinned) != 0) pinned[i] = '1';
    if (!has_numbers) continue;
    heat_ppm.push_back(std::lround(view.heat * 1e6));
    const bool is_known = view.next_use_touches != UINT64_MAX;
    age_touches.push_back(is_known ? json(view.age_touches) : json(nullptr));
  }
  json pages = {{"region", region.slot},
                {"id", std::to_string(region.id)},
                {"page_bytes", kPageBytes},
                {"page_count", region.page_count()},
                {"first_page", first},
                {"state", state},
                {"heat", heat},
                {"pinned", pinned}};
  if (has_numbers) {
    pages["heat_ppm"] = std::move(heat_ppm);
    pages["age_touches"] = std::move(age_touches);  // since it was used or passed; null: never
  }
  return pages;
}

std::string why_sentence(const Region& region, Residency entry, const model::PageView& view) {
  switch (entry.state) {
    case PageState::kFresh:
      return (entry.flags & Residency::kInherited) != 0
                 ? "forked and not touched since: it shares the parent's page"
                 : "never touched: it reads as zeroes and has no frame";
    case PageState::kLost:
      return "no valid copy is left: access raises SIGBUS";
    case PageState::kFilling:
      return "on its way into DRAM";
    case PageState::kWriting:
      return "being written to the store; a write by the engine cancels that";
    default:
      break;
  }
  std::string why(model::reason_text(view.reason));
  if ((entry.flags & Residency::kPinned) != 0) why += "; pinned: it is not demoted";
  if (entry.state == PageState::kResident && region.origin != nullptr)
    why += "; clean: the file has it, dropping it is free";
  return why;
}

json explain_json(Server& server, const Region& region, std::uint32_t page) {
  const Residency entry = region.table.read(page);
  const model::PageView view = server.loop().planner().view(region.ref(page));
  const std::uint64_t now = os::now_ns();
  json moves = json::array();
  const auto& log = server.loop().moves();
  for (auto it = log.rbegin(); it != log.rend() && moves.size() < kExplainMovesMax; ++it) {
    if (it->region_id != region.id || it->page != page) continue;
    const bool up = it->reason == model::Reason::kPlaceUp;
    const bool is_place = up || it->reason == model::Reason::kPlaceDown;
    moves.push_back({{"ago_s", static_cast<double>(now - it->time_ns) / 1e9},
                     {"from", is_place ? (up ? "cxl" : "dram") : state_name(it->from)},
                     {"to", is_place ? (up ? "dram" : "cxl") : state_name(it->to)},
                     {"reason", std::string(model::reason_name(it->reason))}});
  }
  json answer = {{"region", region.slot},
                 {"page", page},
                 {"state", state_name(entry.state)},
                 {"tier", tier_name(entry.state, region.frame_of(page))},
                 {"slot", entry.slot},
                 {"heat", view.heat},
                 {"last_touch_events_ago", view.age_touches},
                 {"interval", view.interval_touches},
                 {"confidence", view.confidence},
                 {"sampled", view.sampled},
                 {"pinned", view.pinned},
                 {"reason", std::string(model::reason_name(view.reason))},
                 {"why", why_sentence(region, entry, view)},
                 {"moves", moves}};
  if (view.next_use_touches == UINT64_MAX) {
    answer["expected_next_use"] = nullptr;
  } else {
    answer["expected_next_use"] = view.next_use_touches;
  }
  return answer;
}

// Pages of a range that are in DRAM, and those of them that cannot leave it.
struct Resident {
  std::uint64_t all = 0;
  std::uint64_t stay = 0;
  std::string why;
};

Resident count_resident(const loop::Loop& loop, const Region& region, std::uint32_t first,
                        std::uint32_t count) {
  Resident found;
  const bool nowhere = region.origin == nullptr && loop.store() == nullptr;
  std::uint64_t pinned = 0;
  for (std::uint32_t page = first; page < first + count; ++page) {
    const residency::Residency entry = region.table.read(page);
    if (entry.state != PageState::kResident) continue;
    ++found.all;
    pinned += (entry.flags & residency::Residency::kPinned) != 0;
  }
  found.stay = nowhere ? found.all : pinned;
  if (found.stay > 0) found.why = nowhere ? "there is no page store" : "pinned";
  return found;
}

json act(Server& server, const Request& request, Region& region, std::uint32_t first,
         std::uint32_t count) {
  loop::Loop& loop = server.loop();
  std::uint64_t moved = count;
  std::string why;
  switch (request.control) {
    case ControlOp::kPromote: {
      loop.promote(region, first, count);
      const std::uint64_t frames = loop.memory().capacity_pages();
      moved = std::min<std::uint64_t>(count, frames);
      if (moved < count) why = "memory holds " + std::to_string(frames) + " pages";
      break;
    }
    case ControlOp::kDemote: {
      const Resident found = count_resident(loop, region, first, count);
      loop.demote(region, first, count);
      moved = count - found.stay;
      why = found.why;
      break;
    }
    default:
      if (const Status status = loop.pin(region, first, count, request.control == ControlOp::kPin);
          !status.ok()) {
        moved = 0;
        why = status.what();
      }
  }
  return {{"pages_asked", count},
          {"pages_moved", moved},
          {"pages_refused", count - moved},
          {"why", why}};
}

json drain(Server& server, const os::Peer& peer, Reply& reply, const std::string& tier) {
  if (tier != "dram" && !tier.empty()) {
    reply = refuse(ENOTSUP, "only dram can be drained");
    return {};
  }
  Resident sum;
  for (Region* region : server.loop().regions()) {
    if (region == nullptr || region->closing || !may_see(peer, region->uid)) continue;
    const Resident found = count_resident(server.loop(), *region, 0, region->page_count());
    sum.all += found.all;
    sum.stay += found.stay;
    if (found.stay > 0) sum.why = found.why;
    server.loop().demote(*region, 0, region->page_count());
  }
  return {{"pages_asked", sum.all},
          {"pages_moved", sum.all - sum.stay},
          {"pages_refused", sum.stay},
          {"why", sum.why}};
}

json park(Server& server, const os::Peer& peer, const Request& request, Reply& reply) {
  const std::uint32_t told = server.tell_engines(peer, request);
  if (told == 0) {
    reply = refuse(ENOENT,
                   "no engine with memory on a GPU has this pid or tag: `kvmemctl regions` lists "
                   "them");
  }
  return {{"engines_told", told}};
}

}  // namespace

bool may_see(const os::Peer& peer, std::uint32_t uid) {
  return peer.uid == 0 || peer.uid == ::geteuid() || peer.uid == uid;
}

std::string control_json(Server& server, const os::Peer& peer, const Request& request,
                         Reply& reply) {
  const auto text = [](const json& value) {
    return value.dump(-1, ' ', false, json::error_handler_t::replace);
  };
  switch (request.control) {
    case ControlOp::kStatus:
      return text(status_json(server, peer));
    case ControlOp::kTiers:
      return text({{"tiers", tiers_json(server)}});
    case ControlOp::kRegions:
      return text({{"regions", regions_json(server, peer)},
                   {"gpu_regions", gpu_regions_json(server, peer)}});
    case ControlOp::kPark:
    case ControlOp::kWake:
      return text(park(server, peer, request, reply));
    case ControlOp::kDrain: {
      const std::string tier(request.tag, ::strnlen(request.tag, sizeof request.tag));
      return text(drain(server, peer, reply, tier));
    }
    default:
      break;
  }
  const auto& regions = server.loop().regions();
  Region* region = request.region_id < regions.size() ? regions[request.region_id] : nullptr;
  if (region == nullptr || region->closing || !may_see(peer, region->uid)) {
    reply = refuse(ENOENT, "no such region: `kvmemctl regions` lists them");
    return {};
  }
  const std::uint32_t total = region->page_count();
  const std::uint64_t count = request.page_count != 0      ? request.page_count
                              : request.first_page < total ? total - request.first_page
                                                           : 0;
  if (request.first_page >= total || count > total - request.first_page) {
    reply = refuse(ERANGE,
                   "pages beyond the end of the region: `kvmemctl regions` tells how many it has");
    return {};
  }
  const auto first = static_cast<std::uint32_t>(request.first_page);
  switch (request.control) {
    case ControlOp::kPages:
      return text(pages_json(server, *region, first, static_cast<std::uint32_t>(count)));
    case ControlOp::kExplain:
      return text(explain_json(server, *region, first));
    case ControlOp::kPromote:
    case ControlOp::kDemote:
    case ControlOp::kPin:
    case ControlOp::kUnpin:
      return text(act(server, request, *region, first, static_cast<std::uint32_t>(count)));
    default:
      reply =
          refuse(ENOSYS, "unknown control request: kvmemctl and kvmemd are of different versions");
      return {};
  }
}

}  // namespace kvmem::server
