// Migrator: carries pages between tiers and answers faults with them. Loop only; workers populate,
// copy and punch, the ring reads and writes.
//
// It chooses no page: which one moves ahead of need, and which makes room, comes from outside.
// Faults are demands, and are served first-come as frames allow.
//
// A move is one page's way through:
//   fill    populate -> [in hand] -> read (origin file, store record) or copy of the parent's page
//           -> publish resident -> map
//           In hand is at most one fill ahead, that nobody waits for, while others are read. Its
//           read starts when the last of those ends, when the next fill wants the place, when
//           somebody waits for it, or after 20 ms. Virtio disks report a whole queue at its end:
//           without it the disk would stand still until the next page has been chosen.
//   demote  publish writing, write-protect -> write record -> publish stored -> punch
//   drop    publish origin|stored (the bytes are there already) -> punch
//   discard publish fresh -> punch
//   place   the kernel moves it to another memory node, where it stays resident: a thread that
//           touches it meanwhile waits
//   aside   as fill, into the region's ordinary memory -> publish resident -> the engine maps it
//           and says so. Its engine asks for it, being told that no huge page can be had.
// A failed or cancelled move leaves the page where it was. residency.h says why each step may be
// the last one of a daemon that is killed.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "base/status.h"
#include "migrate/region.h"
#include "model/counters.h"
#include "model/histogram.h"
#include "model/page.h"
#include "os/ring.h"
#include "os/userfault.h"
#include "os/workers.h"
#include "tier/memory_node.h"
#include "tier/store.h"

namespace kvmem::migrate {

// Hears every fact about pages; the loop hands them to heat and policy.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void touched(model::PageRef page, model::Touch touch) = 0;
  virtual void fill_started(model::PageRef page, bool ahead) = 0;
  virtual void filled(model::PageRef page, model::Refetch refetch) = 0;
  virtual void fill_failed(model::PageRef page) = 0;
  virtual void dirtied(model::PageRef page) = 0;
  virtual void demote_started(model::PageRef page) = 0;
  virtual void demoted(model::PageRef page) = 0;
  virtual void demote_failed(model::PageRef page) = 0;
  virtual void discarded(model::PageRef page) = 0;
  // A resident page's move to other memory has ended, well or not; its region may be gone.
  virtual void placed(model::PageRef page, model::Memory memory) = 0;
  virtual void place_failed(model::PageRef page, const Status& status) = 0;
  // `page` cannot be had back: its engine gets SIGBUS. One log line.
  virtual void lost(const Region& region, std::uint32_t page, const char* why) = 0;
  // The kernel (before 6.6) cannot poison a page from here: the engine shall map SIGBUS over it.
  virtual void poison_in_engine(View& view, std::uint32_t page) = 0;
  // No huge page can be had for a page that is waited for: the engine shall ask for move_aside().
  virtual void needs_aside(View& view, std::uint32_t page) = 0;
  // The last move of a closing region ended; it may be forgotten.
  virtual void region_gone(Region& region) = 0;
};

// Counts down; runs `done` when the last of the work it stands for has ended.
// `done` runs from serve_waiting(), never inside the call that ended the work.
struct Countdown {
  std::uint32_t remaining = 0;
  std::function<void()> done;
};

// Of move_aside(): `status` is set when `done` runs.
struct AsideRequest : Countdown {
  Status status;
};

struct MigratorOptions {
  std::uint32_t fills_max = 32;    // in flight, demanded or ahead
  std::uint32_t demotes_max = 32;  // writing or punching
  // To move a huge page the kernel locks the file that it belongs to while it copies: beside
  // another of the same region it would fail.
  std::uint32_t places_max = 1;
};

class Migrator {
 public:
  // `store` may be null: anonymous pages then stay in DRAM.
  Migrator(os::Ring& ring, os::Executor& executor, tier::MemoryNodes& memory, tier::Store* store,
           Observer& observer, MigratorOptions options);
  Migrator(const Migrator&) = delete;
  Migrator& operator=(const Migrator&) = delete;
  ~Migrator();

  // An engine touched a page that is not mapped, or wrote to a protected one.
  void fault(View& view, const os::Fault& fault, std::uint64_t now_ns);

  // Brings a page in ahead of need. kBusy: moving, resident, no frame or slot free, or the machine
  // had no memory just now. A resident
  // page with kPinned keeps it.
  Status promote(Region& region, std::uint32_t page);
  // Sends a page out. kBusy: moving, not resident, or the store was full just now; kUnsupported:
  // nowhere to go.
  Status demote(Region& region, std::uint32_t page);
  // Moves a resident page's frame. That memory may for the moment be over its budget; the page it
  // changes places with goes next. kBusy: moving, not resident, there already, or pinned and `to`
  // is not DRAM; or enough is on its way.
  Status place(Region& region, std::uint32_t page, model::Memory to);
  // Fills an absent page into the region's ordinary memory. `request` ends when its bytes are there
  // and published, or with an error, and nothing has changed. After success the page rests until
  // moved_aside().
  // REQUIRES: region.has_aside(), and the engine has it.
  void move_aside(Region& region, std::uint32_t page, std::shared_ptr<AsideRequest> request);
  // The engine has mapped the page there, or could not. kNotFound: it was not asked to.
  Status moved_aside(Region& region, std::uint32_t page, bool is_mapped);
  // The engine has taken the pages of the view out of our hands: nobody waits for them any more.
  void forget_demands(View& view, std::uint32_t first, std::uint32_t count);
  // Somebody has tried to have a huge page.
  void note_huge_page(bool is_had);
  // There were none when a daemon before this one had tried for long enough.
  void expect_no_huge_pages();
  // None could be had for a while: pages and new regions do without.
  bool huge_pages_gone() const { return huge_gone_; }
  // That has changed since the last call.
  bool take_huge_change() { return std::exchange(huge_changed_, false); }
  // When the demand that has waited longest came; UINT64_MAX: none waits.
  std::uint64_t waiting_since_ns() const;

  // The engine gave up the contents; `countdown` (may be null) ends when they are gone.
  void discard(Region& region, std::uint32_t first, std::uint32_t count,
               const std::shared_ptr<Countdown>& countdown);
  void set_pinned(Region& region, std::uint32_t page, bool pinned);

  // Forking: from hold() to release() nothing new is mapped for the view and writes to it wait.
  // Every page is protected when it returns ok; else the view is not held.
  Status hold(View& view);
  void release(View& view);
  // `child` starts as a copy of `parent`, made page by page on demand.
  // REQUIRES: the parent's views are held; same page count; child's table all kInherited.
  void inherit(Region& parent, Region& child);

  // Forgets the faults and wakes nothing: the engine unmapped the view or died.
  void view_removed(View& view);
  // Begins the end of a region without views; region_gone() follows, possibly at once.
  void close(Region& region);

  // From now on moves in flight end where they can be taken over, and none starts.
  void detach();
  bool detached() const { return detached_; }

  // Demands that wait for a frame. While this is not 0, demote.
  std::size_t demands_waiting() const { return waiting_.size() + discards_.size(); }
  // Lets waiting demands have frames beyond the budget: nothing can be demoted.
  void grant_over_budget();
  // Retries what waits; called after each batch of completions.
  void serve_waiting();

  std::uint32_t fills_in_flight() const { return fills_; }
  std::uint32_t demotes_in_flight() const { return demotes_; }
  std::uint32_t places_in_flight() const { return places_; }
  bool fill_in_hand() const { return in_hand_ != nullptr; }
  // A shortage of real memory was met since the last call; the budget is more than the machine
  // gives.
  bool take_shortage(model::Memory memory) {
    return std::exchange(shortage_[static_cast<std::size_t>(memory)], false);
  }

  const model::Counters& counters() const { return counters_; }
  model::Counters& counters() { return counters_; }
  const model::Histogram& restore_us() const { return restore_us_; }
  const model::Histogram& first_touch_us() const { return first_touch_us_; }

  static tier::Key key_of(const Region& region, std::uint32_t page) {
    return {region.session_id, region.id << 24 | page};
  }

 private:
  struct Move;
  struct Waiting {
    View* view = nullptr;
    std::uint32_t page = 0;
    bool write = false;
    std::uint64_t since_ns = 0;
  };
  enum class Kind : std::uint8_t { kFill, kDemote, kDrop, kDiscard, kPlace };
  // A discard that has to wait for a child's copy.
  struct Discard {
    Region* region = nullptr;
    std::uint32_t page = 0;
    std::shared_ptr<Countdown> countdown;
  };

  // The move that has the page, its own or copied from; null: none.
  Move* move_of(const Region& region, std::uint32_t page);
  std::uint32_t& in_flight(Kind kind) {
    return kind == Kind::kFill ? fills_ : kind == Kind::kPlace ? places_ : demotes_;
  }
  Move* begin(Region& region, std::uint32_t page, Kind kind);
  void end(Move& move);

  void serve(View& view, std::uint32_t page, bool write, std::uint64_t since_ns);
  // `ahead`: nobody waits for it, now or behind another page. `aside`: goes there, and takes the
  // request along if it starts. False: no frame or move is free, the parent's page is moving,
  // memory ran out a moment ago, or the page must go aside.
  bool start_fill(Region& region, std::uint32_t page, const Waiting* demand, bool ahead,
                  std::shared_ptr<AsideRequest>* aside = nullptr);
  // No huge page will be had for this page: its engine is asked to move it aside.
  bool must_go_aside(const Region& region, residency::Residency entry);
  void ask_aside(Region& region, std::uint32_t page, const Waiting* demand);
  void end_aside(Move& move);
  void start_populate(Move& move);
  void populated(Move& move);
  void start_read(Move& move);
  void start_read_in_hand();
  void start_if_in_hand(const Move* move);  // may end it
  void read_origin(Move& move);
  void origin_read(Move& move, int result);
  void read_store(Move& move);
  void read_done(Move& move, Status status);
  void fill_failed(Move& move, Status status);
  void filled(Move& move);
  void map_resident(View& view, std::uint32_t page, bool write, std::uint64_t since_ns);
  void start_punch(Move& move);
  void punched(Move& move);
  void place_done(Move& move);
  // The page has a frame from now on, wherever the next one is; or none any more.
  void take_frame(Region& region, std::uint32_t page);
  // From the start of its way on it counts where it goes.
  void move_frame(Region& region, std::uint32_t page, model::Memory to);
  void give_back_frame(const Region& region, std::uint32_t page);
  void written(Move& move, Status status);
  void cancel_write(Move& move);
  void write_failed(Move& move, const Status& status);
  void release_record(const Region& region, std::uint32_t page, residency::Residency entry);
  void drop_copy(Region& region, std::uint32_t page);
  void poison(View& view, std::uint32_t page);
  void lose(Region& region, std::uint32_t page, const char* why);
  // Gives the children their copies of a page that is about to change. True: nothing to wait for.
  // Else `then` goes on when there is nothing; without a view the caller asks again.
  bool settle_children(Region& region, std::uint32_t page, const Waiting& then);
  void discard_page(Region& region, std::uint32_t page,
                    const std::shared_ptr<Countdown>& countdown);
  void finish(std::shared_ptr<Countdown> countdown);
  void wait(const Waiting& demand);
  void await(Move& move, const Waiting& demand);
  bool inherits(const Region& region, std::uint32_t page) const;
  void count_reads(int change);
  void read_ended(const Move& move);
  void count_waits(const Move& move, residency::PageState source);

  os::Ring& ring_;
  os::Executor& executor_;
  tier::MemoryNodes& memory_;
  tier::Store* store_;
  Observer& observer_;
  const MigratorOptions options_;

  std::vector<std::unique_ptr<Move>> moves_;
  std::vector<std::uint16_t> free_moves_;
  // Which pages the moves have: [2 i] move i's own, [2 i + 1] the one it copies. Searched as a
  // whole: 1 KiB takes less than a miss in a table as large as memory, and costs pages no bytes.
  std::vector<std::uint64_t> busy_pages_;
  std::deque<Waiting> waiting_;  // distinct in view and page
  std::deque<Discard> discards_;
  std::vector<std::shared_ptr<Countdown>> finished_;
  std::uint32_t fills_ = 0;
  std::uint32_t demotes_ = 0;
  std::uint32_t places_ = 0;
  std::uint32_t reads_ = 0;  // fills whose read is under way
  Move* in_hand_ = nullptr;  // populated, its read not started; null while reads_ is 0
  std::uint64_t reads_changed_ns_ = 0;
  std::uint64_t over_budget_ = 0;
  std::uint32_t asides_ = 0;  // moves that fill a page aside or wait for the engine to map it
  std::array<bool, model::kMemoryCount> shortage_{};
  // Huge pages: since when none could be had (0: the last one could), when last, and whether they
  // are done without. While they are one page a second tries.
  std::uint64_t huge_short_since_ns_ = 0;
  std::uint64_t huge_failed_ns_ = 0;
  std::uint64_t huge_tried_ns_ = 0;
  bool huge_gone_ = false;
  bool huge_changed_ = false;
  std::uint64_t full_until_ns_ = 0;   // no record is written before: the store had no room
  std::uint64_t short_until_ns_ = 0;  // no fill is tried before: the last one found no memory
  bool detached_ = false;
  bool write_protect_on_map_ = true;  // until the kernel says it cannot (before 6.4)

  model::Counters counters_;
  model::Histogram restore_us_;
  model::Histogram first_touch_us_;
};

}  // namespace kvmem::migrate
