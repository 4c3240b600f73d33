// What layouts of KV cache waste, on the lengths of a trace's sequences: kvmem's, and those of
// others by their arithmetic. See fragmentation.sh.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "pool/layout.h"
#include "tests/sim/trace.h"

namespace {

using kvmem::pool::Geometry;
using kvmem::pool::Layout;

constexpr std::uint64_t kMib = std::uint64_t{1} << 20;

struct Model {
  const char* name;
  std::uint32_t layers, kv_heads, head_dim;
};
constexpr Model kModels[] = {
    {"Llama-3-8B", 32, 8, 128}, {"Llama-3-70B, TP 8", 80, 1, 128}, {"Qwen2.5-0.5B", 24, 2, 64}};

struct Scheme {
  const char* name;
  std::uint64_t growth_bytes;  // of a sequence
  // For sequences of these lengths, all there at once.
  std::function<std::uint64_t(const std::vector<std::uint64_t>&)> allocated_bytes;
};

Geometry geometry_of(const Model& model, Layout layout, std::uint64_t page_bytes) {
  const Geometry g{.layers = model.layers,
                   .kv_heads = model.kv_heads,
                   .head_dim = model.head_dim,
                   .element_bytes = 2,
                   .tokens_max = 1 << 17,
                   .sequences_max = 256,
                   .page_bytes = page_bytes,
                   .layout = layout};
  if (const char* fault = g.fault(); fault != nullptr) {
    std::fprintf(stderr, "fragmentation: %s: %s\n", model.name, fault);
    std::exit(1);
  }
  return g;
}

Scheme rows(const char* name, const Geometry& g) {
  return {name, g.growth_bytes(), [g](const std::vector<std::uint64_t>& lengths) {
            std::uint64_t sum = 0;
            for (const std::uint64_t tokens : lengths) sum += g.allocated_bytes(tokens);
            return sum;
          }};
}

// Blocks of 16 tokens of all layers, anywhere.
Scheme paged(const Geometry& g) {
  const std::uint64_t block_bytes = 16 * g.token_bytes();
  return {"PagedAttention, 16 tokens", block_bytes,
          [block_bytes](const std::vector<std::uint64_t>& lengths) {
            std::uint64_t blocks = 0;
            for (const std::uint64_t tokens : lengths) blocks += (tokens + 15) / 16;
            return blocks * block_bytes;
          }};
}

// Blocks of 16 tokens that share pages of 2 MiB, one for keys and one for values in each layer; at
// best: only the last page is not full.
Scheme shared_pages(const Geometry& g) {
  const std::uint64_t blocks_per_page =
      std::max<std::uint64_t>(2 * kMib / (16 * g.plane_token_bytes()), 1);
  const std::uint64_t pages_bytes = 2ULL * g.layers * 2 * kMib;
  return {"kvcached, 2 MiB", pages_bytes, [=](const std::vector<std::uint64_t>& lengths) {
            std::uint64_t blocks = 0;
            for (const std::uint64_t tokens : lengths) blocks += (tokens + 15) / 16;
            return (blocks + blocks_per_page - 1) / blocks_per_page * pages_bytes;
          }};
}

}  // namespace

int main(int argc, char** argv) {
  bool json = false;
  std::string file;
  std::size_t at_once = 64;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0) {
      json = true;
    } else if (std::strcmp(argv[i], "--sequences") == 0 && i + 1 < argc) {
      at_once = std::strtoull(argv[++i], nullptr, 10);
    } else if (argv[i][0] != '-' && file.empty()) {
      file = argv[i];
    } else {
      std::fprintf(stderr, "usage: fragmentation [TRACE] [--sequences N] [--json]\n");
      return 2;
    }
  }
  kvmem::sim::Trace trace;
  if (file.empty()) {
    trace = kvmem::sim::generate_trace(1, 4000);
  } else {
    std::ifstream in(file);
    std::string error;
    if (!in || !kvmem::sim::read_trace(in, &trace, &error)) {
      std::fprintf(stderr, "fragmentation: %s: %s\n", file.c_str(),
                   in ? error.c_str() : "cannot be read");
      return 1;
    }
  }
  if (at_once == 0 || trace.size() < at_once) {
    std::fprintf(stderr, "fragmentation: --sequences: 1 to the trace's %zu requests\n",
                 trace.size());
    return 2;
  }
  for (const Model& model : kModels) {
    const Geometry packed = geometry_of(model, Layout::kPacked, 2 * kMib);
    const Scheme schemes[] = {
        rows("kvmem packed, 2 MiB", packed),
        rows("kvmem per layer, 2 MiB", geometry_of(model, Layout::kPerLayer, 2 * kMib)),
        rows("kvmem per layer, 64 KiB", geometry_of(model, Layout::kPerLayer, kMib / 16)),
        rows("vAttention, 2 MiB", geometry_of(model, Layout::kPerLayer, 2 * kMib)),
        rows("vAttention, 64 KiB", geometry_of(model, Layout::kPerLayer, kMib / 16)),
        shared_pages(packed),
        paged(packed)};
    if (!json) {
      std::printf("%s: %llu KiB a token\n  %-28s %14s %10s %10s %10s\n", model.name,
                  static_cast<unsigned long long>(packed.token_bytes() >> 10), "", "grows by, MiB",
                  "tokens", "waste, %", "worst, %");
    }
    for (const Scheme& scheme : schemes) {
      double wasted = 0, allocated = 0, worst = 0;
      // As many sequences at once, the trace's in its order, at their full lengths.
      for (std::size_t first = 0; first + at_once <= trace.size(); first += at_once) {
        std::vector<std::uint64_t> lengths;
        std::uint64_t tokens = 0;
        for (std::size_t i = first; i < first + at_once; ++i) {
          lengths.push_back(std::max(1U, trace[i].input_tokens + trace[i].output_tokens));
          tokens += lengths.back();
        }
        const auto has = static_cast<double>(scheme.allocated_bytes(lengths));
        const double waste = has - static_cast<double>(tokens * packed.token_bytes());
        allocated += has;
        wasted += waste;
        worst = std::max(worst, waste / has);
      }
      const double growth_tokens =
          static_cast<double>(scheme.growth_bytes) / static_cast<double>(packed.token_bytes());
      if (json) {
        std::printf(
            "{\"model\":\"%s\",\"scheme\":\"%s\",\"growth_bytes\":%llu,\"growth_tokens\":%.2f,"
            "\"waste_pct\":%.3f,\"worst_pct\":%.3f}\n",
            model.name, scheme.name, static_cast<unsigned long long>(scheme.growth_bytes),
            growth_tokens, 100 * wasted / allocated, 100 * worst);
      } else {
        std::printf("  %-28s %14.2f %10.1f %10.2f %10.2f\n", scheme.name,
                    static_cast<double>(scheme.growth_bytes) / static_cast<double>(kMib),
                    growth_tokens, 100 * wasted / allocated, 100 * worst);
      }
    }
  }
  return 0;
}
