// An unmodified program that uses a buffer in a known way and counts what it does: the truth that
// heat.py measures estimates of heat against.
//
//   zipf     pages by popularity, rank^-skew, the ranks at random places
//   phase    nine of ten visits to a tenth of the pages; half way another tenth
//   cyclic   every second run of 16 pages, in address order, over and over; the others never
//   scanhot  every second visit to a tenth of the pages, the others a scan over all
//   sparse   the hottest tenth is read at one line a page only, the next 15 % all over
//   chase    links through lines, some pages with 256 times as many as others
//   decode   16 layers in order once a token: weights, then a KV cache that grows; of a tenth of
//   the
//            pages, the embedding, one page a token
//   moe      16 layers: a shared quarter, then 2 of 8 experts, some chosen more often than others
//
// A visit reads --lines lines of 64 bytes; an access is one of those reads. They are counted per
// 2 MiB of the buffer and per slice of time, outside the buffer. Visits go on at --rate a second:
// what was missed while the program stood still for longer than 50 ms is not caught up. Every read
// is compared with what was written (status 3), but those of links.
//
// Prints "ready ADDRESS PAGES" when the buffer is filled. Writes --out, one JSON object, at the end
// and on SIGUSR1: times are CLOCK_MONOTONIC, counts are accesses.
//
// usage: bench_heat PATTERN --out FILE [--mib 1024] [--seconds 20 | --visits N] [--rate 8192; 0: no
//        limit] [--lines 64] [--slice-ms 100] [--seed 1] [--skew 1] [--trace FILE] [--bare]
//
// --trace: every visit to a page, in order, as a 64-bit number: nanoseconds since the first in the
// upper 40 bits, the page below.
// --bare: nothing is written beforehand and no huge page is asked for, so that the kernel, which is
// asked at the end how many of its pages each 2 MiB has, tells what was touched.

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "heat/random.h"

namespace {

constexpr std::size_t kPage = 2 << 20;
constexpr std::uint32_t kLineBytes = 64;
constexpr std::uint32_t kLines = kPage / kLineBytes;  // of a page
// Below what libkvmem makes a region of.
constexpr std::size_t kCountBytesMax = 24 << 20;
// Visits are not done in bunches, in which everything would be touched at once.
constexpr std::uint64_t kSlackNs = 100'000;
constexpr std::uint64_t kBehindNs = 50'000'000;  // caught up at most
constexpr std::uint32_t kLayers = 16;

volatile std::sig_atomic_t asked = 0;

std::uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000U +
         static_cast<std::uint64_t>(t.tv_nsec);
}

using kvmem::heat::Random;

std::vector<std::uint32_t> permutation(std::uint32_t count, Random& random) {
  std::vector<std::uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0U);
  for (std::uint32_t i = count; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

// Draws ranks [0, count) in proportion to (rank + 1)^-skew.
class Zipf {
 public:
  Zipf(std::uint32_t count, double skew) : sums_(count) {
    double sum = 0;
    for (std::uint32_t i = 0; i < count; ++i) sums_[i] = sum += std::pow(i + 1.0, -skew);
  }
  std::uint32_t draw(Random& random) const {
    const double at = random.unit() * sums_.back();
    const auto found = std::upper_bound(sums_.begin(), sums_.end() - 1, at);
    return static_cast<std::uint32_t>(found - sums_.begin());
  }

 private:
  std::vector<double> sums_;
};

struct Options {
  std::string pattern;
  std::string out;
  std::string trace;
  std::size_t mib = 1024;
  double seconds = 20;
  std::uint64_t visits = 0;
  double rate = 8192;
  std::uint32_t lines = 64;
  std::uint64_t slice_ns = 100'000'000;
  std::uint64_t seed = 1;
  double skew = 1;
  bool bare = false;
};

// The buffer, and the counts of what is done to it.
class Buffer {
 public:
  explicit Buffer(const Options& options)
      : pages_(static_cast<std::uint32_t>((options.mib << 20) / kPage)), bare_(options.bare) {
    void* at =
        mmap(nullptr, pages_ * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
      std::perror("bench_heat: mmap");
      std::exit(1);
    }
    bytes_ = static_cast<unsigned char*>(at);
    madvise(bytes_, pages_ * kPage, bare_ ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
    for (std::uint32_t page = 0; !bare_ && page < pages_; ++page) {
      std::memset(bytes_ + page * kPage, mark(page), kPage);
    }
    const std::size_t slices_max = kCountBytesMax / sizeof(std::uint32_t) / pages_;
    const auto wanted =
        static_cast<std::size_t>(options.seconds * 1e9 / static_cast<double>(options.slice_ns)) + 2;
    slices_max_ = std::min(slices_max, wanted);
    counts_.resize(slices_max_ * pages_);
    if (options.trace.empty()) return;
    trace_ = std::fopen(options.trace.c_str(), "w");
    if (trace_ == nullptr) {
      std::perror("bench_heat: --trace");
      std::exit(1);
    }
  }
  ~Buffer() {
    if (trace_ != nullptr) std::fclose(trace_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::uint32_t pages() const { return pages_; }
  const unsigned char* bytes() const { return bytes_; }

  // `count` reads of a line and those every `stride` lines after it, around the page's end.
  void read(std::uint32_t page, std::uint32_t line, std::uint32_t count, std::uint32_t stride) {
    const unsigned char* base = bytes_ + page * kPage;
    const unsigned char is = bare_ ? 0 : mark(page);
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto* at = base + (line + i * stride) % kLines * kLineBytes;
      wrong_ |= *const_cast<const volatile unsigned char*>(at) ^ is;
    }
    note(page, count);
  }
  void write(std::uint32_t page, std::uint32_t line) {
    *const_cast<volatile unsigned char*>(bytes_ + page * kPage + line * kLineBytes) =
        bare_ ? 0 : mark(page);
    counts_[slice_ * pages_ + page] += 1;  // no visit: that comes when the token's pages are read
  }
  // Lines of the whole buffer, by number; a line holds the number of another.
  void link(std::uint32_t from, std::uint32_t to) {
    std::memcpy(bytes_ + std::size_t{from} * kLineBytes, &to, sizeof to);
  }
  std::uint32_t follow(std::uint32_t line) {
    note(line / kLines, 1);
    return *reinterpret_cast<volatile std::uint32_t*>(bytes_ + std::size_t{line} * kLineBytes);
  }

  // What is done from now on is done so long after the start. The last slice takes all that comes
  // later.
  void at(std::uint64_t since_ns, std::uint64_t slice_ns) {
    since_ns_ = since_ns;
    slice_ = std::min(static_cast<std::size_t>(since_ns / slice_ns), slices_max_ - 1);
    used_ = std::max(used_, slice_ + 1);
  }
  std::size_t slices() const { return used_; }
  std::uint32_t count(std::size_t slice, std::uint32_t page) const {
    return counts_[slice * pages_ + page];
  }
  bool wrong() const { return wrong_ != 0; }

 private:
  static unsigned char mark(std::uint32_t page) {
    return static_cast<unsigned char>(page % 255 + 1);
  }
  void note(std::uint32_t page, std::uint32_t count) {
    counts_[slice_ * pages_ + page] += count;
    if (trace_ == nullptr) return;
    const std::uint64_t record = since_ns_ << 24 | page;
    std::fwrite(&record, sizeof record, 1, trace_);
  }

  std::uint32_t pages_;
  bool bare_;
  unsigned char* bytes_ = nullptr;
  std::vector<std::uint32_t> counts_;  // by slice, then page
  std::size_t slices_max_ = 1;
  std::size_t slice_ = 0;
  std::size_t used_ = 1;
  std::uint64_t since_ns_ = 0;
  std::FILE* trace_ = nullptr;
  unsigned wrong_ = 0;
};

class Pattern {
 public:
  Pattern(Buffer& buffer, const Options& options)
      : buffer_(buffer),
        lines_(options.lines),
        random_(options.seed),
        pages_(buffer.pages()),
        places_(permutation(pages_, random_)) {}
  virtual ~Pattern() = default;
  virtual void visit() = 0;
  virtual void change() {}  // half of the run is over
  // Pages that are meant to be hot, where they are a set; by phase.
  virtual std::vector<std::vector<std::uint32_t>> hot_sets() const { return {}; }

 protected:
  // All over the page.
  void read(std::uint32_t page) {
    const std::uint32_t stride = std::max(kLines / lines_, 1U);
    buffer_.read(page, random_.below(stride), lines_, stride);
  }
  std::vector<std::uint32_t> places(std::uint32_t first, std::uint32_t end) const {
    return {places_.begin() + first, places_.begin() + end};
  }

  Buffer& buffer_;
  std::uint32_t lines_;
  Random random_;
  std::uint32_t pages_;
  std::vector<std::uint32_t> places_;  // pages in an order that has nothing to do with addresses
};

class ZipfPattern : public Pattern {
 public:
  ZipfPattern(Buffer& buffer, const Options& options)
      : Pattern(buffer, options), zipf_(pages_, options.skew) {}
  void visit() override { read(places_[zipf_.draw(random_)]); }
  std::vector<std::vector<std::uint32_t>> hot_sets() const override {
    return {places(0, pages_ / 10)};
  }

 private:
  Zipf zipf_;
};

class PhasePattern : public Pattern {
 public:
  using Pattern::Pattern;
  void visit() override {
    const bool hot = random_.unit() < 0.9;
    read(hot ? places_[first_ + random_.below(pages_ / 10)] : random_.below(pages_));
  }
  void change() override { first_ = pages_ / 10; }
  std::vector<std::vector<std::uint32_t>> hot_sets() const override {
    return {places(0, pages_ / 10), places(pages_ / 10, pages_ / 10 * 2)};
  }

 private:
  std::uint32_t first_ = 0;
};

class CyclicPattern : public Pattern {
 public:
  using Pattern::Pattern;
  void visit() override {
    read(at_);
    at_ = (at_ + 1) % pages_;
    if (at_ % 32 == 16) at_ = (at_ + 16) % pages_;
  }

 private:
  std::uint32_t at_ = 0;
};

class ScanHotPattern : public Pattern {
 public:
  using Pattern::Pattern;
  void visit() override {
    scans_ = !scans_;
    if (!scans_) return read(places_[random_.below(pages_ / 10)]);
    read(at_);
    at_ = (at_ + 1) % pages_;
  }
  std::vector<std::vector<std::uint32_t>> hot_sets() const override {
    return {places(0, pages_ / 10)};
  }

 private:
  bool scans_ = false;
  std::uint32_t at_ = 0;
};

class SparsePattern : public Pattern {
 public:
  using Pattern::Pattern;
  void visit() override {
    const double kind = random_.unit();
    const std::uint32_t sparse = pages_ / 10;
    const std::uint32_t dense = pages_ / 4;
    if (kind < 0.5) {
      const std::uint32_t page = places_[random_.below(sparse)];
      buffer_.read(page, page * 2654435761U % kLines, lines_, 0);
    } else if (kind < 0.9) {
      read(places_[sparse + random_.below(dense - sparse)]);
    } else {
      read(places_[dense + random_.below(pages_ - dense)]);
    }
  }
  std::vector<std::vector<std::uint32_t>> hot_sets() const override {
    return {places(0, pages_ / 10)};
  }
};

class ChasePattern : public Pattern {
 public:
  ChasePattern(Buffer& buffer, const Options& options) : Pattern(buffer, options) {
    std::vector<std::uint32_t> nodes;
    for (std::uint32_t i = 0; i < pages_; ++i) {
      const std::uint32_t in_page = i < pages_ / 10 ? 4096 : i < pages_ * 3 / 10 ? 512 : 16;
      for (std::uint32_t k = 0; k < in_page; ++k) {
        nodes.push_back(places_[i] * kLines + k * (kLines / in_page));
      }
    }
    // One cycle through all of them.
    const std::vector<std::uint32_t> order =
        permutation(static_cast<std::uint32_t>(nodes.size()), random_);
    for (std::size_t i = 0; i < order.size(); ++i) {
      buffer_.link(nodes[order[i]], nodes[order[(i + 1) % order.size()]]);
    }
    at_ = nodes[order[0]];
  }
  void visit() override {
    for (std::uint32_t i = 0; i < lines_; ++i) at_ = buffer_.follow(at_);
  }
  std::vector<std::vector<std::uint32_t>> hot_sets() const override {
    return {places(0, pages_ / 10)};
  }

 private:
  std::uint32_t at_ = 0;
};

// Those that make a list of pages for each token.
class TokenPattern : public Pattern {
 public:
  using Pattern::Pattern;
  void visit() override {
    if (at_ == list_.size()) {
      list_.clear();
      at_ = 0;
      token();
    }
    read(list_[at_++]);
  }

 protected:
  virtual void token() = 0;
  void list(std::uint32_t first, std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; ++i) list_.push_back(first + i);
  }

 private:
  std::vector<std::uint32_t> list_;
  std::size_t at_ = 0;
};

// Laid out as llama.cpp does: embedding, the layers' weights, the layers' KV cache. Smaller buffers
// have fewer pages of each; a layer has at least one.
class DecodePattern : public TokenPattern {
 public:
  DecodePattern(Buffer& buffer, const Options& options)
      : TokenPattern(buffer, options), embedding_(pages_ / 10) {
    const std::uint32_t left = pages_ - embedding_;
    kv_ = std::max(left / 8 / kLayers, 1U);
    weights_ = (left - kv_ * kLayers) / kLayers;
  }

 protected:
  void token() override {
    constexpr std::uint32_t kTokensAPage = 96;
    list(random_.below(embedding_), 1);
    const std::uint32_t tail = tokens_ % (kv_ * kTokensAPage);  // when full, from the start again
    const std::uint32_t used = std::min(kv_, tokens_ / kTokensAPage + 1);
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      list(embedding_ + layer * weights_, weights_);
      const std::uint32_t slab = embedding_ + kLayers * weights_ + layer * kv_;
      buffer_.write(slab + tail / kTokensAPage, tail % kTokensAPage * (kLines / kTokensAPage));
      list(slab, used);
    }
    ++tokens_;
  }

 private:
  std::uint32_t embedding_, weights_ = 0, kv_ = 0;  // pages; the latter two of a layer
  std::uint32_t tokens_ = 0;
};

class MoePattern : public TokenPattern {
 public:
  MoePattern(Buffer& buffer, const Options& options)
      : TokenPattern(buffer, options),
        choice_(kExperts, options.skew),
        layer_(pages_ / kLayers),
        expert_(layer_ * 3 / 4 / kExperts),
        shared_(layer_ - expert_ * kExperts) {
    for (std::uint32_t i = 0; i < kLayers; ++i) ranks_.push_back(permutation(kExperts, random_));
  }

 protected:
  void token() override {
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      const std::uint32_t first = layer * layer_;
      list(first, shared_);
      const std::uint32_t one = choice_.draw(random_);
      std::uint32_t other = one;
      while (other == one) other = choice_.draw(random_);
      for (const std::uint32_t rank : {one, other}) {
        list(first + shared_ + ranks_[layer][rank] * expert_, expert_);
      }
    }
  }

 private:
  static constexpr std::uint32_t kExperts = 8;
  Zipf choice_;
  std::uint32_t layer_, expert_, shared_;  // pages
  std::vector<std::vector<std::uint32_t>> ranks_;
};

using PatternMaker = std::unique_ptr<Pattern> (*)(Buffer&, const Options&);

template <class Kind>
std::unique_ptr<Pattern> make(Buffer& buffer, const Options& options) {
  return std::make_unique<Kind>(buffer, options);
}

// Nothing for other names.
PatternMaker pattern_maker(const std::string& name) {
  if (name == "zipf") return make<ZipfPattern>;
  if (name == "phase") return make<PhasePattern>;
  if (name == "cyclic") return make<CyclicPattern>;
  if (name == "scanhot") return make<ScanHotPattern>;
  if (name == "sparse") return make<SparsePattern>;
  if (name == "chase") return make<ChasePattern>;
  if (name == "decode") return make<DecodePattern>;
  if (name == "moe") return make<MoePattern>;
  return nullptr;
}

struct Run {
  std::uint64_t start_ns = 0;
  std::uint64_t changed_ns = 0;  // 0: not yet
  std::uint64_t visits = 0;
  std::uint64_t busy_ns = 0;  // in visits, not between them
  std::uint64_t longest_ns = 0;
};

void print_list(std::FILE* out, const std::vector<std::uint32_t>& values) {
  std::fputc('[', out);
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::fprintf(out, i == 0 ? "%u" : ",%u", values[i]);
  }
  std::fputc(']', out);
}

// Pages of the kernel's in each page.
std::vector<std::uint32_t> resident(const Buffer& buffer) {
  const auto os_page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> in(buffer.pages() * kPage / os_page);
  std::vector<std::uint32_t> counts(buffer.pages());
  if (mincore(const_cast<unsigned char*>(buffer.bytes()), buffer.pages() * kPage, in.data()) != 0) {
    return counts;
  }
  for (std::size_t i = 0; i < in.size(); ++i) counts[i * os_page / kPage] += in[i] & 1U;
  return counts;
}

void save(const Options& options, const Buffer& buffer, const Pattern& pattern, const Run& run) {
  const std::string part = options.out + ".part";
  std::FILE* out = std::fopen(part.c_str(), "w");
  if (out == nullptr) {
    std::perror("bench_heat: --out");
    std::exit(1);
  }
  std::fprintf(out,
               "{\"pattern\":\"%s\",\"seed\":%llu,\"address\":%llu,\"page_bytes\":%zu,\"pages\":%u,"
               "\"lines_per_visit\":%u,\"start_ns\":%llu,\"slice_ns\":%llu,\"changed_ns\":%llu,"
               "\"visits\":%llu,\"busy_ns\":%llu,\"longest_visit_ns\":%llu,\"hot_sets\":[",
               options.pattern.c_str(), static_cast<unsigned long long>(options.seed),
               static_cast<unsigned long long>(reinterpret_cast<std::uintptr_t>(buffer.bytes())),
               kPage, buffer.pages(), options.lines, static_cast<unsigned long long>(run.start_ns),
               static_cast<unsigned long long>(options.slice_ns),
               static_cast<unsigned long long>(run.changed_ns),
               static_cast<unsigned long long>(run.visits),
               static_cast<unsigned long long>(run.busy_ns),
               static_cast<unsigned long long>(run.longest_ns));
  const char* comma = "";
  for (const auto& set : pattern.hot_sets()) {
    std::fputs(comma, out);
    print_list(out, set);
    comma = ",";
  }
  std::fputs("]", out);
  if (options.bare) {
    std::fputs(",\"os_pages\":", out);
    print_list(out, resident(buffer));
  }
  std::fputs(",\"slices\":[", out);
  for (std::size_t slice = 0; slice < buffer.slices(); ++slice) {
    std::vector<std::uint32_t> counts(buffer.pages());
    for (std::uint32_t page = 0; page < counts.size(); ++page) {
      counts[page] = buffer.count(slice, page);
    }
    std::fputs(slice == 0 ? "\n" : ",\n", out);
    print_list(out, counts);
  }
  std::fputs("]}\n", out);
  if (std::fclose(out) != 0 || std::rename(part.c_str(), options.out.c_str()) != 0) {
    std::perror("bench_heat: --out");
    std::exit(1);
  }
}

Run exercise(const Options& options, Buffer& buffer, Pattern& pattern) {
  Run run;
  const double interval_ns = options.rate > 0 ? 1e9 / options.rate : 0;
  const auto length_ns = static_cast<std::uint64_t>(options.seconds * 1e9);
  std::uint64_t now = run.start_ns = now_ns();
  auto due_ns = static_cast<double>(now);
  for (;;) {
    const std::uint64_t since = now - run.start_ns;
    const bool over = options.visits != 0 ? run.visits >= options.visits : since >= length_ns;
    if (over) return run;
    const bool half =
        options.visits != 0 ? 2 * run.visits >= options.visits : 2 * since >= length_ns;
    if (half && run.changed_ns == 0) {
      run.changed_ns = now;
      pattern.change();
    }
    if (asked != 0) {
      asked = 0;
      save(options, buffer, pattern, run);
      now = now_ns();
    }
    buffer.at(now - run.start_ns, options.slice_ns);
    pattern.visit();
    ++run.visits;
    const std::uint64_t end = now_ns();
    run.busy_ns += end - now;
    run.longest_ns = std::max(run.longest_ns, end - now);
    now = end;
    if (interval_ns == 0) continue;
    due_ns += interval_ns;
    due_ns = std::max(due_ns, static_cast<double>(now) - kBehindNs);
    if (due_ns > static_cast<double>(now + kSlackNs)) {
      const auto pause = static_cast<std::uint64_t>(due_ns) - now;
      const timespec wait = {static_cast<time_t>(pause / 1'000'000'000),
                             static_cast<long>(pause % 1'000'000'000)};
      nanosleep(&wait, nullptr);
      now = now_ns();
    }
  }
}

bool parse(int argc, char** argv, Options* options) {
  if (argc < 2) return false;
  options->pattern = argv[1];
  for (int i = 2; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--bare") {
      options->bare = true;
      continue;
    }
    if (++i == argc) return false;
    char* end = nullptr;
    const double number = std::strtod(argv[i], &end);
    if (name == "--out" || name == "--trace") {
      (name == "--out" ? options->out : options->trace) = argv[i];
      continue;
    }
    if (*end != 0 || end == argv[i] || !(number >= 0 && number < 1e15)) return false;
    const auto whole = static_cast<std::uint64_t>(number);
    if (name == "--mib") {
      options->mib = whole;
    } else if (name == "--seconds") {
      options->seconds = number;
    } else if (name == "--visits") {
      options->visits = whole;
    } else if (name == "--rate") {
      options->rate = number;
    } else if (name == "--lines") {
      options->lines = static_cast<std::uint32_t>(std::min<std::uint64_t>(whole, kLines));
    } else if (name == "--slice-ms") {
      options->slice_ns = whole * 1'000'000;
    } else if (name == "--seed") {
      options->seed = whole;
    } else if (name == "--skew") {
      options->skew = number;
    } else {
      return false;
    }
  }
  // Patterns divide the pages into tenths and into 16 layers of 8 experts and more; lines are
  // numbered in 32 bits.
  return options->mib >= 512 && options->mib <= 64 << 10 && options->lines > 0 &&
         options->slice_ns > 0 && !options->out.empty();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  const PatternMaker make_pattern =
      parse(argc, argv, &options) ? pattern_maker(options.pattern) : nullptr;
  if (make_pattern == nullptr) {
    std::fputs("usage: bench_heat PATTERN --out FILE [OPTION...]; see its first lines\n", stderr);
    return 2;
  }
  struct sigaction action = {};
  action.sa_handler = [](int) { asked = 1; };
  sigaction(SIGUSR1, &action, nullptr);
  Buffer buffer(options);
  const std::unique_ptr<Pattern> pattern = make_pattern(buffer, options);
  std::printf("ready %p %u\n", static_cast<const void*>(buffer.bytes()), buffer.pages());
  std::fflush(stdout);
  const Run run = exercise(options, buffer, *pattern);
  save(options, buffer, *pattern, run);
  if (buffer.wrong()) std::fputs("bench_heat: a line does not hold what was written\n", stderr);
  return buffer.wrong() ? 3 : 0;
}
