// What policies make of a trace: see policy.sh.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "policy/block_policy.h"
#include "tests/sim/clairvoyant.h"
#include "tests/sim/trace.h"

namespace kvmem::sim {
namespace {

struct Choice {
  std::string file;
  std::vector<std::size_t> capacities{1000, 5859, 10000, 30000, 50000, 100000};
  std::vector<std::string> policies{"kvmem", "lru", "lfu-da", "arc", "s3fifo", "min"};
  std::uint64_t generate = 0;
  std::size_t requests = 12000;
  std::string half;
  double share = 1;
  std::uint64_t seed = 1;
  std::vector<double> budgets;  // of writes
  bool json = false;
};

int load(const Choice& choice, Trace* trace) {
  if (choice.file.empty()) {
    *trace = generate_trace(choice.generate, choice.requests);
  } else {
    std::ifstream in(choice.file);
    std::string error = "cannot be read";
    if (!in || !read_trace(in, trace, &error)) {
      std::fprintf(stderr, "policy.sh: %s: %s\n", choice.file.c_str(), error.c_str());
      return 1;
    }
  }
  if (trace->empty()) {
    std::fprintf(stderr, "policy.sh: %s: no request in it\n", choice.file.c_str());
    return 1;
  }
  const auto middle = trace->begin() + static_cast<std::ptrdiff_t>(trace->size() / 2);
  if (choice.half == "first") trace->erase(middle, trace->end());
  if (choice.half == "second") trace->erase(trace->begin(), middle);
  if (choice.share < 1) *trace = subset_of(*trace, choice.seed, choice.share);
  return 0;
}

void print(const Choice& choice, const std::string& policy, std::size_t capacity, const Hits& hits,
           std::optional<double> budget, double seconds) {
  const double rate = seconds > 0 ? static_cast<double>(hits.blocks) / seconds : 0;
  const double written = hits.blocks > 0 ? 1000.0 * static_cast<double>(hits.written) /
                                               static_cast<double>(hits.blocks)
                                         : 0;
  if (choice.json) {
    nlohmann::json line{{"policy", policy},
                        {"capacity", capacity},
                        {"prefix_hit_pct", hits.percent()},
                        {"references", hits.blocks},
                        {"references_per_s", rate}};
    if (budget) {
      line["write_budget"] = *budget;
      line["writes_per_1000"] = written;
    }
    std::cout << line << std::endl;
    return;
  }
  std::printf("%-8s %9zu blocks  %6.2f %%  %7.2f M references/s", policy.c_str(), capacity,
              hits.percent(), rate / 1e6);
  if (budget) std::printf("  %6.1f writes per 1,000 of %g", written, *budget);
  std::printf("\n");
  std::fflush(stdout);
}

int run(int argc, char** argv) {
  Choice choice;
  CLI::App app("Prefix hit rates of policies on a trace", "policy.sh");
  auto* file = app.add_option("TRACE", choice.file, "one JSON object a line, as Mooncake's");
  app.add_option("--generate", choice.generate, "conversations made up from this seed instead")
      ->excludes(file);
  app.add_option("--requests", choice.requests, "how many of them")
      ->check(CLI::Range(std::size_t{1}, std::size_t{10'000'000}));
  app.add_option("--capacities", choice.capacities, "in blocks")
      ->delimiter(',')
      ->check(CLI::Range(std::size_t{0}, std::size_t{1'000'000'000}));
  app.add_option("--policies", choice.policies,
                 "of " + std::string(policy::block_policy_names()) + ", min")
      ->delimiter(',');
  app.add_option("--half", choice.half, "only that")->check(CLI::IsMember({"first", "second"}));
  app.add_option("--share", choice.share, "of the conversations only")->check(CLI::Range(0.0, 1.0));
  app.add_option("--seed", choice.seed, "of which share");
  app.add_option("--write-budget", choice.budgets,
                 "writes for each 1,000 blocks asked for; 0: without a limit, but counted")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 1000.0));
  app.add_flag("--json", choice.json, "one object a line");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (choice.file.empty() && app.count("--generate") == 0) {
    std::fprintf(stderr, "policy.sh: name a trace, or --generate SEED\n");
    return 2;
  }
  for (const std::string& name : choice.policies) {
    if (name != "min" && policy::make_block_policy(name, 1) == nullptr) {
      std::fprintf(stderr, "policy.sh: no policy '%s': there are %s, min\n", name.c_str(),
                   std::string(policy::block_policy_names()).c_str());
      return 2;
    }
  }
  Trace trace;
  if (const int error = load(choice, &trace); error != 0) return error;
  std::vector<std::optional<double>> budgets(choice.budgets.begin(), choice.budgets.end());
  if (budgets.empty()) budgets.emplace_back();
  for (const std::size_t capacity : choice.capacities) {
    for (const std::optional<double> budget : budgets) {
      for (const std::string& name : choice.policies) {
        if (budget && name == "min") continue;  // it knows no writes
        const auto start = std::chrono::steady_clock::now();
        Hits hits;
        if (name == "min") {
          hits = run_clairvoyant(trace, capacity);
        } else if (budget) {
          hits = run_written(trace, *policy::make_block_policy(name, capacity), *budget);
        } else {
          hits = run_policy(trace, *policy::make_block_policy(name, capacity));
        }
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        print(choice, name, capacity, hits, budget, took.count());
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace kvmem::sim

int main(int argc, char** argv) {
  try {
    return kvmem::sim::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "policy.sh: %s\n", error.what());
    return 1;
  }
}
