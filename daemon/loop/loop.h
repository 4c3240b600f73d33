// Loop: observe, plan, move, publish. Owns the parts and alone orders them: faults and finished
// moves become facts for the planner, its moves become work for the migrator. One thread.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "loop/placer.h"
#include "loop/planner.h"
#include "migrate/migrator.h"
#include "migrate/region.h"
#include "os/block_device.h"
#include "os/ring.h"
#include "os/timer.h"
#include "os/workers.h"
#include "tier/memory_node.h"
#include "tier/store.h"
#include "wire/protocol.h"

namespace kvmem::loop {

struct LoopOptions {
  std::uint64_t dram_pages = 0;
  os::NodeSet dram_nodes;  // empty: wherever the kernel likes; with a CXL tier, not its nodes
  os::NodeSet cxl_nodes;   // empty: this machine has none
  std::uint64_t cxl_pages = 0;
  std::uint64_t place_bytes_per_s = 0;  // at most so much between the two, both ways together
  std::uint32_t prefetch_depth = 8;     // reads in flight ahead of need
  bool sampling = true;
  os::MemoryKind memory_kind = os::MemoryKind::kShmem;
  bool huge_required = false;  // regions are refused rather than made without huge pages
  std::string store_path;      // empty: no NVMe tier
  std::uint64_t store_bytes = 0;
  std::uint64_t sync_interval_ns = 20'000'000;
  unsigned workers = 2;
};

// What only the engine's own process can do to its address space; its agent thread does it.
class EngineHand {
 public:
  virtual ~EngineHand() = default;
  // Takes a heat sample: the next touch of the page will be a fault. May gather until flush().
  virtual void unmap(migrate::View& view, std::uint32_t page) = 0;
  virtual void flush() = 0;
  // The page waits for memory of which there are no huge pages: it shall lie in ordinary memory.
  // Gathers until flush().
  virtual void move_aside(migrate::View& view, std::uint32_t page) = 0;
  // Access to the page shall raise SIGBUS.
  virtual void poison(migrate::View& view, std::uint32_t page) = 0;
};

struct MoveRecord {
  std::uint64_t time_ns = 0;
  std::uint64_t region_id = 0;
  std::uint32_t page = 0;
  residency::PageState from = residency::PageState::kFresh;
  residency::PageState to = residency::PageState::kFresh;
  model::Reason reason = model::Reason::kNone;
};

struct RegionSpec {
  std::uint64_t session_id = 0;
  std::uint32_t uid = 0;
  std::int32_t pid = 0;
  std::string tag;
  std::uint32_t page_count = 0;
  std::uint32_t pages_max = UINT32_MAX;  // that are not fresh
  std::unique_ptr<tier::Origin> origin;
};

class Loop final : public migrate::Observer {
 public:
  static Result<std::unique_ptr<Loop>> create(const LoopOptions& options);
  ~Loop() override;
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  os::Ring& ring() { return ring_; }
  void set_engine_hand(EngineHand* hand) { hand_ = hand; }
  // Live configuration.
  void set_dram_pages(std::uint64_t pages);
  void set_cxl(std::uint64_t pages, std::uint64_t place_bytes_per_s);
  void set_sampling(bool on) { sampling_ = on; }

  // The daemon stops and engines stay: finishes or undoes what moves, and starts nothing more.
  // Tables and records are left for the next daemon to take over.
  void detach();

  // Waits for completions, runs them, then plans and starts what follows.
  Status run_once();
  // For work that was done outside run_once(): plans at its end.
  void note_change() { changed_ = true; }

  Result<migrate::Region*> create_region(RegionSpec spec);
  // The region's second memory, for pages that no huge ones can be had for.
  // REQUIRES: it has none; its memory is huge pages.
  Status make_aside(migrate::Region& region);
  // A forked child's copy of `parent`, made on demand.
  Result<migrate::Region*> clone_region(migrate::Region& parent, std::uint64_t session_id);
  // Takes over a region that an engine kept through a daemon's death. Records it refers to are
  // claimed in the store; pages whose record is not there are lost.
  Result<migrate::Region*> adopt_region(RegionSpec spec, std::uint64_t region_id, UniqueFd memory,
                                        UniqueFd table, UniqueFd aside);
  migrate::View* add_view(migrate::Region& region, migrate::View view);
  // The engine unmapped it or died. A region without views and offers is closed.
  void remove_view(migrate::View& view);
  // The region is about to be mapped by one more engine: it stays until that has a view or is
  // dropped.
  void offer(migrate::Region& region) { ++region.offers; }
  void drop_offer(migrate::Region& region);

  void fault(migrate::View& view, const os::Fault& fault, std::uint64_t now_ns);
  Status advise(migrate::Region& region, std::uint32_t first, std::uint32_t count,
                wire::Advice advice);

  // Operator's moves; how many were started. Each returns at once.
  std::uint32_t promote(migrate::Region& region, std::uint32_t first, std::uint32_t count);
  std::uint32_t demote(migrate::Region& region, std::uint32_t first, std::uint32_t count);
  // What is pinned leaves room for everyone else's faults: kNoMemory beyond half the budget.
  Status pin(migrate::Region& region, std::uint32_t first, std::uint32_t count, bool on);

  // Store records of a session that did not come back with its regions.
  void release_unclaimed(std::uint64_t session_id);
  // Sessions that own recovered records.
  std::vector<std::uint64_t> recovered_sessions() const;

  const std::vector<migrate::Region*>& regions() const { return by_slot_; }  // null: free slot
  migrate::Region* region_by_id(std::uint64_t region_id) const;
  migrate::Migrator& migrator() { return *migrator_; }
  const Planner& planner() const { return planner_; }
  const tier::MemoryNodes& memory() const { return memory_; }
  const tier::MemoryNode& dram() const { return memory_[model::Memory::kDram]; }
  const tier::MemoryNode& cxl() const { return memory_[model::Memory::kCxl]; }
  bool has_cxl() const { return !cxl().nodes().empty(); }
  const Placer& placer() const { return placer_; }
  const tier::Store* store() const { return store_.get(); }
  tier::Store* store() { return store_.get(); }  // null: no NVMe tier
  os::Executor& workers() { return *workers_; }
  const std::deque<MoveRecord>& moves() const { return move_log_; }
  os::MemoryKind memory_kind() const { return options_.memory_kind; }
  // Huge pages were to be used and the kernel has none.
  bool huge_pages_gone() const { return migrator_->huge_pages_gone() || huge_refused_; }

 private:
  explicit Loop(const LoopOptions& options, os::Ring ring);

  Result<migrate::Region*> install(std::unique_ptr<migrate::Region> region);
  void plan();
  void plan_places();
  void start_places();
  Status place(model::PageRef page, model::Memory to);
  // The next touch of the page shall be seen. False: it is not in memory.
  bool unmap(migrate::Region& region, std::uint32_t page);
  void heed_shortages();
  void adopt_frame(migrate::Region& region, std::uint32_t page);
  void set_capacity(model::Memory memory, std::uint64_t pages);
  void capacity_changed();
  void heed_huge_pages();
  void say_who_waits();
  Status make_memory(migrate::Region& region, std::uint32_t page_count);
  void log_move(model::PageRef page, residency::PageState from, residency::PageState to,
                model::Reason reason);
  void arm_tick();
  void on_tick();

  void touched(model::PageRef page, model::Touch touch) override;
  void fill_started(model::PageRef page, bool ahead) override;
  void filled(model::PageRef page, model::Refetch refetch) override;
  void fill_failed(model::PageRef page) override;
  void dirtied(model::PageRef page) override;
  void demote_started(model::PageRef page) override;
  void demoted(model::PageRef page) override;
  void demote_failed(model::PageRef page) override;
  void discarded(model::PageRef page) override;
  void placed(model::PageRef page, model::Memory memory) override;
  void place_failed(model::PageRef page, const Status& status) override;
  void lost(const migrate::Region& region, std::uint32_t page, const char* why) override;
  void poison_in_engine(migrate::View& view, std::uint32_t page) override;
  void needs_aside(migrate::View& view, std::uint32_t page) override;
  void region_gone(migrate::Region& region) override;

  LoopOptions options_;
  os::Ring ring_;
  std::unique_ptr<os::WorkerPool> workers_;
  // The store's checksums: 70 us for 2 MiB, and a hand-over to a worker and back costs as much
  // again.
  os::InlineExecutor checksums_;
  std::unique_ptr<tier::Store> store_;
  tier::MemoryNodes memory_;
  Planner planner_;
  Placer placer_;
  std::unique_ptr<migrate::Migrator> migrator_;
  EngineHand* hand_ = nullptr;

  std::vector<std::unique_ptr<migrate::Region>> regions_;
  std::vector<migrate::Region*> by_slot_;
  std::vector<model::RegionSlot> free_slots_;
  std::uint64_t next_region_id_ = 0;
  std::vector<tier::Record> recovered_;  // sorted by key; unclaimed ones only

  std::deque<MoveRecord> move_log_;  // at most kMoveLogMax
  model::Moves planned_;
  Places places_;
  struct Step {
    model::PageRef page;
    model::Memory to = model::Memory::kDram;
  };
  std::deque<Step> steps_;  // moves between the two, chosen and not begun; at most a plan's
  bool changed_ = false;
  bool sampling_ = true;
  std::uint64_t last_shortage_ns_ = 0;
  std::uint64_t last_shortage_log_ns_ = 0;
  std::uint64_t last_pressure_log_ns_ = 0;
  std::uint64_t last_wait_log_ns_ = 0;
  std::uint64_t last_place_log_ns_ = 0;
  std::uint64_t huge_tried_ns_ = 0;  // for a region
  bool huge_refused_ = false;        // by the kernel, for the last region made
  os::Timer tick_;
  os::Timer place_tick_;  // while CXL memory is used
  os::Timer retry_;       // while a fault waits; the tick may be a second away
};

}  // namespace kvmem::loop
