// KvPool: the KV cache of many sequences, each in a row of addresses that never change; see
// layout.h. The pages that a row's tokens have reached have memory, some ahead of them and some
// that were left over may have.
//
// A row's pages are mapped ahead of its growth by a thread of the pool's own, so that a decode step
// finds them: step() is a comparison for each sequence. What a closed sequence leaves behind stays
// mapped for the next one in its row; it is unmapped when somebody else needs the memory, many
// pages at a time, since the engine's work must have ended then.
//
// A forked sequence shares its parent's full pages; of a page that is part of both only in part, it
// has a copy. A page that is shared is never written: a sequence that is cut back into one gets a
// copy.
//
// Memory that the daemon does not page (a GPU's) is this file's to give away: a sequence that no
// step has named lately is parked, its pages' bytes in host memory, until a step names it.
//
//   free    -> open      open(), fork()
//   open    -> open      parked and resumed: room 0 meanwhile, or up to its first page that is gone
//   open    -> closing   close(): pages of it that others have are still mapped here
//   open    -> free      close() of any other
//   closing -> free      they have been unmapped
//
// Whoever edits a row's pages claims the row first; the lock is never held while the driver or the
// daemon is asked. Any thread; steps one at a time.
#pragma once

#include <pthread.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/heap.h"
#include "base/status.h"
#include "base/unique_handle.h"
#include "client/lock.h"
#include "pool/backing.h"
#include "pool/layout.h"

namespace kvmem::pool {

class KvPool {
 public:
  struct Stats {
    std::uint64_t open = 0;             // sequences
    std::uint64_t parked = 0;           // of them
    std::uint64_t frames = 0;           // with memory; a shared one counts once
    std::uint64_t spare_frames = 0;     // of them, of closed sequences alone
    std::uint64_t shared_frames = 0;    // behind the pages of several sequences
    std::uint64_t steps = 0;            // since the start, as all that follows
    std::uint64_t grown_pages = 0;      // that a step's tokens reached
    std::uint64_t late_pages = 0;       // of them, mapped while the step waited
    std::uint64_t late_creates = 0;     // that had to be made while somebody waited
    std::uint64_t reclaimed_pages = 0;  // unmapped for others, that no sequence needed
    std::uint64_t parked_pages = 0;
    std::uint64_t resumed_pages = 0;
  };

  // REQUIRES: the backing has the geometry's addresses, and its pages' size.
  static Result<Owned<KvPool>> create(const Geometry& geometry, Owned<Backing> backing);
  // REQUIRES: no other call is under way, and the engine's work on the pool has ended.
  ~KvPool();
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  const Geometry& geometry() const { return geometry_; }
  std::uint64_t address() const { return backing_->address(); }

  // In all: kInvalid: no such open sequence, or a length that is none. kNoMemory: lengths are as
  // they were.
  //
  // kNoSpace: all rows are open.
  Status open(std::uint32_t* row);
  Status close(std::uint32_t row);
  // Of its own tokens no more than those before `tokens`; what is after it may be written from now
  // on. Shared pages that are to be written are copied.
  Status truncate(std::uint32_t row, std::uint64_t tokens);
  // Room for `tokens` in all, of which the sequence may write those from its length on.
  Status extend(std::uint32_t row, std::uint64_t tokens);
  // The engine's next step touches these sequences, each of tokens[i] tokens then; null: of one
  // more than now.
  Status step(const std::uint32_t* rows, const std::uint64_t* tokens, std::size_t count);
  // A new sequence of the first `tokens` of `parent`. What is copied of a page is copied in the
  // order of `stream`.
  Status fork(std::uint32_t parent, std::uint64_t tokens, void* stream, std::uint32_t* child);
  // Its memory to slower places, as far as no other has it, until a step, extend(), fork() or
  // resume() names it. kBusy: the engine's work would not end, or it is pinned.
  Status park(std::uint32_t row);
  Status resume(std::uint32_t row);
  // As resume(), in the background.
  Status prefetch(std::uint32_t row);
  // Never parked by itself, nor by park().
  Status pin(std::uint32_t row, bool on);

  Result<std::uint64_t> tokens(std::uint32_t row) const;
  // Whether `count` more sequences of `tokens` each would find memory now, with none parked.
  bool fits(std::uint64_t tokens, std::uint64_t count) const;
  // So many tokens are going to be added soon, in any sequences: their memory is made ahead.
  void predict(std::uint64_t tokens);
  Stats stats() const;
  // Returns when the thread has nothing to do: for tests.
  void wait_until_quiet() const;

 private:
  enum class State : std::uint8_t { kFree = 0, kOpen, kClosing };
  // Pages of a row, in one plane.
  struct Run {
    std::uint32_t plane, first, count;
  };
  static constexpr std::uint32_t kRunPagesMax = kRunMax;
  struct Parked {
    Array<Run> runs;  // in the parcel's order
    Parcel parcel;
  };
  // A line of the cache each: a step looks at hundreds.
  struct alignas(64) Row {
    std::uint64_t tokens = 0;
    std::uint64_t room = 0;  // tokens whose pages are all mapped
    std::uint64_t goal = 0;  // tokens that a step under way needs
    std::uint64_t step = 0;  // the last one that named it
    std::uint32_t high = 0;  // from this page on nothing is mapped
    State state = State::kFree;
    bool busy = false;    // claimed
    bool shares = false;  // a page of it may be another's too
    bool pinned = false;
    bool is_cold = false;      // the daemon has been told so
    bool is_wanted = false;    // the thread brings it back
    Parked* parked = nullptr;  // owned
  };
  struct Held {
    Frame frame;
    std::uint32_t pages = 0;  // that it is behind; 0: the entry is free
    std::uint32_t next_free = 0;
  };
  // Rows that wait for the thread, each once.
  class Queue {
   public:
    bool reserve(std::size_t rows);
    void push(std::uint32_t row);
    bool pop(std::uint32_t* row);
    bool empty() const { return count_ == 0; }

   private:
    Array<std::uint32_t> ring_;
    Array<bool> waits_;
    std::size_t first_ = 0;
    std::size_t count_ = 0;
  };
  // What may be done to get a frame.
  enum class Means { kSpare, kParking };

  KvPool(const Geometry& geometry, Owned<Backing> backing);

  std::uint64_t page_of(std::uint32_t row, std::uint32_t plane, std::uint32_t page) const {
    return (std::uint64_t{plane} * geometry_.sequences_max + row) * row_pages_ + page;
  }
  // REQUIRES: the row is claimed, or the lock is held and it is not busy.
  std::uint32_t& entry(std::uint32_t row, std::uint32_t plane, std::uint32_t page) {
    return table_[(std::uint64_t{row} * row_pages_ + page) * planes_ + plane];
  }
  std::uint32_t pages_for(std::uint64_t tokens) const {
    return static_cast<std::uint32_t>((tokens * token_stride_ + geometry_.page_bytes - 1) >>
                                      page_shift_);
  }
  std::uint64_t tokens_in(std::uint32_t pages) const;

  // Null: not open.
  Row* open_row(std::uint32_t row) REQUIRES(lock_);
  // Waits until nobody else has it. kInvalid: not open.
  void claim_any(std::uint32_t row) EXCLUDES(lock_);
  Status claim(std::uint32_t row) EXCLUDES(lock_);
  void unclaim(std::uint32_t row) EXCLUDES(lock_);
  // A claimed row that is free, with as much mapped as there is; or with nothing.
  Status find_row(bool bare, std::uint32_t* out) EXCLUDES(lock_);
  void announce();
  void wake();
  std::uint64_t spare_pages() const REQUIRES(lock_);
  std::uint64_t length_of(std::uint32_t row) const EXCLUDES(lock_);
  void mark_used(std::uint32_t row) EXCLUDES(lock_);
  static bool is_better(const Row& a, const Row& b, bool bare);

  // What a step wants: `tokens` as step()'s.
  struct Wanted {
    const std::uint32_t* rows;
    const std::uint64_t* tokens;
    std::size_t count;
  };
  std::uint64_t tokens_of(const Wanted& wanted, std::size_t i) const REQUIRES(lock_);
  // The first of them whose pages are not all there.
  struct Late {
    std::uint32_t row = 0;
    std::uint64_t tokens = 0;
    bool found = false;
  };
  Status check(const Wanted& wanted, bool is_first, Late* late) REQUIRES(lock_);
  void set_goals(const Wanted& wanted, bool on) REQUIRES(lock_);
  // Whether the thread is to be woken.
  bool commit(const Wanted& wanted, std::uint64_t late_pages) REQUIRES(lock_);
  void grow(std::uint32_t row, std::uint64_t tokens) REQUIRES(lock_);

  static void* thread_main(void* self);
  void run();
  void serve(std::uint32_t row) EXCLUDES(lock_);
  void populate(std::uint32_t row) EXCLUDES(lock_);
  void trim_and_advise() EXCLUDES(lock_);

  // REQUIRES of the following: rows that are named are claimed.

  void begin(std::uint32_t row, std::uint64_t tokens) EXCLUDES(lock_);
  // Back, and mapped for `tokens`.
  Status ensure(std::uint32_t row, std::uint64_t tokens) EXCLUDES(lock_);

  // memory.cc.

  // Everything mapped in [0, end).
  Status fill(std::uint32_t row, std::uint32_t end, Means means) EXCLUDES(lock_);
  Status fill_run(std::uint32_t row, const Run& run, Means means) EXCLUDES(lock_);
  Status obtain(std::uint64_t page, std::size_t count, Means means, Frame* out) EXCLUDES(lock_);
  // Maps them; on error they are still the caller's.
  Status adopt(std::uint32_t row, const Run& run, const Frame* frames) EXCLUDES(lock_);
  // Unmaps pages from `first` on, and gives back what nobody else has. REQUIRES: paused.
  Status drop(std::uint32_t row, std::uint32_t first) EXCLUDES(lock_);
  Status drop_run(std::uint32_t row, const Run& run) EXCLUDES(lock_);
  // Free, with nothing mapped.
  Status clear(std::uint32_t row) EXCLUDES(lock_);
  // Free, with nothing of another's mapped.
  Status scrub(std::uint32_t row) EXCLUDES(lock_);
  Status share(std::uint32_t parent, std::uint32_t child, std::uint64_t tokens, void* stream)
      EXCLUDES(lock_);
  Status share_run(std::uint32_t parent, std::uint32_t child, const Run& run) EXCLUDES(lock_);
  // What is written after `tokens` is in pages of this row alone.
  Status unshare(std::uint32_t row, std::uint64_t tokens) EXCLUDES(lock_);
  Status replace(std::uint32_t row, std::uint32_t plane, std::uint32_t page, const Frame& copy)
      EXCLUDES(lock_);
  Status store(std::uint32_t row) EXCLUDES(lock_);
  Status restore(std::uint32_t row, Means means) EXCLUDES(lock_);
  void drop_parcel(std::uint32_t row) EXCLUDES(lock_);
  void advise(std::uint32_t row, Heat heat) EXCLUDES(lock_);
  void set_room(std::uint32_t row) REQUIRES(lock_);
  void set_high(std::uint32_t row) REQUIRES(lock_);
  bool shared_from(std::uint32_t row, std::uint32_t first) REQUIRES(lock_);
  bool has_private(std::uint32_t row) REQUIRES(lock_);
  void frames_of(std::uint32_t row, const Run& run, Frame* out) EXCLUDES(lock_);
  Frame frame_at(std::uint32_t row, std::uint32_t plane, std::uint32_t page) REQUIRES(lock_);
  // Calls each(Run) for pages in [first, end) whose entries `wants` takes, plane by plane.
  template <class Wants, class Each>
  Status for_runs(std::uint32_t row, std::uint32_t first, std::uint32_t end, Wants wants,
                  Each each);
  // Calls each(Run, offset in the parcel) for what is parked and not mapped.
  template <class Each>
  Status for_absent(std::uint32_t row, Parked& parked, Each each);

  // Something was given back. kNotFound: there is nothing that could be.
  Status reclaim(std::uint64_t wanted, Means means) EXCLUDES(lock_);
  Status park_oldest() EXCLUDES(lock_);

  Result<std::uint32_t> hold(const Frame& frame) REQUIRES(lock_);
  // True: nobody has it any more.
  bool let_go(std::uint32_t index, Frame* out) REQUIRES(lock_);

  const Geometry geometry_;
  const Owned<Backing> backing_;
  const std::uint32_t row_pages_;
  const std::uint32_t planes_;
  const unsigned page_shift_;
  const std::uint64_t token_stride_;
  const std::uint64_t ahead_tokens_;
  UniqueMapping tables_;            // of the two that follow, zero bytes until they are used
  std::uint32_t* table_ = nullptr;  // what is behind each page, an index of `held_`; 0: nothing

  mutable QuickLock lock_;  // no handler may call a pool
  std::span<Row> rows_ GUARDED_BY(lock_);
  Array<Held> held_ GUARDED_BY(lock_);  // [0] is nobody's
  std::uint32_t free_held_ GUARDED_BY(lock_) = 0;
  Queue queue_ GUARDED_BY(lock_);        // for serve()
  Queue unpopulated_ GUARDED_BY(lock_);  // for populate()
  Stats stats_ GUARDED_BY(lock_);
  std::uint64_t step_ GUARDED_BY(lock_) = 0;
  bool has_goals_ GUARDED_BY(lock_) = false;
  bool scans_ GUARDED_BY(lock_) = false;  // the thread looks for what has become cold
  bool stop_ GUARDED_BY(lock_) = false;
  bool working_ GUARDED_BY(lock_) = false;  // the thread is
  bool sleeps_ GUARDED_BY(lock_) = false;   // until it is woken
  std::uint32_t work_seen_ GUARDED_BY(lock_) = 0;

  sys::FutexWord changed_{0};        // counted up when a row is unclaimed
  sys::FutexWord work_{0};           // counted up when the thread should look
  mutable sys::FutexWord quiet_{0};  // counted up when it goes to sleep
  pthread_t thread_{};
  bool has_thread_ = false;
};

}  // namespace kvmem::pool
