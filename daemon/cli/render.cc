#include "cli/render.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "cli/fields.h"
#include "cli/text.h"

namespace kvmem::cli {
namespace {

using fields::array;
using fields::has;
using fields::is_true;
using fields::member;
using fields::number;
using fields::real;
using fields::text;
using nlohmann::json;

constexpr unsigned kMapRowsMax = 24;
constexpr unsigned kShrunkMin = 8;  // columns that a shrinking column keeps

std::string paint(const std::string& s, const char* sgr, const Style& style) {
  return style.colour ? std::string("\033[") + sgr + "m" + s + "\033[0m" : s;
}
std::string bold(const std::string& s, const Style& style) { return paint(s, "1", style); }

struct Glyph {
  char state;
  const char* sgr;
  const char* meaning;
};
constexpr Glyph kGlyphs[] = {
    {'R', "32", "resident"},          {'r', "92", "resident, clean"},
    {'W', "33", "being written"},     {'C', "33;1", "in CXL memory"},
    {'c', "93", "in CXL, clean"},     {'F', "36", "being filled"},
    {'S', "34", "stored on NVMe"},    {'O', "35", "in its file"},
    {'.', "90", "fresh (untouched)"}, {'X', "1;41", "lost"},
};
constexpr Glyph kUnknownGlyph{'?', "7", "unknown to this kvmemctl"};

const Glyph& glyph_of(char state) {
  for (const Glyph& g : kGlyphs) {
    if (g.state == state) return g;
  }
  return kUnknownGlyph;
}

constexpr std::array<const char*, 10> kHeatSgr = {"90",       "38;5;19",  "38;5;27",  "38;5;37",
                                                  "38;5;34",  "38;5;148", "38;5;220", "38;5;214",
                                                  "38;5;202", "38;5;196"};

char commonest(std::string_view states) {
  std::array<std::size_t, 256> counts{};
  char best = states.front();
  for (const char c : states) {
    if (c == 'X') return 'X';
    const auto count = [&](char state) -> std::size_t& {
      return counts[static_cast<unsigned char>(state)];
    };
    if (++count(c) > count(best)) best = c;
  }
  return best;
}

char hottest(std::string_view heat) {
  char best = '0';
  for (const char c : heat) {
    if (c >= '0' && c <= '9') best = std::max(best, c);
  }
  return best;
}

struct Cell {
  char character = ' ';
  const char* sgr = "";
  bool underlined = false;
  bool operator==(const Cell&) const = default;
};

// Colour changes are written only where the colour changes.
std::string painted(const Cell* begin, const Cell* end, const Style& style) {
  std::string out;
  const Cell* before = nullptr;
  for (const Cell* cell = begin; cell != end; ++cell) {
    const bool same = before != nullptr && before->underlined == cell->underlined &&
                      std::string_view(before->sgr) == cell->sgr;
    if (style.colour && !same) {
      out += std::string("\033[0;") + (cell->underlined ? "4;" : "") + cell->sgr + "m";
    }
    before = cell;
    out += cell->character;
  }
  return out + (style.colour ? "\033[0m" : "");
}

Cell heat_cell(char heat) {
  return {heat == '0' ? '.' : heat, kHeatSgr[static_cast<std::size_t>(heat - '0')]};
}

// Cells in lines of `per_line`, each led by its first page's index.
std::string grid(const std::vector<Cell>& cells, std::size_t per_line, std::uint64_t first_page,
                 std::uint64_t bucket_pages, const Style& style) {
  std::string out;
  for (std::size_t begin = 0; begin < cells.size(); begin += per_line) {
    std::string label = std::to_string(first_page + begin * bucket_pages);
    label.insert(0, label.size() < 9 ? 9 - label.size() : 0, ' ');
    out += paint(label.append(1, ' '), "90", style);
    const std::size_t end = std::min(begin + per_line, cells.size());
    out += painted(cells.data() + begin, cells.data() + end, style) + "\n";
  }
  return out;
}

// "0-3, 7, 9-12" of the pages marked '1'; at most eight runs.
std::string pinned_runs(const PageMap& map) {
  std::string out;
  unsigned runs = 0;
  for (std::size_t i = 0; i < map.pinned.size();) {
    if (map.pinned[i] != '1') {
      ++i;
      continue;
    }
    const std::size_t begin = i;
    while (i < map.pinned.size() && map.pinned[i] == '1') ++i;
    if (++runs > 8) return out + ", ...";
    out += (out.empty() ? "" : ", ") + std::to_string(map.first_page + begin);
    if (i - begin > 1) out.append("-").append(std::to_string(map.first_page + i - 1));
  }
  return out;
}

// "name value" pairs, wrapped to the width.
std::string pairs(const std::vector<std::pair<std::string, std::string>>& items,
                  const Style& style) {
  std::string out;
  std::size_t at = 0;
  for (const auto& [name, value] : items) {
    std::string item = name;
    item.append(" ").append(value);
    if (at != 0 && at + 2 + columns_of(item) > style.width) {
      out += "\n";
      at = 0;
    }
    out += (at == 0 ? "  " : ", ") + item;
    at += 2 + columns_of(item);
  }
  return out.empty() ? "" : out + "\n";
}

bool is_bytes(std::string_view name) { return name.ends_with("_bytes"); }

std::string spaced(std::string name) {
  if (is_bytes(name)) name.resize(name.size() - 6);
  std::replace(name.begin(), name.end(), '_', ' ');
  return printable(name);
}

std::vector<std::pair<std::string, std::string>> nonzero(const json& object) {
  std::vector<std::pair<std::string, std::string>> out;
  for (const auto& [name, value] : object.items()) {
    if (!value.is_number()) continue;
    const std::uint64_t n = number(object, name.c_str());
    if (n != 0) out.emplace_back(spaced(name), is_bytes(name) ? human_bytes(n) : human_count(n));
  }
  return out;
}

std::string heading(const char* title, const Style& style) {
  return "\n" + bold(title, style) + "\n";
}

}  // namespace

std::string table(const std::vector<Column>& columns, const std::vector<Row>& rows,
                  const Style& style) {
  std::vector<std::size_t> widths;
  std::size_t total = 0;
  for (std::size_t c = 0; c < columns.size(); ++c) {
    std::size_t width = columns_of(columns[c].name);
    for (const Row& row : rows) width = std::max(width, c < row.size() ? columns_of(row[c]) : 0);
    widths.push_back(width);
    total += width + 2;
  }
  for (std::size_t c = 0; c < columns.size(); ++c) {
    if (!columns[c].shrinks || total <= style.width + 2) continue;
    const std::size_t least = std::max<std::size_t>(kShrunkMin, columns_of(columns[c].name));
    const std::size_t give =
        std::min(widths[c] - std::min(widths[c], least), total - style.width - 2);
    widths[c] -= give;
    total -= give;
  }
  std::string out;
  const auto line = [&](const auto& cell_of) {
    std::string s;
    for (std::size_t c = 0; c < columns.size(); ++c) {
      const std::string cell = shortened(cell_of(c), widths[c]);
      const std::size_t used = columns_of(cell);
      const std::string pad(widths[c] > used ? widths[c] - used : 0, ' ');
      if (c != 0) s += "  ";
      s += columns[c].right ? pad + cell : cell + pad;
    }
    s.erase(s.find_last_not_of(' ') + 1);
    return s;
  };
  out += paint(line([&](std::size_t c) { return columns[c].name; }), "2", style) + "\n";
  for (const Row& row : rows) {
    out += line([&](std::size_t c) { return c < row.size() ? row[c] : std::string(); }) + "\n";
  }
  return out;
}

std::string heat_line(std::string_view heat, const Style& style) {
  std::vector<Cell> cells;
  cells.reserve(heat.size());
  for (const char h : heat) cells.push_back(heat_cell(std::clamp(h, '0', '9')));
  return painted(cells.data(), cells.data() + cells.size(), style);
}

std::string page_map(const PageMap& map, const Style& style) {
  if (map.state.empty()) return "no pages\n";
  constexpr std::size_t kLabelColumns = 10;
  const std::size_t per_line =
      std::max<std::size_t>(style.width, kLabelColumns + 8) - kLabelColumns;
  std::uint64_t bucket_pages = 1;
  while ((map.state.size() + bucket_pages - 1) / bucket_pages > per_line * kMapRowsMax) {
    bucket_pages *= 2;
  }
  std::vector<Cell> states;
  std::vector<Cell> heats;
  std::string seen;
  for (std::size_t at = 0; at < map.state.size(); at += bucket_pages) {
    const Glyph& glyph = glyph_of(commonest(std::string_view(map.state).substr(at, bucket_pages)));
    const bool pinned =
        at < map.pinned.size() &&
        std::string_view(map.pinned).substr(at, bucket_pages).find('1') != std::string_view::npos;
    states.push_back({glyph.state, glyph.sgr, pinned});
    if (seen.find(glyph.state) == std::string::npos) seen += glyph.state;
    if (at < map.heat.size()) {
      heats.push_back(heat_cell(hottest(std::string_view(map.heat).substr(at, bucket_pages))));
    }
  }

  std::string out = bold("where", style);
  out += bucket_pages == 1
             ? " (one glyph a page"
             : " (one glyph for " + std::to_string(bucket_pages) + " pages, the commonest state";
  if (map.page_bytes != 0) out += ", " + human_bytes(bucket_pages * map.page_bytes);
  out += ")\n" + grid(states, per_line, map.first_page, bucket_pages, style);
  for (const char state : seen) {
    const Glyph& glyph = glyph_of(state);
    out += std::string(10, ' ') + paint(std::string(1, state), glyph.sgr, style) + "  " +
           glyph.meaning + "\n";
  }
  if (const std::string runs = pinned_runs(map); !runs.empty()) {
    out += std::string(10, ' ') + "pinned" + (style.colour ? " (underlined)" : "") + ": " + runs +
           "\n";
  }
  if (!heats.empty()) {
    out += bold("heat", style) + " (. coldest, 9 hottest)\n" +
           grid(heats, per_line, map.first_page, bucket_pages, style);
  }
  return out;
}

namespace {

// One direction of the disk's use in the last seconds. What others do there is what ours competes
// with.
std::string disk_use(const json& disk, const std::string& direction) {
  const auto rate = [&](const char* whose) {
    const double bytes_s = real(disk, (whose + direction + "_bytes_s").c_str());
    return human_bytes(static_cast<std::uint64_t>(std::max(0.0, bytes_s))) + "/s";
  };
  std::string out = rate("own_") + " for kvmem, " + rate("other_") + " for others";
  if (const double p99 = real(disk, (direction + "_p99_us").c_str()); p99 > 0) {
    out += "; a request takes < " + micros(real(disk, (direction + "_p50_us").c_str())) +
           ", p99 < " + micros(p99);
  }
  return out;
}

}  // namespace

std::string render_tiers(const json& tiers, const Style& style) {
  std::vector<Row> rows;
  std::string uses;
  for (const json& tier : array(tiers, "tiers")) {
    const std::uint64_t capacity = number(tier, "capacity_bytes");
    const std::uint64_t used = number(tier, "used_bytes");
    std::vector<std::string> notes;
    if (const std::string nodes = text(tier, "nodes"); !nodes.empty())
      notes.push_back("NUMA node " + nodes);
    for (const json& node : array(tier, "each_node")) {
      std::string speed;
      if (number(node, "latency_ns") != 0) speed = text(node, "latency_ns") + " ns";
      if (number(node, "bandwidth_bytes_s") != 0) {
        speed += (speed.empty() ? "" : " ") + human_bytes(number(node, "bandwidth_bytes_s")) + "/s";
      }
      if (speed.empty()) speed = "distance " + text(node, "distance");
      notes.push_back(speed);
    }
    notes.push_back(text(tier, "path"));
    if (has(tier, "files")) notes.push_back(text(tier, "files") + " files");
    if (const json& disk = member(tier, "disk"); !disk.empty()) {
      uses += "disk reads:  " + disk_use(disk, "read") + "\n";
      uses += "disk writes: " + disk_use(disk, "write") + "\n";
    }
    if (has(tier, "pace_bytes_s")) {
      uses += "between DRAM and CXL: " + text(tier, "pages_to_dram") + " pages up, " +
              text(tier, "pages_to_cxl") + " down; at most " +
              human_bytes(number(tier, "pace_bytes_s")) + "/s now, of " +
              human_bytes(number(tier, "limit_bytes_s")) + "/s";
      if (const double gain = real(tier, "gain"); gain > 0) {
        char times[96];
        std::snprintf(times, sizeof times,
                      "; what moved up last is used %.1f times as often as "
                      "what moved down",
                      gain);
        uses += times;
      }
      uses += "\n";
    }
    if (number(tier, "quarantined") != 0) {
      notes.push_back(text(tier, "quarantined") + " places quarantined");
    }
    rows.push_back({text(tier, "name"), capacity == 0 ? "" : human_bytes(capacity),
                    has(tier, "used_bytes") ? human_bytes(used) : "", percent(used, capacity),
                    joined(notes, ", ")});
  }
  if (rows.empty()) return "no tiers\n";
  return table({{"tier"}, {"capacity", true}, {"used", true}, {"", true}, {"where", false, true}},
               rows, style) +
         uses;
}

namespace {

std::string gpu_regions(const json& regions, const Style& style) {
  std::vector<Row> rows;
  for (const json& r : array(regions, "gpu_regions")) {
    const std::uint64_t size = number(r, "size_bytes");
    const std::string state = number(r, "stored_bytes") == size ? "parked"
                              : number(r, "stored_bytes") != 0  ? "in part parked"
                                                                : "";
    rows.push_back({text(r, "address"), text(r, "pid"), text(r, "gpu"), human_bytes(size),
                    human_bytes(number(r, "hbm_bytes")), human_bytes(number(r, "host_bytes")),
                    human_bytes(number(r, "stored_bytes")), state, text(r, "last_move"),
                    text(r, "tag")});
  }
  if (rows.empty()) return "";
  return table({{"on a GPU, at"},
                {"pid", true},
                {"gpu", false, true},
                {"size", true},
                {"hbm", true},
                {"host", true},
                {"stored", true},
                {"state"},
                {"last move"},
                {"what", false, true}},
               rows, style);
}

std::string caches(const json& status, const Style& style) {
  std::vector<Row> rows;
  for (const json& c : array(status, "caches")) {
    const std::uint64_t hits =
        number(c, "hits_dram") + number(c, "hits_stored") - number(c, "hits_lost");
    rows.push_back({text(c, "uid"), human_bytes(number(c, "block_bytes")), text(c, "policy"),
                    text(c, "connections"),
                    human_bytes(number(c, "dram_used_bytes")) + " of " +
                        human_bytes(number(c, "dram_capacity_bytes")),
                    human_bytes(number(c, "store_used_bytes")) + " of " +
                        human_bytes(number(c, "store_capacity_bytes")),
                    text(c, "requests"), percent(hits, number(c, "blocks_asked")),
                    text(c, "hits_dram"), text(c, "hits_stored")});
  }
  if (rows.empty()) return "";
  return heading("block caches", style) + table({{"uid", true},
                                                 {"block", true},
                                                 {"policy"},
                                                 {"connected", true},
                                                 {"DRAM", true},
                                                 {"NVMe", true},
                                                 {"requests", true},
                                                 {"hits", true},
                                                 {"from DRAM", true},
                                                 {"from NVMe", true}},
                                                rows, style);
}

std::string gpus(const json& status, const Style& style) {
  std::vector<Row> rows;
  for (const json& gpu : array(status, "gpus")) {
    std::vector<std::string> holders;
    for (const json& h : array(gpu, "holders")) {
      holders.push_back(text(h, "pid") + " " + human_bytes(number(h, "claimed_bytes")));
    }
    rows.push_back({text(gpu, "gpu"), human_bytes(number(gpu, "total_bytes")),
                    human_bytes(number(gpu, "budget_bytes")),
                    human_bytes(number(gpu, "claimed_bytes")), text(gpu, "engines"),
                    joined(holders, ", ")});
  }
  if (rows.empty()) return "";
  return heading("GPUs", style) + table({{"gpu"},
                                         {"has", true},
                                         {"budget", true},
                                         {"claimed", true},
                                         {"engines", true},
                                         {"by pid", false, true}},
                                        rows, style);
}

// Processes that hold a GPU's memory, also those that know nothing of kvmem.
std::string gpu_processes(const json& status, const Style& style) {
  std::vector<Row> rows;
  for (const json& p : array(status, "gpu_processes")) {
    std::vector<std::string> notes;
    if (number(p, "failures") != 0) notes.push_back(text(p, "failures") + " allocations refused");
    if (number(p, "untracked") != 0) notes.push_back(text(p, "untracked") + " not in the sum");
    rows.push_back({text(p, "pid"), text(p, "uid"), human_bytes(number(p, "device_bytes")),
                    human_bytes(number(p, "device_peak_bytes")),
                    human_count(number(p, "allocations")), human_seconds(real(p, "idle_s")),
                    is_true(p, "under_kvmem") ? "kvmem" : "",
                    joined({text(p, "name"), text(p, "cgroup"), joined(notes, ", ")}, " ")});
  }
  if (rows.empty()) return "";
  return heading("processes on GPUs", style) + table({{"pid", true},
                                                      {"uid", true},
                                                      {"holds", true},
                                                      {"peak", true},
                                                      {"allocations", true},
                                                      {"last call", true},
                                                      {""},
                                                      {"what", false, true}},
                                                     rows, style);
}

// What the kernel's memory management cost; nothing where it cost nothing.
std::string stalls(const json& of) {
  std::vector<std::string> parts;
  const json& s = member(of, "stalls");
  for (const auto& [count, ms, what] :
       {std::tuple{"reclaims", "reclaim_ms", "freeing memory"},
        std::tuple{"limit_reclaims", "limit_reclaim_ms", "freeing memory at the cgroup's limit"},
        std::tuple{"compactions", "compaction_ms", "compacting memory"}}) {
    if (number(s, count) == 0) continue;
    parts.push_back(micros(real(s, ms) * 1e3) + " " + what + " (" + text(s, count) + " times)");
  }
  return joined(parts, ", ");
}

std::string kernel_stalls(const json& status, const Style& style) {
  std::vector<std::pair<std::string, std::string>> items;
  const auto add = [&](const std::string& name, const json& of) {
    if (std::string cost = stalls(of); !cost.empty()) items.emplace_back(name, std::move(cost));
  };
  add("kvmemd", member(status, "daemon"));
  for (const json& engine : array(status, "engines")) add("pid " + text(engine, "pid"), engine);
  for (const auto& item : member(status, "kernel_migrations").items()) {
    items.emplace_back("moved for " + spaced(item.key()),
                       text(item.value(), "moved_os_pages") + " OS pages, " +
                           text(item.value(), "failed_os_pages") + " failed");
  }
  return items.empty() ? "" : heading("what the kernel did", style) + pairs(items, style);
}

}  // namespace

std::string render_sources(const json& status, const Style& style) {
  std::vector<Row> rows;
  for (const json& s : array(status, "sources")) {
    rows.push_back(
        {text(s, "name"), is_true(s, "on") ? "on" : "off", text(s, "tells"), text(s, "why_off")});
  }
  return table({{"source"}, {""}, {"tells"}, {"off because"}}, rows, style);
}

std::string render_regions(const json& regions, const Style& style) {
  std::vector<Row> rows;
  for (const json& r : array(regions, "regions")) {
    rows.push_back(
        {text(r, "region"), text(r, "pid"), text(r, "kind"), human_bytes(number(r, "size_bytes")),
         human_count(number(r, "resident_pages")), human_count(number(r, "stored_pages")),
         human_count(number(r, "origin_pages")), human_count(number(r, "fresh_pages")),
         human_count(number(r, "lost_pages")), human_count(number(r, "pinned_pages")),
         text(r, "backing"),
         joined({text(r, "tag"), text(r, "path"), text(r, "backing_why"),
                 number(r, "cxl_pages") > 0 ? text(r, "cxl_pages") + " in CXL memory" : "",
                 number(r, "views") > 1 ? text(r, "views") + " engines share it" : ""},
                ", ")});
  }
  const std::string on_gpus = gpu_regions(regions, style);
  if (rows.empty()) return on_gpus.empty() ? "no regions\n" : on_gpus;
  return table({{"region", true},
                {"pid", true},
                {"kind"},
                {"size", true},
                {"resident", true},
                {"stored", true},
                {"in file", true},
                {"fresh", true},
                {"lost", true},
                {"pinned", true},
                {"backing"},
                {"what", false, true}},
               rows, style) +
         (on_gpus.empty() ? "" : "\n" + on_gpus);
}

std::string render_status(const json& status, const Style& style) {
  const json& daemon = member(status, "daemon");
  std::string out = bold("kvmemd " + text(daemon, "version"), style);
  out += ": " +
         joined({has(daemon, "pid") ? "pid " + text(daemon, "pid") : "",
                 has(daemon, "uptime_s") ? "up " + human_seconds(real(daemon, "uptime_s")) : "",
                 has(daemon, "rss_bytes") ? human_bytes(number(daemon, "rss_bytes")) + " of its own"
                                          : "",
                 has(daemon, "huge_pages") ? "huge pages " + text(daemon, "huge_pages") : "",
                 text(daemon, "socket")},
                ", ") +
         "\n";
  for (const json& warning : array(daemon, "warnings")) {
    if (!warning.is_string()) continue;
    out += paint("! " + printable(warning.get_ref<const std::string&>()), "33", style) + "\n";
  }
  out += "\n" + render_tiers(status, style);

  std::vector<Row> rows;
  for (const json& e : array(status, "engines")) {
    const bool connected = !has(e, "connected") || e.at("connected") == true;
    rows.push_back({text(e, "pid"), text(e, "uid"), text(e, "regions"),
                    human_bytes(number(e, "size_bytes")), human_bytes(number(e, "resident_bytes")),
                    percent(number(e, "resident_bytes"), number(e, "size_bytes")),
                    connected ? "" : "away", text(e, "tag")});
  }
  out += heading("engines", style);
  out += rows.empty() ? "none\n"
                      : table({{"pid", true},
                               {"uid", true},
                               {"regions", true},
                               {"size", true},
                               {"resident", true},
                               {"", true},
                               {""},
                               {"name", false, true}},
                              rows, style);
  out += gpus(status, style);
  out += gpu_processes(status, style);
  out += caches(status, style);
  if (!array(status, "regions").empty() || !array(status, "gpu_regions").empty()) {
    out += heading("regions", style) + render_regions(status, style);
  }
  if (const auto counters = nonzero(member(status, "counters")); !counters.empty()) {
    out += heading("counters", style) + pairs(counters, style);
  }
  if (const auto moves = nonzero(member(status, "moves_by_reason")); !moves.empty()) {
    out += heading("moves by reason", style) + pairs(moves, style);
  }
  const json& latency = member(status, "latency");
  std::vector<std::pair<std::string, std::string>> latencies;
  for (const auto& [name, key] :
       {std::pair{"restore", "restore"}, {"first touch", "first_touch"}}) {
    const std::string p50 = std::string(key) + "_p50_us";
    const std::string p99 = std::string(key) + "_p99_us";
    if (real(latency, p50.c_str()) <= 0) continue;
    latencies.emplace_back(name, "p50 " + micros(real(latency, p50.c_str())) + " p99 " +
                                     micros(real(latency, p99.c_str())));
  }
  if (!latencies.empty()) out += heading("latency", style) + pairs(latencies, style);
  out += kernel_stalls(status, style);
  std::vector<std::string> off;
  for (const json& s : array(status, "sources")) {
    if (!is_true(s, "on")) off.push_back(text(s, "name"));
  }
  if (!off.empty()) out += "\noff: " + joined(off, ", ") + " (`kvmemctl sources` says why)\n";
  return out;
}

std::string render_pages(const json& pages, const Style& style) {
  const auto raw = [&](const char* key) {
    return has(pages, key) && pages.at(key).is_string() ? pages.at(key).get<std::string>()
                                                        : std::string();
  };
  const PageMap map{number(pages, "first_page"), number(pages, "page_bytes"), raw("state"),
                    raw("heat"), raw("pinned")};
  std::string out = bold("region " + text(pages, "region"), style) + ": " +
                    human_count(map.state.size()) + " pages";
  if (map.page_bytes != 0) {
    out += " of " + human_bytes(map.page_bytes) + ", " +
           human_bytes(map.page_bytes * map.state.size());
  }
  out += "\n";
  for (const Glyph& glyph : kGlyphs) {
    const auto count =
        static_cast<std::uint64_t>(std::count(map.state.begin(), map.state.end(), glyph.state));
    if (count == 0) continue;
    out += "  " + std::string(glyph.meaning) + ": " + human_count(count) + " (" +
           percent(count, map.state.size()) + ")\n";
  }
  return out + page_map(map, style);
}

std::string render_explain(const json& explain, const Style& style) {
  std::string out = bold("page " + text(explain, "region") + ":" + text(explain, "page"), style);
  out += " is " + text(explain, "state");
  if (!text(explain, "tier").empty()) out += " in " + text(explain, "tier");
  if (has(explain, "slot")) out += ", slot " + text(explain, "slot");
  out += "\n";
  if (!text(explain, "why").empty()) out += "  " + text(explain, "why") + "\n";
  std::vector<std::pair<std::string, std::string>> facts;
  for (const auto& [key, name] : {std::pair{"heat", "heat"},
                                  {"last_touch_events_ago", "faults since its last touch"},
                                  {"expected_next_use", "next use expected in faults"},
                                  {"interval", "usual faults between uses"},
                                  {"confidence", "confidence"}}) {
    if (has(explain, key)) facts.emplace_back(std::string(name) + ":", text(explain, key));
  }
  out += pairs(facts, style);
  std::vector<Row> rows;
  for (const json& move : array(explain, "moves")) {
    rows.push_back({human_seconds(real(move, "ago_s")) + " ago", text(move, "from"),
                    text(move, "to"), text(move, "reason")});
  }
  out += rows.empty()
             ? "no moves yet\n"
             : "last moves\n" +
                   table({{"when", true}, {"from"}, {"to"}, {"reason", false, true}}, rows, style);
  return out;
}

namespace {

// Who may have how much, and which blocks are written, under a budget.
std::vector<std::pair<std::string, std::string>> shares_of(const json& status, const json& cache) {
  std::vector<std::pair<std::string, std::string>> facts;
  const auto part = [&](const char* used, const char* capacity, const char* share) {
    const std::uint64_t bytes = number(cache, share);
    return human_bytes(number(cache, used)) + " of " + human_bytes(number(cache, capacity)) +
           (bytes == 0 ? ", asks for nothing: no share"
                       : ", share of this user: " + human_bytes(bytes));
  };
  if (!has(cache, "dram_share_bytes")) return facts;
  facts.emplace_back("DRAM:", part("dram_used_bytes", "dram_capacity_bytes", "dram_share_bytes"));
  facts.emplace_back("NVMe:",
                     part("store_used_bytes", "store_capacity_bytes", "store_share_bytes"));
  for (const json& tier : array(status, "tiers")) {
    if (!has(tier, "write_budget")) continue;
    const json& budget = tier["write_budget"];
    facts.emplace_back("write budget:", human_bytes(number(budget, "bytes_per_day")) + " a day, " +
                                            human_bytes(number(budget, "saved_bytes")) + " of " +
                                            human_bytes(number(budget, "saved_max_bytes")) +
                                            " saved up");
    const double least = real(cache, "write_chance_least");
    facts.emplace_back(
        "blocks written:",
        least > 0 ? format("those that are asked for again with a chance of %.3g or more", least)
                  : "all that are worth their place");
    facts.emplace_back("not written for the budget:",
                       human_count(number(cache, "write_budget_refused")) + " times, " +
                           human_count(number(cache, "blocks_written")) + " blocks written");
  }
  return facts;
}

}  // namespace

std::string render_explain_cache(const json& status, const Style& style) {
  const auto ms = [](const json& of, const char* key) { return format("%.3g ms", real(of, key)); };
  std::string out;
  for (const json& c : array(status, "caches")) {
    out += bold("block cache of uid " + text(c, "uid") + ", blocks of " +
                    human_bytes(number(c, "block_bytes")),
                style) +
           "\n";
    if (!has(c, "last_choice")) {
      out +=
          "  no request has had a choice: blocks were in DRAM, or nobody asks with "
          "kvmem_cache_plan\n";
      out += pairs(shares_of(status, c), style);
      continue;
    }
    const json& last = c["last_choice"];
    const std::string kind = text(last, "kind");
    const std::string end = text(last, "compute_end");
    out += "  last choice, " + human_seconds(real(last, "ago_s")) + " ago: " +
           (kind == "read" ? "read all that is stored"
            : kind == "compute"
                ? "compute all that is stored"
                : "compute what is stored of the first " + end + " blocks, read the rest") +
           "\n";
    std::vector<std::pair<std::string, std::string>> facts = {
        {"blocks of the prompt that were there:",
         text(last, "blocks") + ", " + text(last, "stored") + " of them not in DRAM"}};
    if (!is_true(last, "is_known")) {
      facts.emplace_back("what computing takes:",
                         "not known; engines say it with kvmem_cache_computed");
    } else {
      facts.emplace_back("as chosen:", ms(last, "chosen_ms") + (is_true(last, "overlaps")
                                                                    ? ", both at once"
                                                                    : ", one after the other"));
      facts.emplace_back("reading all:", ms(last, "read_ms") + " (" + ms(last, "read_first_ms") +
                                             " to the first page, " + ms(last, "read_page_ms") +
                                             " for each more)");
      facts.emplace_back("computing all:",
                         ms(last, "compute_ms") + " (" + ms(last, "compute_first_block_ms") +
                             " for the prompt's first block, " + ms(last, "compute_block_more_ms") +
                             " more for each one after it)");
    }
    facts.emplace_back("choices so far:",
                       human_count(number(c, "choices_read")) + " read, " +
                           human_count(number(c, "choices_compute")) + " compute, " +
                           human_count(number(c, "choices_split")) + " both; " +
                           human_count(number(c, "left_to_compute")) + " blocks left to compute");
    std::ranges::move(shares_of(status, c), std::back_inserter(facts));
    out += pairs(facts, style);
  }
  return out.empty() ? "no engine uses the block cache\n" : out;
}

std::string render_action(const json& result, std::string_view verb) {
  const std::uint64_t refused = number(result, "pages_refused");
  std::string out = std::string(verb) + " " + human_count(number(result, "pages_moved")) + " of " +
                    human_count(number(result, "pages_asked")) + " pages";
  if (refused != 0) out += "; " + human_count(refused) + " refused";
  if (!text(result, "why").empty()) out += ": " + text(result, "why");
  return out + "\n";
}

}  // namespace kvmem::cli
