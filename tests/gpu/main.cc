// What a GPU and its driver do, one fact at a time; report.py runs them all.
//
// usage: gpu_facts FACT [CASE...] [--quick] [--scratch FOLDER]
//
// Exit status: 0 asked and answered, whatever the answers; 1 a call failed that may not; 2 command
// line; 77 cannot be asked here.
#include <cstring>

#include "gpu.h"

int main(int argc, char** argv) {
  using Fact = void (*)(const gpu::Options&);
  static constexpr std::pair<const char*, Fact> kFacts[] = {
      {"device", gpu::fact_device}, {"mixed", gpu::fact_mixed},   {"remap", gpu::fact_remap},
      {"places", gpu::fact_places}, {"calls", gpu::fact_calls},   {"direct", gpu::fact_direct},
      {"copies", gpu::fact_copies}, {"launch", gpu::fact_launch}, {"graph", gpu::fact_graph},
      {"advise", gpu::fact_advise}};
  gpu::Options options;
  for (int i = 2; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) {
      options.quick = true;
    } else if (std::strcmp(argv[i], "--scratch") == 0 && i + 1 < argc) {
      options.scratch = argv[++i];
    } else {
      options.words.emplace_back(argv[i]);
    }
  }
  for (const auto& [name, fact] : kFacts) {
    if (argc < 2 || std::strcmp(argv[1], name) != 0) continue;
    fact(options);
    return 0;
  }
  gpu::usage("FACT is one of the names in main.cc");
}
