#include "cli/top.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "cli/fields.h"
#include "cli/rates.h"
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

constexpr std::size_t kListMax = 500;  // rows of one list; a screen is scrolled no further by hand
constexpr std::size_t kBarColumns = 24;
constexpr const char* kUnknown = "-";

std::string rate_text(const Rate& rate) {
  if (!rate) return kUnknown;
  if (*rate < 9.95 && *rate > 0) return format("%.1f", *rate);
  return human_count(static_cast<std::uint64_t>(std::llround(std::min(*rate, 1e15))));
}

std::string bytes_s(const Rate& rate) {
  if (!rate) return kUnknown;
  return human_bytes(static_cast<std::uint64_t>(std::clamp(*rate, 0.0, 1e18))) + "/s";
}

std::string padded(std::string s, std::size_t columns, bool right) {
  const std::size_t used = columns_of(s);
  if (used >= columns) return s;
  s.insert(right ? 0 : s.size(), columns - used, ' ');
  return s;
}

// A list: a faint line of names, then rows. The last column is text and takes what is left.
struct ListColumn {
  const char* name;
  bool right = true;
};
void add_list(const std::vector<ListColumn>& columns,
              const std::vector<std::vector<std::string>>& rows, unsigned width,
              std::vector<Line>* out) {
  std::vector<std::size_t> widths;
  std::size_t before_last = 0;
  for (std::size_t c = 0; c < columns.size(); ++c) {
    std::size_t widest = columns_of(columns[c].name);
    for (const auto& row : rows) widest = std::max(widest, columns_of(row[c]));
    widths.push_back(widest);
    if (c + 1 < columns.size()) before_last += widest + 2;
  }
  widths.back() = width > before_last + 8 ? width - before_last : 8;
  const auto line_of = [&](const auto& cell_of) {
    std::string s;
    for (std::size_t c = 0; c < columns.size(); ++c) {
      const bool last = c + 1 == columns.size();
      s += last ? shortened(cell_of(c), widths[c])
                : padded(cell_of(c), widths[c], columns[c].right) + "  ";
    }
    s.erase(s.find_last_not_of(' ') + 1);
    return s;
  };
  out->push_back(
      {{line_of([&](std::size_t c) { return std::string(columns[c].name); }), Tone::kFaint}});
  for (const auto& row : rows) {
    out->push_back({{line_of([&](std::size_t c) { return row[c]; })}});
  }
}

void add_heading(std::string title, std::vector<Line>* out) {
  if (!out->empty()) out->emplace_back();
  out->push_back({{std::move(title), Tone::kHeading}});
}

// Words in lines of at most `width`.
void add_wrapped(const std::string& words, Tone tone, unsigned width, std::vector<Line>* out) {
  std::string line;
  for (std::size_t at = 0; at < words.size();) {
    const std::size_t end = std::min(words.find(' ', at), words.size());
    const std::string word = words.substr(at, end - at);
    if (!line.empty() && columns_of(line) + 1 + columns_of(word) > width) {
      out->push_back({{std::exchange(line, ""), tone}});
    }
    line += (line.empty() ? "" : " ") + word;
    at = end + 1;
  }
  if (!line.empty()) out->push_back({{line, tone}});
}

Span bar(std::uint64_t part, std::uint64_t whole) {
  const double share =
      whole == 0 ? 0 : std::min(1.0, static_cast<double>(part) / static_cast<double>(whole));
  // Full is full only: rounding down keeps the last cell for it.
  const auto full = static_cast<std::size_t>(share * static_cast<double>(kBarColumns));
  return {"[" + std::string(full, '#') + std::string(kBarColumns - full, '.') + "]",
          part > whole ? Tone::kBad : Tone::kGood};
}

// One direction of the disk: ours, others', and how long a request takes where that is known.
void add_disk(const json& disk, const std::string& direction, const Rate& counted,
              std::vector<Line>* out) {
  const bool watched = !disk.empty();
  const auto of = [&](const char* whose) -> Rate {
    return real(disk, (whose + direction + "_bytes_s").c_str());
  };
  std::string line = padded(direction + "s", 8, false);
  line += padded(bytes_s(watched ? of("own_") : counted), 12, true) + " for kvmem";
  if (watched) {
    line += "  " + padded(bytes_s(of("other_")), 12, true) + " for others";
    if (const double p99 = real(disk, (direction + "_p99_us").c_str()); p99 > 0) {
      line += "  a request < " + micros(real(disk, (direction + "_p50_us").c_str())) + ", p99 < " +
              micros(p99);
    }
  }
  out->push_back({{line}});
}

void add_tiers(const json& now, const Rates& rates, std::vector<Line>* out) {
  add_heading("tiers", out);
  json disk = json::object();
  bool has_store = false;
  for (const json& tier : array(now, "tiers")) {
    const std::uint64_t used = number(tier, "used_bytes");
    const std::uint64_t capacity = number(tier, "capacity_bytes");
    if (const json& watched = member(tier, "disk"); !watched.empty()) disk = watched;
    has_store = has_store || text(tier, "name") == "nvme";
    const std::string name = padded(text(tier, "name"), 8, false);
    if (capacity == 0) {
      if (number(tier, "files") != 0) {
        out->push_back({{name + human_bytes(number(tier, "size_bytes")) + " in " +
                         text(tier, "files") + " files"}});
      }
      continue;
    }
    out->push_back({{name},
                    bar(used, capacity),
                    {"  " + human_bytes(used) + " of " + human_bytes(capacity) + ", " +
                     percent(used, capacity)}});
  }
  Rate reads = rates.origin_read_bytes;
  if (reads && rates.store_read_bytes) *reads += *rates.store_read_bytes;
  if (!disk.empty() || has_store || reads) {
    add_disk(disk, "read", reads, out);
    add_disk(disk, "write", rates.store_write_bytes, out);
  }
  const json& latency = member(now, "latency");
  if (const double p99 = real(latency, "restore_p99_us"); p99 > 0) {
    out->push_back(
        {{"a page that an engine waits for: p50 " + micros(real(latency, "restore_p50_us")) +
          ", p99 " + micros(p99) + " (since the daemon's start)"}});
  }
}

void add_moves(const Rates& rates, unsigned width, std::vector<Line>* out) {
  add_heading("pages a second", out);
  std::string all = "faults " + rate_text(rates.faults) + "  waits for a tier " +
                    rate_text(rates.demand_waits) + "  into DRAM " + rate_text(rates.promotions) +
                    "  out of DRAM " + rate_text(rates.demotions);
  add_wrapped(all, Tone::kPlain, width, out);
  std::vector<std::string> reasons;
  for (const auto& [reason, rate] : rates.moves) {
    std::string name = reason;
    std::replace(name.begin(), name.end(), '_', ' ');
    reasons.push_back(name + " " + rate_text(rate));
  }
  if (!reasons.empty()) add_wrapped("moves: " + joined(reasons, ", "), Tone::kPlain, width, out);
  std::string ahead = "fetched ahead " + rate_text(rates.prefetches);
  if (rates.ahead_used && rates.ahead_unused) {
    const double known = *rates.ahead_used + *rates.ahead_unused;
    ahead += known > 0 ? "; of those whose end is known " +
                             format("%.0f %% were used", 100 * *rates.ahead_used / known)
                       : "; none was used or given up";
  }
  add_wrapped(ahead, Tone::kPlain, width, out);
}

template <class Row, class Key>
void sort_down(std::vector<const Row*>* rows, Key key) {
  std::stable_sort(rows->begin(), rows->end(),
                   [&](const Row* a, const Row* b) { return key(*a) > key(*b); });
}

template <class Row>
std::vector<const Row*> pointers(const std::vector<Row>& rows) {
  std::vector<const Row*> out;
  out.reserve(rows.size());
  for (const Row& row : rows) out.push_back(&row);
  return out;
}

double or_zero(const Rate& rate) { return rate.value_or(0); }

// What is beyond the longest list that is shown.
template <class T>
std::size_t cut(std::vector<T>* rows) {
  const std::size_t left_out = rows->size() > kListMax ? rows->size() - kListMax : 0;
  rows->resize(rows->size() - left_out);
  return left_out;
}
void add_left_out(std::size_t count, std::vector<Line>* out) {
  if (count != 0) out->push_back({{"and " + human_count(count) + " more", Tone::kFaint}});
}

void add_engines(const Rates& rates, const TopView& view, std::vector<Line>* out) {
  const SortBy sort = view.sort == SortBy::kFaults ? SortBy::kFaults : SortBy::kResident;
  add_heading(std::string("engines by ") + sort_name(sort), out);
  auto order = pointers(rates.engines);
  sort_down(&order, [&](const Rates::Engine& e) {
    return sort == SortBy::kFaults ? or_zero(e.faults) : static_cast<double>(e.resident_bytes);
  });
  const std::size_t left_out = cut(&order);
  std::vector<std::vector<std::string>> rows;
  rows.reserve(order.size());
  for (const Rates::Engine* e : order) {
    rows.push_back({e->pid, human_bytes(e->size_bytes), human_bytes(e->resident_bytes),
                    percent(e->resident_bytes, e->size_bytes), rate_text(e->faults),
                    e->stall_ms ? format("%.1f", *e->stall_ms) : kUnknown, e->name});
  }
  if (rows.empty()) {
    out->push_back({{"none", Tone::kFaint}});
    return;
  }
  add_list({{"pid"}, {"size"}, {"resident"}, {""}, {"faults/s"}, {"stalls ms/s"}, {"name", false}},
           rows, view.columns, out);
  add_left_out(left_out, out);
}

void add_regions(const Rates& rates, const TopView& view, std::vector<Line>* out) {
  if (rates.regions.empty()) return;
  add_heading(std::string("regions by ") + sort_name(view.sort), out);
  auto order = pointers(rates.regions);
  sort_down(&order, [&](const Rates::Region& r) {
    switch (view.sort) {
      case SortBy::kHeat:
        return static_cast<double>(r.heat_bytes);
      case SortBy::kResident:
        return static_cast<double>(r.resident_bytes);
      case SortBy::kFaults:
        break;
    }
    return or_zero(r.faults);
  });
  const std::size_t left_out = cut(&order);
  std::vector<std::vector<std::string>> rows;
  rows.reserve(order.size());
  for (const Rates::Region* r : order) {
    rows.push_back({r->region, r->pid, human_bytes(r->size_bytes), human_bytes(r->heat_bytes),
                    human_bytes(r->resident_bytes), percent(r->resident_bytes, r->size_bytes),
                    rate_text(r->faults), r->name});
  }
  add_list(
      {{"region"}, {"pid"}, {"size"}, {"hot"}, {"resident"}, {""}, {"faults/s"}, {"what", false}},
      rows, view.columns, out);
  add_left_out(left_out, out);
}

void add_gpu_processes(const json& now, const TopView& view, std::vector<Line>* out) {
  std::vector<std::vector<std::string>> rows;
  for (const json& p : array(now, "gpu_processes")) {
    rows.push_back({text(p, "pid"), human_bytes(number(p, "device_bytes")),
                    human_bytes(number(p, "device_peak_bytes")), human_seconds(real(p, "idle_s")),
                    is_true(p, "under_kvmem") ? "kvmem" : "",
                    joined({text(p, "name"), text(p, "cgroup")}, " ")});
  }
  if (rows.empty()) return;
  const std::size_t left_out = cut(&rows);
  add_heading("processes on GPUs", out);
  add_list({{"pid"}, {"holds"}, {"peak"}, {"last call"}, {"", false}, {"what", false}}, rows,
           view.columns, out);
  add_left_out(left_out, out);
}

void add_off(const json& now, unsigned width, std::vector<Line>* out) {
  std::vector<std::string> off;
  for (const json& s : array(now, "sources")) {
    if (!is_true(s, "on")) off.push_back(text(s, "name"));
  }
  if (off.empty()) return;
  out->emplace_back();
  add_wrapped("off: " + joined(off, ", ") + " (`kvmemctl sources` says why)", Tone::kFaint, width,
              out);
}

std::vector<Line> help_lines() {
  std::vector<Line> out;
  for (const char* line :
       {"q  quit", "s  sort regions and engines by heat, resident, faults",
        "p  pause: nothing is asked of the daemon meanwhile", "up, down, page up, page down, home",
        "   scroll", "h  this help", "",
        "hot: what of a region is in use every time around, as far as the daemon has seen.",
        "faults/s: touches that the daemon served, also those that only told of a use.",
        "stalls: what the kernel's memory management took of all threads' time.",
        "-: not known, as after the first answer."}) {
    out.push_back({{line}});
  }
  return out;
}

std::vector<Line> body_lines(const TopFacts& facts, const TopView& view) {
  std::vector<Line> out;
  if (!facts.error.empty()) {
    add_wrapped(printable(facts.error), Tone::kBad, view.columns, &out);
    add_wrapped("asking again every " + human_seconds(facts.interval_s), Tone::kFaint, view.columns,
                &out);
    return out;
  }
  if (!facts.now.is_object()) {
    out.push_back({{"waiting for the daemon's first answer", Tone::kFaint}});
    return out;
  }
  const Rates rates = rates_between(facts.before, facts.now, facts.elapsed_s);
  if (rates.restarted || facts.restarted) {
    add_wrapped("the daemon restarted: its counters began again", Tone::kWarning, view.columns,
                &out);
  }
  for (const json& warning : array(member(facts.now, "daemon"), "warnings")) {
    if (!warning.is_string()) continue;
    add_wrapped("! " + printable(warning.get_ref<const std::string&>()), Tone::kWarning,
                view.columns, &out);
  }
  add_tiers(facts.now, rates, &out);
  add_moves(rates, view.columns, &out);
  add_engines(rates, view, &out);
  add_regions(rates, view, &out);
  add_gpu_processes(facts.now, view, &out);
  add_off(facts.now, view.columns, &out);
  return out;
}

std::string title(const TopFacts& facts) {
  const json& daemon = member(facts.now, "daemon");
  if (!facts.error.empty() || !facts.now.is_object()) return "kvmemd";
  const std::string pid = text(daemon, "pid");
  return joined({"kvmemd " + text(daemon, "version"), pid.empty() ? "" : "pid " + pid,
                 has(daemon, "uptime_s") ? "up " + human_seconds(real(daemon, "uptime_s")) : "",
                 facts.elapsed_s > 0 ? "over " + human_seconds(facts.elapsed_s) : ""},
                "  ");
}

// The first `columns` columns of a line.
void clip(Line* line, std::size_t columns) {
  for (auto span = line->begin(); span != line->end(); ++span) {
    std::size_t at = 0;
    while (at < span->text.size()) {
      const bool starts = (span->text[at] & 0xC0) != 0x80;
      if (starts && columns == 0) break;
      columns -= starts ? 1 : 0;
      ++at;
    }
    if (at == span->text.size()) continue;
    span->text.resize(at);
    line->erase(std::next(span), line->end());
    return;
  }
}

}  // namespace

const char* sort_name(SortBy sort) {
  switch (sort) {
    case SortBy::kHeat:
      return "heat";
    case SortBy::kResident:
      return "resident";
    case SortBy::kFaults:
      break;
  }
  return "faults";
}

SortBy next_sort(SortBy sort) {
  switch (sort) {
    case SortBy::kHeat:
      return SortBy::kResident;
    case SortBy::kResident:
      return SortBy::kFaults;
    case SortBy::kFaults:
      break;
  }
  return SortBy::kHeat;
}

Frame top_frame(const TopFacts& facts, const TopView& view) {
  Frame frame;
  if (view.rows == 0 || view.columns == 0) return frame;
  frame.lines.push_back({{title(facts), Tone::kTitle}});
  if (view.paused) frame.lines.back().push_back({"  paused", Tone::kWarning});
  const std::vector<Line> body = view.help ? help_lines() : body_lines(facts, view);
  const bool has_keys = view.rows >= 4;
  const std::size_t room = view.rows - 1 - (has_keys ? 1 : 0);
  frame.scroll_max = body.size() > room ? body.size() - room : 0;
  const std::size_t first = std::min(view.scroll, frame.scroll_max);
  const std::size_t shown = std::min(room, body.size());
  for (std::size_t i = first; i < first + shown; ++i) frame.lines.push_back(body[i]);
  if (has_keys) {
    frame.lines.resize(view.rows - 1);
    std::string keys = "q quit  s sort  p pause  h help";
    if (frame.scroll_max != 0) {
      keys = "lines " + std::to_string(first + 1) + "-" + std::to_string(first + shown) + " of " +
             std::to_string(body.size()) + "  " + keys;
    }
    frame.lines.push_back({{keys, Tone::kFaint}});
  }
  for (Line& line : frame.lines) clip(&line, view.columns);
  return frame;
}

std::string top_text(const TopFacts& facts, SortBy sort, unsigned columns) {
  TopView view;
  view.columns = columns;
  view.sort = sort;
  std::vector<Line> lines = {{{title(facts)}}};
  for (Line& line : body_lines(facts, view)) lines.push_back(std::move(line));
  std::string out;
  for (Line& line : lines) {
    clip(&line, columns);
    for (const Span& span : line) out += span.text;
    out += '\n';
  }
  return out;
}

}  // namespace kvmem::cli
