// One frame of `kvmemctl top`. Pure: two answers of the daemon's status, the time between them and
// the size of the screen in, lines out. Whoever draws them knows nothing of what they say.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace kvmem::cli {

enum class Tone : std::uint8_t { kPlain, kTitle, kHeading, kFaint, kGood, kWarning, kBad };

struct Span {
  std::string text;
  Tone tone = Tone::kPlain;
};
using Line = std::vector<Span>;

enum class SortBy : std::uint8_t { kHeat, kResident, kFaults };
const char* sort_name(SortBy sort);
SortBy next_sort(SortBy sort);

struct TopView {
  unsigned columns = 80;
  unsigned rows = 24;
  SortBy sort = SortBy::kHeat;  // regions; engines have no heat and go by resident then
  std::size_t scroll = 0;       // lines of the middle part that are above the screen
  bool paused = false;
  bool help = false;
};

// NOLINTNEXTLINE(bugprone-exception-escape): moving JSON only checks an invariant
struct TopFacts {
  nlohmann::json before;   // null: there was one answer only
  nlohmann::json now;      // null: there was none yet
  double elapsed_s = 0;    // between the two
  double interval_s = 1;   // as asked for
  std::string error;       // why there is no answer now; what was known before is not shown then
  bool restarted = false;  // another daemon answers than the one of some frames ago
};

struct Frame {
  std::vector<Line> lines;     // at most view.rows, none wider than view.columns
  std::size_t scroll_max = 0;  // the most that view.scroll has an effect with
};

// A title, the part that scrolls, the keys: what a small screen has no rows for is left out from
// the end.
Frame top_frame(const TopFacts& facts, const TopView& view);

// The same without a screen: every line, no keys.
std::string top_text(const TopFacts& facts, SortBy sort, unsigned columns);

}  // namespace kvmem::cli
