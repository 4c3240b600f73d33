// A model of an engine, its disk and the daemon's loop around a real Planner: threads touch pages,
// mapped ones unseen; faults, fills, demotions and samples take modelled time. It counts, so that
// tests can assert counts, and it records the trace, so that MIN and LRU can be asked for theirs.
//
// Time is in microseconds. The disk: a transfer of kTransfer per 2 MiB, one at a time, after a
// latency of kLatency that overlaps with other reads: three in flight keep it busy.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <functional>
#include <queue>
#include <random>
#include <unordered_map>
#include <vector>

#include "base/check.h"
#include "loop/planner.h"

namespace kvmem::sim {

struct Access {
  model::PageRef page;
  bool write = false;
};

// What each thread touches, in order, before the threads wait for one another.
using Op = std::vector<std::vector<Access>>;

struct Costs {
  double compute = 150;  // using 2 MiB: 14 GB/s
  double fault = 20;
  double latency = 800;
  double transfer = 400;      // 5.2 GB/s
  double compute_jitter = 0;  // share by which the time for a page varies
  double punch = 100;         // giving the frame of a clean page back
};

struct Counts {
  std::uint64_t reads = 0;
  std::uint64_t writes = 0;
  std::uint64_t accesses = 0;
  std::uint64_t faults = 0;
  std::uint64_t samples = 0;
  std::uint64_t demotes = 0;
  double disk_busy = 0;
  double time = 0;

  Counts operator-(const Counts& o) const {
    return {reads - o.reads,     writes - o.writes,   accesses - o.accesses,   faults - o.faults,
            samples - o.samples, demotes - o.demotes, disk_busy - o.disk_busy, time - o.time};
  }
};

class EngineModel {
 public:
  EngineModel(std::uint64_t capacity_pages, std::uint64_t seed, Costs costs = {})
      : planner_({.capacity_pages = capacity_pages, .seed = seed}),
        random_(seed),
        costs_(costs),
        capacity_(capacity_pages) {}

  // `has_bytes`: a file's pages; else fresh zeroes.
  void add_region(model::RegionSlot slot, std::uint32_t pages, bool has_bytes) {
    planner_.region_added(slot, pages, has_bytes);
    regions_.resize(std::max<std::size_t>(regions_.size(), slot + 1));
    regions_[slot].assign(pages, Page{});
    for (Page& page : regions_[slot]) page.stored = has_bytes;
  }

  // Runs one operation to its end.
  void run(const Op& op) {
    std::vector<Thread> threads(op.size());
    std::size_t running = 0;
    for (std::size_t i = 0; i < op.size(); ++i) {
      threads[i].work = &op[i];
      if (!op[i].empty()) {
        ++running;
        schedule(now_, [this, &threads, &running, i] { step(threads[i], running); });
      }
    }
    while (running > 0) {
      KV_CHECK(!events_.empty());
      Event event = events_.top();
      events_.pop();
      now_ = event.time;
      event.action();
      drive();
    }
  }

  // Ends what is in flight.
  void settle() {
    while (!events_.empty()) {
      Event event = events_.top();
      events_.pop();
      now_ = event.time;
      event.action();
      drive();
    }
  }

  Counts counts() const {
    Counts counts = counts_;
    counts.time = now_;
    return counts;
  }
  loop::Planner& planner() { return planner_; }
  const std::vector<model::PageRef>& trace() const { return trace_; }
  std::uint64_t resident() const { return used_; }
  bool is_resident(model::PageRef page) { return at(page).resident; }

 private:
  // An access is this many looks at the page, so that one demoted in use is missed.
  static constexpr int kLooks = 4;

  struct Page {
    bool resident = false;
    bool mapped = false;
    bool filling = false;
    bool leaving = false;
    bool stored = false;  // something to read
    bool dirty = false;
    bool cancel = false;
    std::vector<std::function<void()>> waiters;
  };
  struct Thread {
    const std::vector<Access>* work = nullptr;
    std::size_t at = 0;
    int look = 0;
  };
  struct Event {
    double time;
    std::uint64_t number;
    std::function<void()> action;
    bool operator<(const Event& o) const {
      return time != o.time ? time > o.time : number > o.number;
    }
  };

  Page& at(model::PageRef ref) { return regions_[ref.region][ref.page]; }
  void schedule(double time, std::function<void()> action) {
    events_.push({time, event_number_++, std::move(action)});
  }

  void step(Thread& thread, std::size_t& running) {
    if (thread.at == thread.work->size()) {
      --running;
      return;
    }
    const Access access = (*thread.work)[thread.at];
    if (thread.look == 0) {
      ++counts_.accesses;
      trace_.push_back(access.page);
    }
    const auto again = [this, &thread, &running] { step(thread, running); };
    Page& page = at(access.page);
    if (page.mapped && !(access.write && page.leaving)) {
      if (access.write && !page.dirty) {
        page.dirty = true;
        planner_.write_noticed(access.page);
      }
      if (++thread.look == kLooks) {
        thread.look = 0;
        ++thread.at;
      }
      const double jitter = std::uniform_real_distribution<double>(-1, 1)(random_);
      schedule(now_ + costs_.compute / kLooks * (1 + costs_.compute_jitter * jitter), again);
      return;
    }
    if (thread.look == 0) trace_.pop_back(), --counts_.accesses;
    ++counts_.faults;
    if (page.resident) {
      planner_.touched(access.page, access.write && page.leaving ? model::Touch::kWrite
                                                                 : model::Touch::kPresent);
      page.mapped = true;
      if (page.leaving) page.cancel = true;
      if (access.write) page.leaving = false;
      schedule(now_ + costs_.fault, again);
      return;
    }
    page.waiters.push_back(again);
    if (page.filling) {
      planner_.touched(access.page, model::Touch::kInFlight);
      return;
    }
    if (std::find(demanded_.begin(), demanded_.end(), access.page) != demanded_.end()) {
      planner_.touched(access.page, model::Touch::kInFlight);
      return;
    }
    planner_.touched(access.page, page.stored ? model::Touch::kDemand : model::Touch::kFresh);
    demanded_.push_back(access.page);
  }

  // One use of the disk; returns when it ends.
  double disk(double start) {
    const double begin = std::max(start + costs_.latency, disk_free_);
    disk_free_ = begin + costs_.transfer;
    counts_.disk_busy += costs_.transfer;
    return disk_free_;
  }

  void fill(model::PageRef ref, bool ahead) {
    Page& page = at(ref);
    KV_CHECK(!page.resident && !page.filling && used_ < capacity_);
    ++used_;
    if (!page.stored) {
      page.resident = page.mapped = true;
      planner_.filled(ref, model::Refetch::kFree);
      wake(page, costs_.fault);
      return;
    }
    page.filling = true;
    ++fills_;
    ++counts_.reads;
    planner_.fill_started(ref, ahead);
    schedule(disk(now_), [this, ref] {
      Page& filled = at(ref);
      filled.filling = false;
      filled.resident = true;
      filled.mapped = !filled.waiters.empty();
      filled.dirty = false;
      --fills_;
      planner_.filled(ref, model::Refetch::kRead);
      wake(filled, costs_.fault);
    });
  }

  void wake(Page& page, double delay) {
    for (auto& waiter : page.waiters) schedule(now_ + delay, std::move(waiter));
    page.waiters.clear();
  }

  void demote(model::PageRef ref) {
    Page& page = at(ref);
    KV_CHECK(page.resident && !page.leaving);
    page.leaving = true;
    page.cancel = false;
    ++leaving_;
    ++counts_.demotes;
    planner_.demote_started(ref);
    double end = now_ + costs_.punch;
    if (page.dirty) {
      ++counts_.writes;
      end = disk(now_) + costs_.punch;
    } else {
      page.mapped = false;
    }
    schedule(end, [this, ref] {
      Page& left = at(ref);
      --leaving_;
      left.leaving = false;
      if (left.cancel) {
        planner_.demote_failed(ref);
        return;
      }
      left.stored = left.stored || left.dirty;
      left.resident = left.mapped = left.dirty = false;
      --used_;
      planner_.demoted(ref);
    });
  }

  // The daemon's loop: demand first, then what the planner wants.
  void drive() {
    while (!demanded_.empty() && used_ < capacity_) {
      const model::PageRef ref = demanded_.front();
      demanded_.pop_front();
      fill(ref, false);
    }
    planner_.plan(capacity_ - used_, 0, fills_, leaving_, moves_);
    for (const model::Move& move : moves_.demote) demote(move.page);
    for (const model::Move& move : moves_.promote) {
      if (used_ < capacity_) fill(move.page, true);
    }
    for (const model::Move& move : moves_.sample) {
      Page& page = at(move.page);
      if (!page.resident || page.leaving || !page.mapped) continue;
      page.mapped = false;
      ++counts_.samples;
      planner_.sample_armed(move.page);
    }
    KV_CHECK(demanded_.empty() || fills_ > 0 || leaving_ > 0 || used_ < capacity_);
  }

  loop::Planner planner_;
  std::mt19937_64 random_;
  Costs costs_;
  std::uint64_t capacity_;
  std::uint64_t used_ = 0;
  std::uint32_t fills_ = 0;
  std::uint32_t leaving_ = 0;
  std::vector<std::vector<Page>> regions_;
  std::priority_queue<Event> events_;
  std::uint64_t event_number_ = 0;
  double now_ = 0;
  double disk_free_ = 0;
  std::deque<model::PageRef> demanded_;
  std::vector<model::PageRef> trace_;
  Counts counts_;
  model::Moves moves_;
};

// Misses at and after position `from` of a cache that knows the future (Belady's MIN). Pages never
// seen before count only if `cold`.
inline std::uint64_t min_misses(const std::vector<model::PageRef>& trace, std::uint64_t capacity,
                                std::size_t from) {
  constexpr std::size_t kNever = SIZE_MAX;
  std::vector<std::size_t> next(trace.size(), kNever);
  std::unordered_map<model::PageRef, std::size_t> seen;
  for (std::size_t i = trace.size(); i-- > 0;) {
    const auto [it, first] = seen.try_emplace(trace[i], i);
    if (!first) next[i] = it->second;
    it->second = i;
  }
  std::unordered_map<model::PageRef, std::size_t> resident;           // -> next use
  std::priority_queue<std::pair<std::size_t, std::size_t>> farthest;  // next use, position in trace
  std::uint64_t misses = 0;
  for (std::size_t i = 0; i < trace.size(); ++i) {
    const auto it = resident.find(trace[i]);
    if (it == resident.end()) {
      if (i >= from) ++misses;
      while (resident.size() >= capacity) {
        const auto [use, position] = farthest.top();
        farthest.pop();
        const auto victim = resident.find(trace[position]);
        if (victim != resident.end() && victim->second == use) resident.erase(victim);
      }
    }
    resident[trace[i]] = next[i];
    farthest.emplace(next[i], i);
  }
  return misses;
}

// Likewise of LRU over whole pages, without read-ahead: kinder than the kernel's page cache.
inline std::uint64_t lru_misses(const std::vector<model::PageRef>& trace, std::uint64_t capacity,
                                std::size_t from) {
  std::unordered_map<model::PageRef, std::size_t> last;
  std::deque<std::pair<model::PageRef, std::size_t>> order;  // oldest first, with stale entries
  std::uint64_t misses = 0;
  for (std::size_t i = 0; i < trace.size(); ++i) {
    const auto it = last.find(trace[i]);
    if (it == last.end()) {
      if (i >= from) ++misses;
      while (last.size() >= capacity) {
        const auto [page, position] = order.front();
        order.pop_front();
        const auto victim = last.find(page);
        if (victim != last.end() && victim->second == position) last.erase(victim);
      }
    }
    last[trace[i]] = i;
    order.emplace_back(trace[i], i);
  }
  return misses;
}

}  // namespace kvmem::sim
