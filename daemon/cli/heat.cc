#include "cli/heat.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <utility>

#include "cli/exit_code.h"
#include "cli/fields.h"
#include "cli/heat_map.h"
#include "cli/heat_svg.h"
#include "cli/new_file.h"
#include "cli/signals.h"
#include "cli/text.h"

namespace kvmem::cli {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

// 3 by 2 points of the drawing; 120 KiB of samples.
constexpr std::size_t kBinsMax = 300;
constexpr std::size_t kRowsMax = 200;
constexpr unsigned kLabelColumns = 10;

double seconds_since(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}

void print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

std::string raw(const json& object, const char* key) {
  return fields::has(object, key) && object.at(key).is_string() ? object.at(key).get<std::string>()
                                                                : std::string();
}

class Heat {
 public:
  explicit Heat(const HeatOptions& options)
      // A reader that went away ends it as an interrupt does: the drawing is still wanted.
      : options_(options), signals_({SIGINT, SIGTERM, SIGHUP, SIGPIPE}) {}

  HeatEnd run() {
    if (!options_.svg.empty()) {
      if (std::string error = file_.open(options_.svg); !error.empty()) {
        return {kExitFailed, std::move(error)};
      }
    }
    name_region();
    const Clock::time_point begin = Clock::now();
    HeatEnd end;
    // Looks are counted: a sum of intervals would drift.
    double due_s = 0;
    for (std::uint64_t look = 0; signal_ == 0 && due_s < options_.seconds;) {
      std::optional<Answer> answer = ask_now(wire::ControlOp::kPages);
      if (!answer) break;
      std::string gone = answer->ok() ? take(answer->json, seconds_since(begin)) : answer->error;
      if (!gone.empty()) {
        if (!map_) return {answer->ok() ? kExitFailed : answer->exit_code, std::move(gone)};
        end = {kExitPartly, "ended early: " + std::move(gone)};
        break;
      }
      // What was due while the daemon was slow is not asked for later.
      while (due_s <= seconds_since(begin))
        due_s = static_cast<double>(++look) * options_.interval_s;
      while (signal_ == 0 && due_s < options_.seconds && seconds_since(begin) < due_s) {
        wait_readable({signals_.fd()}, due_s - seconds_since(begin));
        signal_ = signals_.take();
      }
    }
    if (!map_) {
      signals_.suffer(signal_);  // before there was anything
      return {kExitFailed, "interrupted"};
    }
    HeatEnd written = finish();
    return written.exit_code != kExitOk ? written : end;
  }

 private:
  // Nothing: a signal came first.
  std::optional<Answer> ask_now(wire::ControlOp op) {
    Question question;
    question.op = op;
    if (op == wire::ControlOp::kPages) question.target = options_.target;
    Asking asking(options_.socket, question);
    if (asking.fd() >= 0) {
      wait_readable({asking.fd(), signals_.fd()}, kAnswerTimeoutMs / 1e3);
      signal_ = signals_.take();
      if (signal_ != 0) return std::nullopt;
    }
    return asking.finish();
  }

  // Of the engine and file, where the daemon tells.
  void name_region() {
    const std::string number = std::to_string(options_.target.region_id);
    name_ = "region " + number;
    const std::optional<Answer> answer = ask_now(wire::ControlOp::kRegions);
    if (!answer || !answer->ok()) return;  // what is wrong with it the next question tells
    for (const json& r : fields::array(answer->json, "regions")) {
      if (fields::text(r, "region") != number) continue;
      name_ = joined({name_, fields::text(r, "tag"), fields::text(r, "path")}, ", ");
    }
  }

  // Why the region is no longer what it was, or nothing.
  std::string take(const json& pages, double at_s) {
    const std::string state = raw(pages, "state");
    const std::string heat = raw(pages, "heat");
    const std::string id = raw(pages, "id");
    if (state.empty()) return "the daemon's answer has no pages";
    if (!map_) {
      id_ = id;
      const std::uint64_t first = fields::number(pages, "first_page");
      const std::uint64_t page_bytes = fields::number(pages, "page_bytes");
      const std::size_t room = std::max(options_.style.width, kLabelColumns + 8) - kLabelColumns;
      map_.emplace(first, state.size(), page_bytes, kBinsMax, kRowsMax);
      lines_.emplace(first, state.size(), page_bytes, room, 1);
      begin_s_ = at_s;
      if (!options_.json) print(heading());
    } else if (id != id_ || state.size() != map_->page_count()) {
      return "the region is gone, its number is another's";
    }
    const double since_s = at_s - begin_s_;
    map_->add(since_s, since_s + options_.interval_s, state, heat);
    last_ = lines_->sample(state, heat);
    if (!options_.json)
      print(label(format("%.1f s", since_s)) + heat_line(last_.heat, options_.style) + "\n");
    return "";
  }

  static std::string label(std::string text) {
    text.insert(0, text.size() < kLabelColumns - 1 ? kLabelColumns - 1 - text.size() : 0, ' ');
    return text + " ";
  }

  std::string heading() const {
    const std::uint64_t bin = lines_->bin_pages();
    return name_ + ": heat of " + human_count(lines_->page_count()) +
           " pages, . coldest, 9 hottest; " +
           (bin == 1 ? "a column is a page"
                     : "a column is " + human_count(bin) + " pages, as hot as the hottest") +
           ", " + human_bytes(bin * lines_->page_bytes()) + "\n";
  }

  HeatEnd finish() {
    if (options_.json) {
      json samples = json::array();
      for (const HeatSample& s : map_->samples()) {
        samples.push_back(
            {{"at_s", s.at_s}, {"until_s", s.until_s}, {"heat", s.heat}, {"in_dram", s.resident}});
      }
      const json out = {{"region", options_.target.region_id},
                        {"name", name_},
                        {"first_page", map_->first_page()},
                        {"page_count", map_->page_count()},
                        {"page_bytes", map_->page_bytes()},
                        {"bin_pages", map_->bin_pages()},
                        {"samples", samples}};
      print(out.dump(2, ' ', false, json::error_handler_t::replace) + "\n");
    } else {
      std::string in_dram = last_.resident;
      std::replace(in_dram.begin(), in_dram.end(), '0', ' ');
      std::replace(in_dram.begin(), in_dram.end(), '1', '#');
      const std::string begin = human_bytes(map_->first_page() * map_->page_bytes());
      std::string end = human_bytes((map_->first_page() + map_->page_count()) * map_->page_bytes());
      const std::size_t used = begin.size() + end.size();
      if (used < in_dram.size()) end.insert(0, in_dram.size() - used, ' ');
      print(label("in DRAM") + in_dram + "\n" + label("address") + begin + end + "\n");
    }
    if (options_.svg.empty()) return {};
    if (std::string error = file_.write(heat_svg(*map_, name_)); !error.empty()) {
      return {kExitFailed, std::move(error)};
    }
    return {};
  }

  const HeatOptions& options_;
  Signals signals_;
  NewFile file_;
  std::string name_;
  std::string id_;
  std::optional<HeatMap> map_;    // for the drawing
  std::optional<HeatMap> lines_;  // how pages are put into columns of the terminal
  HeatSample last_;
  double begin_s_ = 0;
  int signal_ = 0;
};

}  // namespace

HeatEnd run_heat(const HeatOptions& options) { return Heat(options).run(); }

}  // namespace kvmem::cli
