// The daemon's JSON as text for a person. Pure: JSON and a style in, text out.
//
// Fields that are missing or of another type show as 0 or nothing, so that a kvmemctl reads an
// older or newer daemon. Names, paths and reasons come from engines and from disk: control
// characters in them never reach the terminal.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "cli/text.h"

namespace kvmem::cli {

struct Style {
  bool colour = false;
  unsigned width = 80;  // columns
};

struct Column {
  std::string name;
  bool right = false;    // numbers
  bool shrinks = false;  // gives way when the table is wider than the terminal
};
using Row = std::vector<std::string>;
std::string table(const std::vector<Column>& columns, const std::vector<Row>& rows,
                  const Style& style);

// One glyph a page, or a bucket of a power of two of pages when there are too many for the screen.
// A bucket shows its commonest state, but a lost page always shows; its heat is its hottest page's.
// `state`, `heat` and `pinned` have one character a page as in the daemon's answer; the latter two
// may be empty.
struct PageMap {
  std::uint64_t first_page = 0;
  std::uint64_t page_bytes = 0;
  std::string state;
  std::string heat;
  std::string pinned;
};
std::string page_map(const PageMap& map, const Style& style);
// Heats, a digit each, as in the map.
std::string heat_line(std::string_view heat, const Style& style);

std::string render_status(const nlohmann::json& status, const Style& style);
// From the status: where the daemon's knowledge comes from.
std::string render_sources(const nlohmann::json& status, const Style& style);
std::string render_tiers(const nlohmann::json& tiers, const Style& style);
std::string render_regions(const nlohmann::json& regions, const Style& style);
std::string render_pages(const nlohmann::json& pages, const Style& style);
std::string render_explain(const nlohmann::json& explain, const Style& style);
// Of a status: what the block caches chose between reading and computing, and why.
std::string render_explain_cache(const nlohmann::json& status, const Style& style);
// `verb` in the past tense: "promoted 12 of 20 pages; 8 refused: ...".
std::string render_action(const nlohmann::json& result, std::string_view verb);

}  // namespace kvmem::cli
