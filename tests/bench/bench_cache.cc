// What the block cache costs an engine, by the C API: run by cache.py against a daemon whose DRAM
// holds an eighth of the blocks. Prints one JSON object.
//
// usage: bench_cache BLOCKS BLOCK_BYTES
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "kvmem.h"

namespace {

using Clock = std::chrono::steady_clock;

void must(int error, const char* what) {
  if (error == 0) return;
  std::fprintf(stderr, "bench_cache: %s: %s\n", what, kvmem_strerror(error));
  std::exit(1);
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Engine {
  explicit Engine(std::size_t bytes) : block_bytes(bytes) {
    const kvmem_cache_options options{sizeof options, {1, 2}, bytes};
    must(kvmem_cache_open(&options, &cache), "open");
  }
  ~Engine() { kvmem_cache_close(cache); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // How many were found; reads a byte of each page of each.
  std::size_t begin(const std::vector<kvmem_block_name>& names, std::uint64_t* lease) {
    std::vector<const void*> blocks(names.size());
    const kvmem_cache_request request{sizeof request, names.data(), names.size(), 0, 0, 0, 0, 0};
    std::size_t found = 0;
    must(kvmem_cache_begin(cache, &request, blocks.data(), &found, lease), "begin");
    unsigned char sum = 0;
    for (std::size_t i = 0; i < found; ++i) sum ^= *static_cast<const unsigned char*>(blocks[i]);
    touched = static_cast<unsigned char>(touched ^ sum);
    return found;
  }
  std::uint64_t restored() const {
    kvmem_cache_statistics stats{sizeof stats, 0, 0, 0, 0, 0, 0};
    must(kvmem_cache_stats(cache, &stats), "stats");
    return stats.restored;
  }

  kvmem_cache* cache = nullptr;
  std::size_t block_bytes;
  volatile unsigned char touched = 0;
};

std::vector<kvmem_block_name> path(std::uint64_t conversation, std::size_t length) {
  std::vector<kvmem_block_name> names(length);
  for (std::size_t i = 0; i < length; ++i) names[i] = {{conversation, i}};
  return names;
}

struct Times {
  std::vector<double> us;
  void print(const char* name) {
    std::sort(us.begin(), us.end());
    std::printf(", \"%s_p50_us\": %.2f, \"%s_p99_us\": %.2f", name, us[us.size() / 2], name,
                us[us.size() * 99 / 100]);
  }
};

template <class Work>
Times measure(unsigned rounds, Work work) {
  Times times;
  for (unsigned i = 0; i < rounds; ++i) {
    const Clock::time_point start = Clock::now();
    work(i);
    times.us.push_back(seconds_since(start) * 1e6);
  }
  return times;
}

// Prompts that DRAM no longer holds, each once; GB/s of what was read.
double restore(const std::vector<std::vector<kvmem_block_name>>& prompts, std::size_t threads,
               std::size_t block_bytes) {
  std::vector<std::thread> running;
  std::vector<std::uint64_t> read(threads);
  const Clock::time_point start = Clock::now();
  for (std::size_t t = 0; t < threads; ++t) {
    running.emplace_back([&, t] {
      Engine engine(block_bytes);
      for (std::size_t i = t; i < prompts.size(); i += threads) {
        std::uint64_t lease = 0;
        engine.begin(prompts[i], &lease);
        must(kvmem_cache_end(engine.cache, lease), "end");
      }
      read[t] = engine.restored();
    });
  }
  for (std::thread& thread : running) thread.join();
  const double seconds = seconds_since(start);
  std::uint64_t blocks = 0;
  for (const std::uint64_t n : read) blocks += n;
  return static_cast<double>(blocks * block_bytes) / seconds / 1e9;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::size_t blocks = std::strtoull(argv[1], nullptr, 10);
  const std::size_t block_bytes = std::strtoull(argv[2], nullptr, 10);
  constexpr std::size_t kPrompt = 32;
  Engine engine(block_bytes);
  std::vector<unsigned char> bytes(block_bytes, 7);

  std::vector<std::vector<kvmem_block_name>> prompts;
  for (std::size_t c = 0; c < blocks / kPrompt; ++c) prompts.push_back(path(c, kPrompt));
  const Clock::time_point start = Clock::now();
  for (const auto& names : prompts) {
    std::uint64_t lease = 0;
    engine.begin(names, &lease);
    for (const kvmem_block_name& name : names) {
      must(kvmem_cache_put(engine.cache, &name, bytes.data()), "put");
    }
  }
  std::printf(
      "{\"put_gb_per_s\": %.3f",
      static_cast<double>(prompts.size() * kPrompt * block_bytes) / seconds_since(start) / 1e9);

  // The last prompts are in DRAM.
  const auto last = prompts.back();
  Times times = measure(2000, [&](unsigned) {
    std::uint64_t lease = 0;
    if (engine.begin({last[0]}, &lease) != 1) std::exit(1);
    must(kvmem_cache_end(engine.cache, lease), "end");
  });
  times.print("attach");

  std::vector<kvmem_block_name> thousand;
  for (const auto& names : prompts) thousand.insert(thousand.end(), names.begin(), names.end());
  thousand.resize(std::min<std::size_t>(thousand.size(), 1000));
  times = measure(2000, [&](unsigned) {
    std::size_t found = 0;
    must(kvmem_cache_contains(engine.cache, thousand.data(), thousand.size(), &found), "contains");
    if (found != thousand.size()) std::exit(1);
  });
  times.print("contains_1000");

  // Oldest first: none of them is in DRAM, and each is driven out before it is asked again.
  std::vector<std::vector<kvmem_block_name>> cold(prompts.begin(),
                                                  prompts.begin() + prompts.size() / 2);
  for (const std::size_t threads : {1, 4}) {
    std::printf(", \"restore_%zu_gb_per_s\": %.3f", threads, restore(cold, threads, block_bytes));
  }
  times = measure(static_cast<unsigned>(std::min<std::size_t>(prompts.size() / 2, 200)),
                  [&](unsigned i) {
                    std::uint64_t lease = 0;
                    if (engine.begin({prompts[i][0]}, &lease) != 1) std::exit(1);
                    must(kvmem_cache_end(engine.cache, lease), "end");
                  });
  times.print("restore_one");
  std::puts("}");
  return 0;
}
