#include "cli/heat_svg.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cli/text.h"

namespace kvmem::cli {
namespace {

constexpr double kLeft = 76;  // of the map; what is left of it are the times
constexpr double kTop = 78;
constexpr double kWidth = 900;
constexpr double kHeight = 460;
constexpr double kRight = 24;
constexpr double kBottom = 116;

// Colours of a scale whose lightness falls (on dark ground: rises) evenly with heat, so that it is
// one in grey too; what is in DRAM is told by form, not by colour.
constexpr const char* kStyle =
    "svg{--ground:#fff;--ink:#222;--faint:#777;--dram:#0068b5;"
    "--h1:#fff0d6;--h2:#fee0b0;--h3:#fdca86;--h4:#fcb064;--h5:#f8914a;--h6:#ec6f36;"
    "--h7:#d64f27;--h8:#b3321c;--h9:#861a13}"
    "@media(prefers-color-scheme:dark){svg{--ground:#16181c;--ink:#e8e8e8;--faint:#999;"
    "--dram:#5cc0ff;--h1:#2e1712;--h2:#461d14;--h3:#632617;--h4:#86331a;--h5:#ab4720;"
    "--h6:#cf612b;--h7:#ec8340;--h8:#fbab62;--h9:#ffd79a}}"
    "text{font:12px system-ui,sans-serif;fill:var(--ink)}.title{font-size:15px;font-weight:600}"
    ".faint{fill:var(--faint)}.end{text-anchor:end}.middle{text-anchor:middle}"
    ".axis{stroke:var(--faint);fill:none}.dram{fill:var(--dram)}"
    ".ground{fill:var(--ground)}.h1{fill:var(--h1)}.h2{fill:var(--h2)}.h3{fill:var(--h3)}.h4{fill:"
    "var(--h4)}"
    ".h5{fill:var(--h5)}.h6{fill:var(--h6)}.h7{fill:var(--h7)}.h8{fill:var(--h8)}"
    ".h9{fill:var(--h9)}";

std::string escaped(const std::string& text) {
  std::string out;
  const std::string safe = printable(text);
  for (std::size_t i = 0; i < safe.size(); ++i) {
    switch (safe[i]) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        // U+FFFE and U+FFFF are no characters of XML.
        if (safe.compare(i, 3, "\xEF\xBF\xBE") == 0 || safe.compare(i, 3, "\xEF\xBF\xBF") == 0) {
          out += '?';
          i += 2;
        } else {
          out += safe[i];
        }
    }
  }
  return out;
}

std::string px(double value) {
  std::string out = format("%.2f", value);
  out.erase(out.find_last_not_of('0') + 1);
  if (out.back() == '.') out.pop_back();
  return out;
}

std::string rect(const std::string& name, double x, double y, double width, double height) {
  return "<rect class=\"" + name + "\" x=\"" + px(x) + "\" y=\"" + px(y) + "\" width=\"" +
         px(width) + "\" height=\"" + px(height) + "\"/>\n";
}

std::string label(const std::string& name, double x, double y, const std::string& text) {
  return "<text class=\"" + name + "\" x=\"" + px(x) + "\" y=\"" + px(y) + "\">" + escaped(text) +
         "</text>\n";
}

std::string tick(double x1, double y1, double x2, double y2) {
  return "<path class=\"axis\" d=\"M" + px(x1) + " " + px(y1) + "L" + px(x2) + " " + px(y2) +
         "\"/>\n";
}

// Runs of equal characters: f(first, one past the last, character).
template <class F>
void for_runs(const std::string& cells, F f) {
  for (std::size_t begin = 0; begin < cells.size();) {
    std::size_t end = begin + 1;
    while (end < cells.size() && cells[end] == cells[begin]) ++end;
    f(begin, end, cells[begin]);
    begin = end;
  }
}

// 1, 2 or 5 times a power of ten, so that there are at most `ticks` of them.
double time_step(double span_s, double ticks) {
  double step = std::pow(10, std::floor(std::log10(std::max(span_s / ticks, 1e-3))));
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    if (span_s / (step * factor) <= ticks) return step * factor;
  }
  return step * 10;
}

std::string axes(const HeatMap& map, double span_s, double y_of_s) {
  std::string out;
  out += "<rect class=\"axis\" x=\"" + px(kLeft) + "\" y=\"" + px(kTop) + "\" width=\"" +
         px(kWidth) + "\" height=\"" + px(kHeight) + "\"/>\n";
  const double step = time_step(span_s, 10);
  for (int i = 0; i * step <= span_s && i < 100; ++i) {
    const double y = kTop + i * step * y_of_s;
    out += tick(kLeft - 5, y, kLeft, y);
    out += label("end", kLeft - 9, y + 4, px(i * step));
  }
  out += label("end", kLeft - 9, kTop - 12, "time, s");
  constexpr int kTicks = 6;
  for (int i = 0; i <= kTicks; ++i) {
    const double x = kLeft + kWidth * i / kTicks;
    const std::uint64_t page =
        map.first_page() + static_cast<std::uint64_t>(
                               std::llround(static_cast<double>(map.page_count()) * i / kTicks));
    out += tick(x, kTop + kHeight, x, kTop + kHeight + 5);
    out += label("middle", x, kTop + kHeight + 19, human_bytes(page * map.page_bytes()));
  }
  out += label("middle", kLeft + kWidth / 2, kTop + kHeight + 38, "address in the region");
  return out;
}

std::string legend() {
  const double y = kTop + kHeight + 62;
  std::string out = label("end", kLeft + 36, y + 12, "cold");
  double x = kLeft + 44;
  out +=
      "<rect class=\"axis\" x=\"" + px(x) + "\" y=\"" + px(y) + "\" width=\"22\" height=\"16\"/>\n";
  for (int heat = 1; heat <= 9; ++heat) {
    out += rect("h" + std::to_string(heat), x + 22.0 * heat, y, 22, 16);
  }
  out += label("", x + 228, y + 12, "in use every time around");
  x = kLeft + 500;
  out +=
      "<rect class=\"axis\" x=\"" + px(x) + "\" y=\"" + px(y) + "\" width=\"44\" height=\"16\"/>\n";
  out += rect("dram", x, y + 12, 44, 4);
  out += label("", x + 52, y + 12, "line at the foot: in DRAM");
  return out;
}

}  // namespace

std::string heat_svg(const HeatMap& map, const std::string& name) {
  const auto& samples = map.samples();
  const double span_s = samples.empty() ? 1 : std::max(samples.back().until_s, 1e-3);
  const double y_of_s = kHeight / span_s;
  const double x_of_page = kWidth / static_cast<double>(map.page_count());
  const auto x_of = [&](std::size_t bin) {
    return kLeft +
           x_of_page * static_cast<double>(std::min(bin * map.bin_pages(), map.page_count()));
  };
  const double width = kLeft + kWidth + kRight;
  const double height = kTop + kHeight + kBottom;
  std::string out = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
  out += "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + px(width) + " " + px(height) +
         "\" width=\"" + px(width) + "\" height=\"" + px(height) +
         "\" role=\"img\" shape-rendering=\"crispEdges\">\n";
  out += "<title>" + escaped("heat of " + name) + "</title>\n<style>" + kStyle + "</style>\n";
  out += rect("ground", 0, 0, width, height);
  out += label("title", kLeft, 28, "heat of " + shortened(name, 100));
  out += label("faint", kLeft, 48,
               human_bytes(map.page_count() * map.page_bytes()) + " in " +
                   human_count(map.page_count()) + " pages; a cell is " +
                   human_count(map.bin_pages()) +
                   (map.bin_pages() == 1 ? " page" : " pages, as hot as the hottest of them"));
  out += "<g id=\"heat\">\n";
  for (const HeatSample& s : samples) {
    const double y = kTop + s.at_s * y_of_s;
    const double rows = (s.until_s - s.at_s) * y_of_s;
    for_runs(s.heat, [&](std::size_t begin, std::size_t end, char heat) {
      if (heat == '0') return;
      out += rect(std::string("h") + heat, x_of(begin), y, x_of(end) - x_of(begin), rows);
    });
  }
  out += "</g>\n<g id=\"dram\">\n";
  for (const HeatSample& s : samples) {
    const double rows = (s.until_s - s.at_s) * y_of_s;
    const double line = std::min(4.0, rows / 4);
    for_runs(s.resident, [&](std::size_t begin, std::size_t end, char resident) {
      if (resident != '1') return;
      out += rect("dram", x_of(begin), kTop + s.until_s * y_of_s - line, x_of(end) - x_of(begin),
                  line);
    });
  }
  out += "</g>\n" + axes(map, span_s, y_of_s) + legend() + "</svg>\n";
  return out;
}

}  // namespace kvmem::cli
