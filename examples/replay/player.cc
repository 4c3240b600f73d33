// An engine that cooperates, without a model: plays the requests of a trace against kvmemd's block
// cache. What a model would compute is made from the block's name, and every byte that the cache
// hands out is compared with it.
//
//   a request: begin (what is there is brought to DRAM), read and compare, compute and put the rest
//
// Prints one JSON object a line: progress once a second, then {"done": ...}. See replay.py.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "kvmem.h"
#include "tests/sim/trace.h"

namespace {

using Clock = std::chrono::steady_clock;
using kvmem::sim::Trace;
using kvmem::sim::TraceRequest;

struct Options {
  std::string trace;
  std::uint64_t generate = 1;
  std::uint64_t requests = 2000;
  std::uint64_t minutes = 0;  // of the trace; 0: all
  std::uint64_t block_bytes = 2 << 20;
  std::uint64_t threads = 4;
  std::uint64_t speed = 0;         // seconds of the trace in one of ours; 0: as fast as it goes
  std::uint64_t prefill = 10'000;  // tokens a second that the engine would compute
  std::uint64_t puts = 1;          // 0: only what is there is read
  std::uint64_t plan = 0;          // 1: stored blocks are computed where that is sooner
};

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "player: %s\n", what.c_str());
  std::exit(1);
}

Options parse(int argc, char** argv) {
  Options options;
  const std::pair<std::string_view, std::uint64_t*> numbers[] = {
      {"--generate", &options.generate},
      {"--requests", &options.requests},
      {"--minutes", &options.minutes},
      {"--block-bytes", &options.block_bytes},
      {"--threads", &options.threads},
      {"--speed", &options.speed},
      {"--prefill-tokens", &options.prefill},
      {"--puts", &options.puts},
      {"--plan", &options.plan}};
  for (int i = 1; i < argc; i += 2) {
    const std::string_view name = argv[i];
    if (i + 1 == argc) fail(std::string(name) + ": its value is missing");
    const std::string_view value = argv[i + 1];
    if (name == "--trace") {
      options.trace = value;
      continue;
    }
    const auto* const number = std::find_if(std::begin(numbers), std::end(numbers),
                                            [&](const auto& n) { return n.first == name; });
    if (number == std::end(numbers)) fail("unknown option " + std::string(name));
    const auto read = std::from_chars(value.data(), value.data() + value.size(), *number->second);
    if (read.ec != std::errc{} || read.ptr != value.data() + value.size()) {
      fail(std::string(name) + ": " + std::string(value) + " is not a number");
    }
  }
  if (options.threads == 0 || options.threads > 64) fail("--threads: 1 to 64");
  if (options.prefill == 0) fail("--prefill-tokens: at least 1");
  return options;
}

Trace load(const Options& options) {
  Trace trace;
  if (options.trace.empty()) {
    trace = kvmem::sim::generate_trace(options.generate, options.requests);
  } else {
    std::ifstream in(options.trace);
    std::string error = "cannot be read";
    if (!in || !kvmem::sim::read_trace(in, &trace, &error)) fail(options.trace + ": " + error);
  }
  if (options.minutes > 0) {
    std::erase_if(trace,
                  [&](const TraceRequest& r) { return r.time_ms >= options.minutes * 60'000; });
  }
  if (trace.empty()) fail("no request is in the trace");
  return trace;
}

// --- what a block holds ---

kvmem_block_name name_of(std::uint64_t key) { return {{key, key * 0x9E3779B97F4A7C15U + 1}}; }

// Word i of a block; cheap enough to make and to compare at the speed of memory.
std::uint64_t word_of(std::uint64_t key, std::uint64_t i) {
  std::uint64_t word = key * 0xD6E8FEB86659FD93U + i * 0x9E3779B97F4A7C15U;
  word ^= word >> 29;
  return word ^ (word << 17);
}

void fill(std::uint64_t* words, std::uint64_t count, std::uint64_t key) {
  for (std::uint64_t i = 0; i < count; ++i) words[i] = word_of(key, i);
}

bool is_right(const void* block, std::uint64_t count, std::uint64_t key) {
  const auto* words = static_cast<const std::uint64_t*>(block);
  std::uint64_t wrong = 0;
  for (std::uint64_t i = 0; i < count; ++i) wrong |= words[i] ^ word_of(key, i);
  return wrong == 0;
}

// --- the engine ---

class Player {
 public:
  explicit Player(const Options& asked_for) : options(asked_for), trace(load(asked_for)) {}
  const Options options;
  const Trace trace;
  const Clock::time_point start = Clock::now();
  // Requests begin in the trace's order, and none before another has put the blocks they share: the
  // next turn of a conversation does not begin before the answer to the last one.
  std::mutex order;
  std::mutex puts;
  std::condition_variable put_some;
  std::unordered_set<std::uint64_t> known, being_put;
  std::size_t next = 0;
  std::atomic<std::uint64_t> requests{0}, asked{0}, found{0}, restored{0}, put{0}, refused{0};
  std::atomic<std::uint64_t> mismatched{0}, trace_ms{0}, restore_ns{0}, computed{0};
  std::mutex results;
  std::vector<double> ttft_ms;           // with what was found
  std::vector<double> computed_ttft_ms;  // had all been computed

  void work() {
    kvmem_cache* cache = nullptr;
    kvmem_cache_options opened{
        sizeof opened, {0x6b766d656d, options.block_bytes}, options.block_bytes};
    if (const int error = kvmem_cache_open(&opened, &cache); error != 0) {
      fail(std::string("kvmem_cache_open: ") + kvmem_strerror(error));
    }
    const std::uint64_t words = options.block_bytes / 8;
    const std::unique_ptr<std::uint64_t[]> block(new std::uint64_t[words]);
    std::uint64_t restored_before = 0;
    for (;;) {
      std::unique_lock turn(order);
      if (next == trace.size()) break;
      const TraceRequest& request = trace[next++];
      if (options.speed > 0) {
        std::this_thread::sleep_until(start +
                                      std::chrono::milliseconds(request.time_ms / options.speed));
      }
      std::unique_lock lock(puts);
      put_some.wait(lock, [&] {
        return std::none_of(request.path.begin(), request.path.end(),
                            [&](std::uint64_t key) { return being_put.contains(key); });
      });
      std::vector<std::uint64_t> fresh;
      for (const std::uint64_t key : request.path) {
        if (known.insert(key).second) fresh.push_back(key);
      }
      being_put.insert(fresh.begin(), fresh.end());
      lock.unlock();
      serve(cache, request, &turn, block.get(), words, &restored_before);
      lock.lock();
      for (const std::uint64_t key : fresh) being_put.erase(key);
      put_some.notify_all();
    }
    kvmem_cache_close(cache);
  }

  void serve(kvmem_cache* cache, const TraceRequest& request, std::unique_lock<std::mutex>* turn,
             std::uint64_t* block, std::uint64_t words, std::uint64_t* restored_before) {
    const std::size_t count = request.path.size();
    std::vector<kvmem_block_name> names(count);
    for (std::size_t i = 0; i < count; ++i) names[i] = name_of(request.path[i]);
    std::vector<const void*> blocks(count);
    kvmem_cache_request begun{sizeof begun,         names.data(),          count,
                              request.time_ms + 1,  // 0 would be the daemon's clock
                              request.input_tokens, request.output_tokens, 1,     1};
    std::size_t here = 0;
    std::size_t compute_end = 0;
    std::uint64_t lease = 0;
    const Clock::time_point asked_at = Clock::now();
    int error = options.plan != 0
                    ? kvmem_cache_plan(cache, &begun, blocks.data(), &here, &compute_end, &lease)
                    : kvmem_cache_begin(cache, &begun, blocks.data(), &here, &lease);
    turn->unlock();
    if (error == 0 && options.plan != 0) {
      const auto left = static_cast<std::uint64_t>(
          std::count(blocks.data(), blocks.data() + std::min(here, compute_end), nullptr));
      compute(left);  // while the others are read
      (void)kvmem_cache_computed(cache, 0, left, compute_us(left));
      (void)kvmem_cache_computed(cache, here, count - here, compute_us(count - here));
      computed += left;
      error = kvmem_cache_wait(cache, lease, blocks.data(), &here);
    }
    const std::chrono::duration<double, std::milli> waited = Clock::now() - asked_at;
    if (error != 0 && error != -ENOTCONN) {
      fail(std::string("kvmem_cache_begin: ") + kvmem_strerror(error));
    }
    if (error != 0) here = 0;  // the daemon is away: all is computed
    std::size_t had = 0;
    for (std::size_t i = 0; i < here; ++i) {
      had += blocks[i] != nullptr;
      if (blocks[i] != nullptr && !is_right(blocks[i], words, request.path[i])) {
        std::fprintf(stderr, "player: block %llx has wrong bytes\n",
                     static_cast<unsigned long long>(request.path[i]));
        ++mismatched;
      }
    }
    (void)kvmem_cache_end(cache, lease);  // as if they were on the GPU now
    for (std::size_t i = here; i < count && options.puts != 0; ++i) {
      fill(block, words, request.path[i]);
      ++(kvmem_cache_put(cache, &names[i], block) == 0 ? put : refused);
    }
    kvmem_cache_statistics stats{sizeof stats, 0, 0, 0, 0, 0, 0};
    (void)kvmem_cache_stats(cache, &stats);
    const std::uint64_t read = stats.restored - std::exchange(*restored_before, stats.restored);
    if (read > 0) restore_ns += static_cast<std::uint64_t>(waited.count() * 1e6);
    ++requests;
    asked += count;
    found += had;
    restored += read;
    trace_ms = std::max<std::uint64_t>(trace_ms, request.time_ms);
    const double per_token_ms = 1e3 / static_cast<double>(options.prefill);
    const std::uint64_t cached =
        std::min<std::uint64_t>(here * kvmem::sim::kTokensPerBlock, request.input_tokens);
    const std::scoped_lock guard(results);
    ttft_ms.push_back(waited.count() +
                      static_cast<double>(request.input_tokens - cached) * per_token_ms);
    computed_ttft_ms.push_back(request.input_tokens * per_token_ms);
  }

  std::uint64_t compute_us(std::uint64_t blocks) const {
    return blocks * kvmem::sim::kTokensPerBlock * 1'000'000 / options.prefill;
  }
  void compute(std::uint64_t blocks) const {
    std::this_thread::sleep_for(std::chrono::microseconds(compute_us(blocks)));
  }

  void print_progress(const char* kind) {
    const std::chrono::duration<double> wall = Clock::now() - start;
    std::printf(
        "{\"%s\": true, \"wall_s\": %.3f, \"trace_s\": %.3f, \"requests\": %llu, \"of\": %zu, "
        "\"asked\": %llu, \"found\": %llu, \"restored\": %llu, \"put\": %llu, \"refused\": %llu, "
        "\"mismatched\": %llu, \"computed\": %llu, \"restore_wait_s\": %.3f, \"block_bytes\": %llu",
        kind, wall.count(), static_cast<double>(trace_ms.load()) / 1e3, count(requests),
        trace.size(), count(asked), count(found), count(restored), count(put), count(refused),
        count(mismatched), count(computed), static_cast<double>(restore_ns.load()) / 1e9,
        static_cast<unsigned long long>(options.block_bytes));
  }
  static unsigned long long count(const std::atomic<std::uint64_t>& n) { return n.load(); }

  static double quantile(std::vector<double>& values, double q) {
    if (values.empty()) return 0;
    const auto at = static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
    std::nth_element(values.begin(), values.begin() + at, values.end());
    return values[static_cast<std::size_t>(at)];
  }

  int run() {
    std::vector<std::thread> threads;
    for (std::uint64_t i = 0; i < options.threads; ++i) threads.emplace_back([this] { work(); });
    std::atomic<bool> over{false};
    std::thread reporter([&] {
      while (!over) {
        std::this_thread::sleep_for(std::chrono::seconds(1));
        if (over) break;
        print_progress("progress");
        std::puts("}");
        std::fflush(stdout);
      }
    });
    for (std::thread& thread : threads) thread.join();
    over = true;
    reporter.join();
    print_progress("done");
    std::printf(
        ", \"ttft_p50_ms\": %.3f, \"ttft_p99_ms\": %.3f, \"ttft_mean_ms\": %.3f, "
        "\"computed_ttft_p50_ms\": %.3f, \"computed_ttft_p99_ms\": %.3f}\n",
        quantile(ttft_ms, 0.5), quantile(ttft_ms, 0.99), mean(ttft_ms),
        quantile(computed_ttft_ms, 0.5), quantile(computed_ttft_ms, 0.99));
    return mismatched == 0 ? 0 : 1;
  }
  static double mean(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value;
    return values.empty() ? 0 : sum / static_cast<double>(values.size());
  }
};

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  return Player(options).run();
}
