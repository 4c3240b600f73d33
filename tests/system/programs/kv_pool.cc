// An engine that keeps its sequences in a KV pool by the C API, at random: opens, forks, cuts,
// parks and closes them, and checks every byte it has written beside a model that knows nothing of
// pages.
//
// usage: kv_pool host|device SEED SECONDS
//
// The pool may have less memory than its sequences: a GPU's are parked then, on the host an
// extension fails. Exits 0, and says "ok", if all was as it should be.
#include <cuda.h>
#include <dlfcn.h>
#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "kvmem.h"

namespace {

constexpr std::uint32_t kLayers = 3, kHeads = 2, kHeadDim = 6000, kElement = 4;
constexpr std::uint64_t kTokensMax = 64, kSequences = 10;
constexpr std::uint64_t kHeadBytes = std::uint64_t{kHeadDim} * kElement;

[[noreturn]] void fail(const char* what, int error = 0) {
  std::fprintf(stderr, "kv_pool: %s%s%s\n", what, error != 0 ? ": " : "",
               error != 0 ? kvmem_strerror(error) : "");
  std::exit(1);
}

// The driver's calls that an engine of this kind makes.
struct Driver {
  decltype(&cuInit) init;
  decltype(&cuDevicePrimaryCtxRetain) retain;
  decltype(&cuCtxSetCurrent) set_current;
  decltype(&cuMemcpyHtoD) write;
  decltype(&cuMemcpyDtoH) read;
} driver;

void load_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == nullptr) fail(dlerror());
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) fail(name);
  };
  find(driver.init, "cuInit");
  find(driver.retain, "cuDevicePrimaryCtxRetain");
  find(driver.set_current, "cuCtxSetCurrent");
  find(driver.write, "cuMemcpyHtoD_v2");
  find(driver.read, "cuMemcpyDtoH_v2");
  CUcontext context = nullptr;
  if (driver.init(0) != CUDA_SUCCESS || driver.retain(&context, 0) != CUDA_SUCCESS ||
      driver.set_current(context) != CUDA_SUCCESS) {
    fail("no device");
  }
}

class Engine {
 public:
  Engine(bool on_device, unsigned layout, unsigned seed) : on_device_(on_device), random_(seed) {
    kvmem_pool_options options{};
    options.size = sizeof options;
    options.layers = kLayers;
    options.kv_heads = kHeads;
    options.head_dim = kHeadDim;
    options.element_bytes = kElement;
    options.tokens_max = kTokensMax;
    options.sequences_max = kSequences;
    options.layout = layout;
    options.device = on_device ? 0 : KVMEM_ON_HOST;
    options.bytes_max = (!on_device ? 120ULL : layout == KVMEM_PACKED ? 60ULL : 80ULL) << 20;
    options.tag = "kv";
    int e = kvmem_pool_create(&options, &pool_);
    for (int i = 0; i < 1000 && e == -ENOTCONN; ++i) {  // the daemon is being restarted
      usleep(10'000);
      e = kvmem_pool_create(&options, &pool_);
    }
    if (e != 0) fail("create", e);
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      for (const int is_value : {0, 1}) {
        kvmem_view view{};
        view.size = sizeof view;
        if (kvmem_pool_view(pool_, layer, is_value, &view) != 0) fail("view");
        views_.push_back(view);
      }
    }
  }
  ~Engine() { kvmem_pool_destroy(pool_); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  void act() {
    const unsigned what = random_() % 20;
    if (model_.empty() || what < 2) return open();
    auto it = model_.begin();
    std::advance(it, random_() % model_.size());
    const std::uint32_t sequence = it->first;
    if (what < 9) return step();
    if (what < 12) return extend(sequence);
    if (what < 14) return fork(sequence);
    if (what < 15) return truncate(sequence);
    if (what < 16) return must(kvmem_seq_park(pool_, sequence), "park");
    if (what < 17) return must(kvmem_seq_prefetch(pool_, sequence), "prefetch");
    if (what < 19) return static_cast<void>(check(sequence));
    must(kvmem_seq_close(pool_, sequence), "close");
    model_.erase(sequence);
  }
  void check_all() {
    while (!model_.empty()) {
      const std::uint32_t sequence = model_.begin()->first;
      if (!check(sequence)) fail("no room for one sequence");
      must(kvmem_seq_close(pool_, sequence), "close");
      model_.erase(sequence);
    }
  }
  kvmem_pool_statistics stats() const {
    kvmem_pool_statistics stats{};
    stats.size = sizeof stats;
    if (kvmem_pool_stats(pool_, &stats) != 0) fail("stats");
    return stats;
  }
  std::uint64_t checked() const { return checked_; }
  kvmem_pool* pool() const { return pool_; }

 private:
  using Tokens = std::vector<std::uint32_t>;  // what each is filled with

  static void must(int error, const char* what) {
    if (error != 0) fail(what, error);
  }
  // False: there was no memory, and nothing has changed.
  static bool had_memory(int error, const char* what) {
    if (error != 0 && error != -ENOMEM) fail(what, error);
    return error == 0;
  }
  void open() {
    std::uint32_t sequence = 0;
    const int error = kvmem_seq_open(pool_, &sequence);
    if (error != (model_.size() == kSequences ? -ENOSPC : 0)) fail("open", error);
    if (error == 0) model_[sequence] = {};
  }
  void step() {
    std::vector<std::uint32_t> named;
    for (const auto& [sequence, tokens] : model_) {
      if (tokens.size() < kTokensMax && named.size() < 3 && random_() % 2 == 0) {
        named.push_back(sequence);
      }
    }
    if (!had_memory(kvmem_pool_step(pool_, named.data(), nullptr, named.size()), "step")) return;
    for (const std::uint32_t sequence : named) append(sequence, 1);
  }
  void extend(std::uint32_t sequence) {
    const std::size_t before = model_[sequence].size();
    const std::size_t tokens = std::min<std::size_t>(kTokensMax, before + random_() % 20);
    if (had_memory(kvmem_seq_extend(pool_, sequence, tokens), "extend")) {
      append(sequence, tokens - before);
    }
  }
  void fork(std::uint32_t parent) {
    const Tokens& tokens = model_[parent];
    const std::size_t kept = random_() % (tokens.size() + 1);
    std::uint32_t child = 0;
    const int error = kvmem_seq_fork(pool_, parent, kept, nullptr, &child);
    if (error == -ENOSPC && model_.size() == kSequences) return;
    if (!had_memory(error, "fork")) return;
    model_[child] = Tokens(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(kept));
  }
  void truncate(std::uint32_t sequence) {
    Tokens& tokens = model_[sequence];
    const std::size_t kept = random_() % (tokens.size() + 1);
    if (had_memory(kvmem_seq_truncate(pool_, sequence, kept), "truncate")) tokens.resize(kept);
  }
  // False: there was no memory.
  bool check(std::uint32_t sequence) {
    const Tokens& tokens = model_[sequence];
    const std::uint64_t length = tokens.size();
    if (!had_memory(kvmem_pool_step(pool_, &sequence, &length, 1), "step")) return false;
    for (std::size_t t = 0; t < length; ++t) {
      for_heads(sequence, t, tokens[t], [&](std::uint64_t at, const std::uint32_t* wanted) {
        bytes_.resize(kHeadBytes);
        if (on_device_) {
          if (driver.read(bytes_.data(), at, kHeadBytes) != CUDA_SUCCESS) fail("a read");
        } else {
          std::memcpy(bytes_.data(), reinterpret_cast<const void*>(at), kHeadBytes);
        }
        if (std::memcmp(bytes_.data(), wanted, kHeadBytes) != 0) fail("a wrong byte");
        checked_ += kHeadBytes;
      });
    }
    return true;
  }
  void append(std::uint32_t sequence, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t value = ++last_;
      for_heads(sequence, model_[sequence].size(), value,
                [&](std::uint64_t at, const std::uint32_t* bytes) {
                  if (!on_device_) {
                    std::memcpy(reinterpret_cast<void*>(at), bytes, kHeadBytes);
                  } else if (driver.write(at, bytes, kHeadBytes) != CUDA_SUCCESS) {
                    fail("a write");
                  }
                });
      model_[sequence].push_back(value);
    }
  }
  template <class Each>
  void for_heads(std::uint32_t sequence, std::size_t token, std::uint32_t value, Each each) {
    pattern_.resize(kHeadDim);
    for (std::size_t plane = 0; plane < views_.size(); ++plane) {
      const kvmem_view& view = views_[plane];
      for (std::uint32_t head = 0; head < kHeads; ++head) {
        for (std::uint32_t i = 0; i < kHeadDim; ++i) {
          pattern_[i] = value * 2654435761U + static_cast<std::uint32_t>(plane * kHeads + head) + i;
        }
        each(view.address + sequence * view.sequence_stride + token * view.token_stride +
                 head * view.head_stride,
             pattern_.data());
      }
    }
  }

  const bool on_device_;
  std::mt19937 random_;
  kvmem_pool* pool_ = nullptr;
  std::vector<kvmem_view> views_;
  std::map<std::uint32_t, Tokens> model_;
  std::vector<std::uint32_t> pattern_;
  std::vector<unsigned char> bytes_;
  std::uint32_t last_ = 0;
  std::uint64_t checked_ = 0;
};

// A child of fork() has no pool, and its parent's is as it was.
void fork_process(const Engine& engine) {
  const pid_t child = fork();
  if (child == 0) {
    std::uint32_t sequence = 0;
    const bool has_none = kvmem_seq_open(engine.pool(), &sequence) == -EINVAL &&
                          kvmem_pool_step(engine.pool(), &sequence, nullptr, 1) == -EINVAL &&
                          kvmem_pool_fits(engine.pool(), 1, 1) == -EINVAL;
    kvmem_pool_destroy(engine.pool());
    _exit(has_none ? 0 : 1);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) fail("a child");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) fail("usage: kv_pool host|device SEED SECONDS");
  const bool on_device = std::strcmp(argv[1], "device") == 0;
  const auto seed = static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10));
  const double seconds = std::strtod(argv[3], nullptr);
  if (on_device) load_driver();
  std::uint64_t actions = 0;
  std::uint64_t checked = 0;
  std::uint64_t resumed = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (unsigned round = 0; std::chrono::steady_clock::now() < end; ++round) {
    Engine engine(on_device, round % 2 == 0 ? KVMEM_PACKED : KVMEM_PER_LAYER, seed + round);
    for (int i = 0; i < 400 && std::chrono::steady_clock::now() < end; ++i, ++actions) engine.act();
    if (!on_device) fork_process(engine);
    engine.check_all();
    checked += engine.checked();
    const kvmem_pool_statistics stats = engine.stats();
    resumed += stats.resumed_pages;
    if (stats.open != 0 || stats.parked != 0) fail("sequences are left");
    std::printf("seed %u: %llu grown, %llu late, %llu parked, %llu resumed, %llu reclaimed\n",
                seed + round, static_cast<unsigned long long>(stats.grown_pages),
                static_cast<unsigned long long>(stats.late_pages),
                static_cast<unsigned long long>(stats.parked_pages),
                static_cast<unsigned long long>(stats.resumed_pages),
                static_cast<unsigned long long>(stats.reclaimed_pages));
  }
  if (checked == 0) fail("nothing was checked");
  if (on_device && resumed == 0) fail("nothing was parked");
  std::printf("ok %llu actions, %llu MiB checked\n", static_cast<unsigned long long>(actions),
              static_cast<unsigned long long>(checked >> 20));
  return 0;
}
