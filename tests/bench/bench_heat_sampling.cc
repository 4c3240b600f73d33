// What heat::Frequency makes of a trace of bench_heat's, by how much of it is seen. Prints one JSON
// object for each way of looking:
//
//   random        pages are unmapped at random, RATE times a page and second on average; a page
//   stays
//                 unmapped until it is touched, which is a fault, so that is also the most faults
//   least seen    likewise, of two drawn at random the one of which fewer accesses were seen
//   bits          every page's accessed bit, read and cleared RATE times a second
// and for comparison on the samples of `random`:
//   last fault    the page touched last is the hottest
//   mean wait     the page that was touched soonest after it was unmapped, on an average that
//   forgets
//
// A unit of truth is a visit. The estimate is looked at every second of the second half; what is
// judged is the share of the visits of the next 4 s that its hottest tenth, and quarter, get, of
// the most that so many pages could get. `noticed`: seconds from the middle of the trace, when
// `phase` changes, until the former is 0.9 for a second.
//
// usage: bench_heat_sampling TRACE PAGES

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "heat/frequency.h"

namespace {

using kvmem::heat::Frequency;
using kvmem::heat::PageId;

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr std::uint64_t kTick = kSecond / 100;
// What has stayed unmapped so long is noted as untouched, and stays so.
constexpr std::uint64_t kProbation = kSecond / 5;
constexpr std::uint64_t kWindow = 4 * kSecond;
constexpr std::uint64_t kClosed = UINT64_MAX;

struct Visit {
  std::uint64_t ns;
  std::uint32_t page;
};

enum class Way { kRandom, kLeastSeen, kBits, kLastFault, kMeanWait };
constexpr const char* kNames[] = {"random", "least seen", "bits", "last fault", "mean wait"};

struct Config {
  Way way;
  double rate;  // a page and second
  double half_life_s;
};

std::vector<Visit> load(const char* path, std::uint32_t pages) {
  std::FILE* file = std::fopen(path, "r");
  if (file == nullptr) {
    std::perror(path);
    std::exit(1);
  }
  std::vector<Visit> trace;
  std::uint64_t record = 0;
  while (std::fread(&record, sizeof record, 1, file) == 1) {
    const auto page = static_cast<std::uint32_t>(record & 0xffffff);
    if (page < pages) trace.push_back({record >> 24, page});
  }
  std::fclose(file);
  return trace;
}

// The share of `truth` that the `count` best by `score` get, equals by lot.
double share(const std::vector<double>& score, const std::vector<double>& truth,
             std::size_t count) {
  std::vector<double> sorted = score;
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(count - 1),
                   sorted.end(), std::greater<>());
  const double edge = sorted[count - 1];
  double above = 0, above_pages = 0, equal = 0, equal_pages = 0;
  for (std::size_t i = 0; i < score.size(); ++i) {
    if (score[i] > edge) {
      above += truth[i];
      ++above_pages;
    } else if (score[i] == edge) {
      equal += truth[i];
      ++equal_pages;
    }
  }
  return above + equal * (static_cast<double>(count) - above_pages) / equal_pages;
}

class Replay {
 public:
  Replay(const std::vector<Visit>& trace, std::uint32_t pages, const Config& config)
      : trace_(trace),
        pages_(pages),
        config_(config),
        frequency_(static_cast<std::uint64_t>(config.half_life_s * 1e9)),
        unmapped_(pages, kClosed),
        noted_(pages),
        accessed_(pages),
        last_(pages),
        wait_(pages, 1e9) {
    frequency_.resize(pages);
  }

  void run() {
    const std::uint64_t end = trace_.back().ns;
    const std::uint64_t middle = end / 2;
    std::uint64_t tick = kTick;
    std::uint64_t look = middle;
    std::uint64_t good_since = 0;
    double noticed = -1;
    for (std::size_t i = 0; i < trace_.size(); ++i) {
      const Visit& visit = trace_[i];
      for (; tick <= visit.ns; tick += kTick) on_tick(tick);
      if (visit.ns >= look) {
        look += kSecond / 4;
        const auto good = judge(i, kSecond);
        if (good.first < 0.9) {
          good_since = 0;
        } else if (good_since == 0) {
          good_since = visit.ns;
        } else if (noticed < 0 && visit.ns - good_since >= kSecond) {
          noticed = static_cast<double>(good_since - middle) / 1e9;
        }
        if (++looks_ % 4 == 0 && visit.ns + kWindow < end && visit.ns > end / 3 * 2) {
          const auto judged = judge(i, kWindow);
          tenth_ += judged.first;
          quarter_ += judged.second;
          ++judged_;
        }
      }
      touch(visit);
    }
    std::printf(
        "{\"way\":\"%s\",\"rate\":%g,\"half_life_s\":%g,\"tenth\":%.4f,\"quarter\":%.4f,"
        "\"noticed_s\":%.2f,\"faults_per_page_s\":%.4f}\n",
        kNames[static_cast<int>(config_.way)], config_.rate, config_.half_life_s, tenth_ / judged_,
        quarter_ / judged_, noticed,
        static_cast<double>(faults_) / pages_ / (static_cast<double>(end) / 1e9));
  }

 private:
  bool by_bits() const { return config_.way == Way::kBits; }

  void touch(const Visit& visit) {
    accessed_[visit.page] = 1;
    std::uint64_t& since = unmapped_[visit.page];
    if (since == kClosed) return;
    frequency_.touched_after(visit.page, visit.ns - std::min(since, visit.ns),
                             noted_[visit.page] - since);
    const auto waited = static_cast<double>(visit.ns - std::min(since, visit.ns)) / 1e9;
    wait_[visit.page] = wait_[visit.page] > 1e8 ? waited : wait_[visit.page] * 0.75 + waited * 0.25;
    last_[visit.page] = static_cast<double>(visit.ns);
    since = kClosed;
    ++faults_;
  }

  void on_tick(std::uint64_t now) {
    frequency_.advance(now);
    if (by_bits()) {
      const auto every = static_cast<std::uint64_t>(1e9 / config_.rate);
      if (now - scanned_ < every) return;
      for (PageId id = 0; id < pages_; ++id) {
        frequency_.scanned(id, now - scanned_, accessed_[id] != 0);
        accessed_[id] = 0;
      }
      scanned_ = now;
      return;
    }
    for (PageId id = 0; id < pages_; ++id) {
      if (unmapped_[id] == kClosed || now - noted_[id] < kProbation) continue;
      frequency_.untouched_for(id, now - noted_[id]);
      noted_[id] = now;
    }
    tokens_ += config_.rate * pages_ * static_cast<double>(kTick) / 1e9;
    // As many draws as are paid for; those that meet an unmapped page are free, and lost.
    for (; tokens_ >= 1; --tokens_) {
      PageId id = draw();
      if (config_.way == Way::kLeastSeen) {
        const PageId other = draw();
        if (frequency_.seen(other) < frequency_.seen(id)) id = other;
      }
      if (unmapped_[id] == kClosed) unmapped_[id] = noted_[id] = now;
    }
  }

  // Of mapped pages, if there are enough that a few tries find one.
  PageId draw() {
    PageId id = 0;
    for (int i = 0; i < 8; ++i) {
      id = static_cast<PageId>(random_() % pages_);
      if (unmapped_[id] == kClosed) break;
    }
    return id;
  }

  // What the hottest tenth and quarter get of what they could, in the `length` from trace_[from]
  // on.
  std::pair<double, double> judge(std::size_t from, std::uint64_t length) const {
    std::vector<double> truth(pages_);
    for (std::size_t i = from; i < trace_.size() && trace_[i].ns < trace_[from].ns + length; ++i) {
      ++truth[trace_[i].page];
    }
    std::vector<double> score(pages_);
    for (PageId id = 0; id < pages_; ++id) {
      score[id] = config_.way == Way::kLastFault  ? last_[id]
                  : config_.way == Way::kMeanWait ? -wait_[id]
                                                  : frequency_.per_second(id);
    }
    const auto ratio = [&](std::size_t count) {
      return share(score, truth, count) / share(truth, truth, count);
    };
    return {ratio(pages_ / 10), ratio(pages_ / 4)};
  }

  const std::vector<Visit>& trace_;
  std::uint32_t pages_;
  Config config_;
  Frequency frequency_;
  std::mt19937_64 random_{1};
  std::vector<std::uint64_t> unmapped_;  // since when; kClosed: it is mapped
  std::vector<std::uint64_t> noted_;     // up to when that is known to the estimate
  std::vector<unsigned char> accessed_;
  std::vector<double> last_, wait_;
  std::uint64_t scanned_ = 0;
  double tokens_ = 0;
  std::uint64_t faults_ = 0;
  std::uint64_t looks_ = 0;
  double tenth_ = 0, quarter_ = 0, judged_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const auto pages = static_cast<std::uint32_t>(argc == 3 ? std::atol(argv[2]) : 0);
  if (pages < 10) {
    std::fputs("usage: bench_heat_sampling TRACE PAGES; see its first lines\n", stderr);
    return 2;
  }
  const std::vector<Visit> trace = load(argv[1], pages);
  if (trace.empty()) {
    std::fputs("bench_heat_sampling: an empty trace\n", stderr);
    return 1;
  }
  for (const double half_life_s : {2.0, 8.0, 32.0}) {
    for (const double rate : {0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0}) {
      Replay(trace, pages, {Way::kRandom, rate, half_life_s}).run();
      Replay(trace, pages, {Way::kLeastSeen, rate, half_life_s}).run();
    }
    for (const double rate : {0.2, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0}) {
      Replay(trace, pages, {Way::kBits, rate, half_life_s}).run();
    }
  }
  for (const double rate : {0.2, 1.0, 5.0}) {
    Replay(trace, pages, {Way::kLastFault, rate, 8}).run();
    Replay(trace, pages, {Way::kMeanWait, rate, 8}).run();
  }
  return 0;
}
