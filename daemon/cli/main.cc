// kvmemctl: runs engines under kvmem, shows and steers a running daemon, checks its configuration.

#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cli/client.h"
#include "cli/exit_code.h"
#include "cli/heat.h"
#include "cli/live.h"
#include "cli/render.h"
#include "cli/run.h"
#include "config/config.h"

#ifndef KVMEM_VERSION
#define KVMEM_VERSION "unknown"
#endif

namespace kvmem::cli {
namespace {

struct Globals {
  std::string socket;
  bool json = false;
  std::string colour = "auto";
};

std::string environment(const char* name) {
  const char* const value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): one thread
  return value != nullptr ? value : "";
}

Style style_of(const Globals& globals) {
  Style style;
  const bool tty = ::isatty(STDOUT_FILENO) == 1;
  style.colour = globals.colour == "always" ||
                 (globals.colour == "auto" && tty && environment("NO_COLOR").empty() &&
                  environment("TERM") != "dumb");
  winsize size{};
  if (tty && ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col != 0) {
    style.width = size.ws_col;
  } else if (const int columns = std::atoi(environment("COLUMNS").c_str()); columns > 0) {
    style.width = static_cast<unsigned>(columns);
  } else if (!tty) {
    style.width = 120;
  }
  style.width = std::clamp(style.width, 40U, 400U);
  return style;
}

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

void print(const nlohmann::json& json) {
  print(json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

int fail(const Globals& globals, int exit_code, const std::string& error) {
  if (globals.json) print(nlohmann::json{{"error", error}, {"exit_status", exit_code}});
  std::fprintf(stderr, "kvmemctl: %s\n", error.c_str());
  return exit_code;
}

int show(const Globals& globals, const Question& question,
         std::string (*render)(const nlohmann::json&, const Style&)) {
  const Answer answer = ask(socket_path(globals.socket), question);
  if (!answer.ok()) return fail(globals, answer.exit_code, answer.error);
  if (globals.json) {
    print(answer.json);
  } else {
    print(render(answer.json, style_of(globals)));
  }
  return kExitOk;
}

int act(const Globals& globals, const Question& question, const char* verb) {
  // Pages begin to move before the answer and go on after it.
  constexpr unsigned kActionTimeoutMs = 600'000;
  const Answer answer = ask(socket_path(globals.socket), question, kActionTimeoutMs);
  if (!answer.ok()) return fail(globals, answer.exit_code, answer.error);
  if (globals.json) {
    print(answer.json);
  } else {
    print(render_action(answer.json, verb));
  }
  const auto refused = answer.json.find("pages_refused");
  const bool partly = refused != answer.json.end() && refused->is_number() && *refused > 0;
  return partly ? kExitPartly : kExitOk;
}

// Of the memory on GPUs that `question` means: what a GPU still reaches, and what is stored.
struct Parked {
  std::uint64_t regions = 0;
  std::uint64_t mapped_bytes = 0;
  std::uint64_t stored_bytes = 0;
};
Parked parked_of(const nlohmann::json& regions, const Question& question) {
  Parked sum;
  for (const nlohmann::json& r : regions.value("gpu_regions", nlohmann::json::array())) {
    if (question.pid != 0 ? r.value("pid", 0) != question.pid : r.value("tag", "") != question.tag)
      continue;
    ++sum.regions;
    sum.mapped_bytes +=
        r.value("hbm_bytes", std::uint64_t{0}) + r.value("host_bytes", std::uint64_t{0});
    sum.stored_bytes += r.value("stored_bytes", std::uint64_t{0});
  }
  return sum;
}

// Asks, and waits until it is so: the engine does it in its own time.
int park(const Globals& globals, const Question& question, unsigned timeout_s) {
  const std::string socket = socket_path(globals.socket);
  const bool parks = question.op == wire::ControlOp::kPark;
  const auto begin = std::chrono::steady_clock::now();
  Answer answer = ask(socket, question);
  if (!answer.ok()) return fail(globals, answer.exit_code, answer.error);
  Question look;
  look.op = wire::ControlOp::kRegions;
  Parked now;
  bool done = false;
  double seconds = 0;
  while (!done && seconds < timeout_s) {
    answer = ask(socket, look);
    if (!answer.ok()) return fail(globals, answer.exit_code, answer.error);
    now = parked_of(answer.json, question);
    done = (parks ? now.mapped_bytes : now.stored_bytes) == 0;
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (!done) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  const char* const why = parks ? "the engine is at work, or has memory that cannot move (a graph "
                                  "copies it, others share it)"
                                : "the GPU has no room yet";
  if (globals.json) {
    print(nlohmann::json{{"done", done},
                         {"regions", now.regions},
                         {"mapped_bytes", now.mapped_bytes},
                         {"stored_bytes", now.stored_bytes},
                         {"why", done ? "" : why}});
  } else {
    print(std::string(parks ? "parked " : "awake ") +
          human_bytes(parks ? now.stored_bytes : now.mapped_bytes) + " in " +
          std::to_string(now.regions) + (now.regions == 1 ? " region" : " regions") +
          (done ? "\n"
                : ", " + human_bytes(parks ? now.mapped_bytes : now.stored_bytes) + " not: " + why +
                      "\n"));
  }
  return done ? kExitOk : kExitPartly;
}

nlohmann::json as_json(const std::vector<config::Problem>& problems) {
  nlohmann::json out = nlohmann::json::array();
  for (const config::Problem& p : problems) {
    out.push_back({{"where", p.where},
                   {"line", p.line},
                   {"key", p.key},
                   {"what", p.what},
                   {"remedy", p.remedy}});
  }
  return out;
}

int config_check(const Globals& globals, const std::string& file) {
  const config::Loaded loaded = config::load(file, config::Machine::detect());
  if (globals.json) {
    print(nlohmann::json{
        {"file", file}, {"ok", loaded.ok()}, {"problems", as_json(loaded.problems)}});
  } else if (loaded.ok()) {
    print(printable(file) + ": ok\n");
  } else {
    for (const config::Problem& problem : loaded.problems) {
      std::fprintf(stderr, "%s\n", printable(problem.text()).c_str());
    }
  }
  return loaded.ok() ? kExitOk : kExitFailed;
}

int config_show(const Globals& globals, const std::string& file) {
  const config::Loaded loaded = config::load(file, config::Machine::detect());
  if (!loaded.ok()) return config_check(globals, file);
  print(config::show(loaded.config));
  return kExitOk;
}

int config_keys(const Globals& globals) {
  std::vector<Row> rows;
  nlohmann::json json = nlohmann::json::array();
  for (const config::KeyHelp& k : config::keys()) {
    rows.push_back({k.key, k.default_value, k.live ? "on SIGHUP" : "restart", k.help});
    json.push_back(
        {{"key", k.key}, {"default", k.default_value}, {"live", k.live}, {"help", k.help}});
  }
  if (globals.json) {
    print(json);
  } else {
    Style style = style_of(globals);
    style.width = 400;  // help is to be read whole
    print(table({{"key"}, {"default"}, {"changes"}, {"meaning"}}, rows, style));
  }
  return kExitOk;
}

// What stands behind "--" is the engine's, whatever it looks like.
std::vector<std::string> split_engine(std::vector<std::string>* arguments) {
  const auto run = std::find(arguments->begin(), arguments->end(), "run");
  const auto end = std::find(run, arguments->end(), "--");
  std::vector<std::string> engine;
  if (end == arguments->end()) return engine;
  engine.assign(end + 1, arguments->end());
  arguments->erase(end, arguments->end());
  return engine;
}

constexpr const char* kFooter =
    "Exit status: 0 done; 1 refused or failed; 2 command line; 3 no daemon answers;\n"
    "4 no permission; 5 done in part. `run` gives the engine's own, 128 + N after signal N,\n"
    "125 when kvmemctl itself failed, 126 and 127 when the engine cannot be executed or found.";

int main_with(std::vector<std::string> arguments) {
  std::vector<std::string> engine = split_engine(&arguments);
  Globals globals;
  RunOptions run_options;
  CLI::App app{"kvmemctl: memory tiering for LLM engines"};
  app.footer(kFooter);
  app.require_subcommand(1);
  app.fallthrough();
  app.set_version_flag("--version", "kvmemctl " KVMEM_VERSION);
  app.add_option(
      "--socket", globals.socket,
      "the daemon's socket (default: $KVMEM_SOCKET, a daemon of your own, the system's)");
  app.add_flag("--json", globals.json, "JSON on standard output");
  app.add_option("--color", globals.colour, "auto, always or never")
      ->check(CLI::IsMember({"auto", "always", "never"}));

  CLI::App* const run_command =
      app.add_subcommand("run", "run an engine with kvmem: run [options] -- ENGINE ARGS...");
  // Whatever follows the engine's name is its own, so nothing falls through to the options above.
  run_command->prefix_command();
  run_command->fallthrough(false);
  run_command->add_option("--socket", globals.socket,
                          "the daemon to use, or where a private one listens");
  run_command->add_option("--dram", run_options.dram,
                          "DRAM for the engine: a size or a share of memory (\"12GiB\", \"60%\")");
  run_command->add_option("--cxl", run_options.cxl,
                          "CXL memory beside it: a size or a share of the nodes without CPUs");
  run_command->add_option("--store", run_options.store,
                          "page store: a file, a device, a folder to make one in, or \"none\"");
  run_command->add_option("--store-size", run_options.store_size, "its size");
  run_command->add_option("--config", run_options.config, "configuration of a private daemon");
  run_command->add_flag("--private", run_options.private_daemon,
                        "a daemon of its own even if one answers");
  run_command->add_option("--json-report", run_options.json_report,
                          "write the daemon's status at the engine's end to this file");
  run_command->add_flag("--keep", run_options.keep,
                        "leave the private daemon's folder, log and store");
  run_command->add_flag("-v,--verbose", run_options.verbose, "say which daemon serves");
  run_command->add_option("--kvmemd", run_options.kvmemd, "the daemon's program");
  run_command->add_option("--library", run_options.library, "libkvmem.so");

  CLI::App* const status =
      app.add_subcommand("status", "daemon, tiers, engines, regions, counters");
  CLI::App* const sources =
      app.add_subcommand("sources", "where the daemon's knowledge comes from, and what is off");
  LiveOptions live_options;
  CLI::App* const top = app.add_subcommand(
      "top", "live: tiers, engines, hottest regions, moves a second; with --json a line each time");
  top->add_option("--interval", live_options.interval_s, "seconds between two looks")
      ->check(CLI::Range(kIntervalMinS, kIntervalMaxS))
      ->capture_default_str();
  top->add_flag("--once", live_options.once, "the rates of one interval as text, no screen");
  CLI::App* const tiers = app.add_subcommand("tiers", "capacity and use of each tier");
  CLI::App* const regions = app.add_subcommand("regions", "every region and where its pages are");

  std::string target_text;
  CLI::App* const pages =
      app.add_subcommand("pages", "map of a region: where each page is, and heat");
  pages->add_option("REGION", target_text, "a number from `regions`; also REGION:FIRST-LAST")
      ->required();
  HeatOptions heat_options;
  CLI::App* const heat =
      app.add_subcommand("heat", "heat of a region's pages over time, in the terminal or drawn");
  heat->add_option("REGION", target_text, "a number from `regions`; also REGION:FIRST-LAST")
      ->required();
  heat->add_option("--seconds", heat_options.seconds, "how long; an interrupt ends it as well")
      ->check(CLI::Range(kIntervalMinS, kHeatSecondsMax))
      ->capture_default_str();
  heat->add_option("--interval", heat_options.interval_s, "seconds between two looks")
      ->check(CLI::Range(kIntervalMinS, kIntervalMaxS))
      ->capture_default_str();
  heat->add_option("--svg", heat_options.svg, "draw it into this file at the end");
  CLI::App* const explain = app.add_subcommand(
      "explain", "why a page is where it is; `cache`: why blocks are read or computed");
  explain->add_option("REGION:PAGE", target_text, "or `cache`")->required();

  struct Action {
    const char* name;
    wire::ControlOp op;
    const char* verb;
    const char* help;
    CLI::App* command = nullptr;
  };
  std::vector<Action> actions = {
      {"promote", wire::ControlOp::kPromote, "promoting", "bring pages into DRAM"},
      {"demote", wire::ControlOp::kDemote, "demoting", "move pages out of DRAM"},
      {"pin", wire::ControlOp::kPin, "pinned", "keep pages in DRAM"},
      {"unpin", wire::ControlOp::kUnpin, "unpinned", "let pages move again"},
  };
  for (Action& action : actions) {
    action.command = app.add_subcommand(action.name, action.help);
    action.command->add_option("REGION[:FIRST[-LAST]]", target_text)->required();
  }
  std::string tier;
  CLI::App* const drain = app.add_subcommand("drain", "move everything that may move off a tier");
  drain->add_option("TIER", tier, "dram")->required();

  unsigned timeout_s = 60;
  CLI::App* const park_command =
      app.add_subcommand("park", "give an engine's GPU memory back until it uses it again");
  CLI::App* const wake_command = app.add_subcommand("wake", "bring parked GPU memory back now");
  for (CLI::App* command : {park_command, wake_command}) {
    command->add_option("PID|TAG", target_text, "an engine, or memory by its tag (KVMEM_TAG)")
        ->required();
    command->add_option("--timeout", timeout_s, "seconds to wait for it");
  }

  CLI::App* const config_command = app.add_subcommand("config", "kvmemd's configuration file");
  config_command->require_subcommand(1);
  std::string file;
  CLI::App* const check = config_command->add_subcommand("check", "ok, or every problem in a file");
  check->add_option("FILE", file)->required();
  CLI::App* const show_config =
      config_command->add_subcommand("show", "a file's values, or the defaults, on this machine");
  show_config->add_option("FILE", file);
  CLI::App* const keys =
      config_command->add_subcommand("keys", "every key, its default and meaning");

  std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    if (code == 0) return kExitOk;
    return run_command->parsed() ? kExitRunFailed : kExitUsage;
  }

  if (run_command->parsed()) {
    run_options.socket = globals.socket;
    std::vector<std::string> rest = run_command->remaining();
    // A misspelt --dram must not become a run without a limit.
    if (!rest.empty() && (!engine.empty() || rest.front().starts_with('-'))) {
      std::fprintf(
          stderr,
          "kvmem: %s is no option of run, which stand before -- (kvmemctl run --help lists them)\n",
          printable(rest.front()).c_str());
      return kExitRunFailed;
    }
    run_options.engine = std::move(engine.empty() ? rest : engine);
    return run(run_options);
  }
  if (check->parsed()) return config_check(globals, file);
  if (show_config->parsed()) return config_show(globals, file);
  if (keys->parsed()) return config_keys(globals);

  Question question;
  if (park_command->parsed() || wake_command->parsed()) {
    question.op = park_command->parsed() ? wire::ControlOp::kPark : wire::ControlOp::kWake;
    const char* const end = target_text.data() + target_text.size();
    const auto number = std::from_chars(target_text.data(), end, question.pid);
    if (number.ec != std::errc{} || number.ptr != end || question.pid <= 0) {
      question.pid = 0;
      question.tag = target_text;
    }
    return park(globals, question, timeout_s);
  }
  if (explain->parsed() && target_text == "cache") {
    question.op = wire::ControlOp::kStatus;
    return show(globals, question, render_explain_cache);
  }
  if (!target_text.empty() && !parse_target(target_text, &question.target)) {
    return fail(
        globals, kExitUsage,
        "\"" + printable(target_text) +
            "\" is not REGION, REGION:PAGE or REGION:FIRST-LAST; `kvmemctl regions` lists them");
  }
  const auto ask_and_show = [&](wire::ControlOp op, auto render) {
    question.op = op;
    return show(globals, question, render);
  };
  if (status->parsed()) return ask_and_show(wire::ControlOp::kStatus, render_status);
  if (sources->parsed()) return ask_and_show(wire::ControlOp::kStatus, render_sources);
  if (top->parsed()) {
    live_options.socket = socket_path(globals.socket);
    live_options.style = style_of(globals);
    live_options.json = globals.json;
    const LiveEnd end = run_live(live_options);
    return end.exit_code == kExitOk ? kExitOk : fail(globals, end.exit_code, end.error);
  }
  if (tiers->parsed()) return ask_and_show(wire::ControlOp::kTiers, render_tiers);
  if (regions->parsed()) return ask_and_show(wire::ControlOp::kRegions, render_regions);
  if (pages->parsed()) return ask_and_show(wire::ControlOp::kPages, render_pages);
  if (heat->parsed()) {
    heat_options.socket = socket_path(globals.socket);
    heat_options.target = question.target;
    heat_options.style = style_of(globals);
    heat_options.json = globals.json;
    const HeatEnd end = run_heat(heat_options);
    return end.exit_code == kExitOk ? kExitOk : fail(globals, end.exit_code, end.error);
  }
  if (explain->parsed()) {
    if (question.target.page_count != 1) {
      return fail(globals, kExitUsage, "explain takes one page: REGION:PAGE");
    }
    return ask_and_show(wire::ControlOp::kExplain, render_explain);
  }
  if (drain->parsed()) {
    question.op = wire::ControlOp::kDrain;
    question.tag = tier;
    return act(globals, question, "moving");
  }
  for (const Action& action : actions) {
    if (!action.command->parsed()) continue;
    question.op = action.op;
    return act(globals, question, action.verb);
  }
  return kExitUsage;
}

}  // namespace
}  // namespace kvmem::cli

int main(int argc, char** argv) {
  try {
    return kvmem::cli::main_with(std::vector<std::string>(argv + std::min(argc, 1), argv + argc));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kvmemctl: %s\n", error.what());
    return kvmem::cli::kExitRunFailed;
  }
}
