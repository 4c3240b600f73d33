// Gate: holds back an engine's work for its GPUs while page tables change.
//
// The driver does not order cuMemUnmap against kernels that run, nor map against those that might
// (vLLM PR 43020, kvcached PR 465). So every call that starts work passes through here, and who
// edits closes the gate first:
//
//   open    -> closing  close(): calls that come now wait; those inside finish
//   closing -> closed   nobody is inside, and what they started is done (`drain`)
//   closing -> open     a call has waited for `patience_ns`: the engine comes first, close() fails;
//                       or `drain` failed, or a stream is being captured
//   closed  -> open     open()
//
// A closed gate is closed for as long as driver calls take, and nothing waits for the engine while
// it is. Or for longer, where the engine has nothing to do (it is parked): then who closed it opens
// it again when is_wanted(), and a call waits until all it may touch is back. A call inside may
// block (a synchronous copy), so closing may take as long; a call that is held while it closes
// waits for no longer than `patience_ns`. Between two closings all that were held get through.
//
// One gate per process: what a thread has entered is counted per thread.
//
// Passing an open gate costs two atomic additions on a line that few threads share. They also count
// the passes.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/status.h"
#include "client/sys.h"

namespace kvmem {

class Gate {
 public:
  constexpr explicit Gate(std::uint64_t patience_ns = 100'000'000) : patience_ns_(patience_ns) {}
  ~Gate() = default;
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  // Around a call that starts work. Any thread; may be nested.
  void enter() noexcept {
    if (depth_++ > 0) return;
    std::atomic<std::uint64_t>& inside = shards_[shard()].inside;
    // Before the look at the state, as close() writes the state before it looks here.
    inside.fetch_add(kPass, std::memory_order_seq_cst);
    if (__builtin_expect(!is(state_.load(std::memory_order_seq_cst), kOpen), 0)) {
      wait_outside(inside);
    }
  }
  void leave() noexcept {
    if (--depth_ > 0) return;
    shards_[shard()].inside.fetch_sub(1, std::memory_order_seq_cst);  // before the look, as above
    if (__builtin_expect(!is(state_.load(std::memory_order_seq_cst), kOpen), 0)) tell_closer();
  }
  class Pass {
   public:
    explicit Pass(Gate& gate) noexcept : gate_(gate) { gate_.enter(); }
    ~Pass() { gate_.leave(); }
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

   private:
    Gate& gate_;
  };

  // A stream of the engine is being captured: nothing may be edited until all captures have ended.
  // REQUIRES: the thread that begins one is inside.
  void capture_begun() noexcept { captures_.fetch_add(1, std::memory_order_relaxed); }
  void capture_ended() noexcept { captures_.fetch_sub(1, std::memory_order_relaxed); }

  bool is_capturing() const noexcept { return captures_.load(std::memory_order_relaxed) != 0; }

  // Closed when this is OK; `drain` returns when the work that was started is done. kBusy: the
  // engine would have had to wait for too long, or it captures a stream: try again later.
  // REQUIRES: the calling thread is not inside. Others that close wait for their turn.
  Status close(Status (*drain)(void* argument), void* argument);
  // REQUIRES: this thread has closed it.
  void open();

  // Whether somebody waits for a closed gate to open: a call, or another one that would close it.
  bool is_wanted() const noexcept {
    return waiting_.load(std::memory_order_seq_cst) != 0 ||
           closers_.load(std::memory_order_seq_cst) != 0;
  }
  // For a thread that waits until it is: event() before the look, wait() after it. nudge() ends the
  // wait as a call would.
  std::uint32_t event() const noexcept { return left_.load(std::memory_order_seq_cst); }
  void wait(std::uint32_t seen) noexcept { sys::futex_wait(left_, seen); }
  void nudge() noexcept { tell_closer(); }

  // Calls that have passed; wraps. Unchanged over a time: the engine has started nothing.
  std::uint32_t passes() const noexcept;

  struct Stats {
    std::uint64_t closed = 0;    // times
    std::uint64_t given_up = 0;  // closings that failed for the engine's sake
    std::uint64_t held = 0;      // calls that found the gate closing or closed
    std::uint64_t held_ns = 0;   // that they waited, together
    std::uint32_t waiting = 0;   // calls held now
  };
  Stats stats() const;
  bool is_closing() const { return is(state_.load(std::memory_order_relaxed), kClosing); }

 private:
  // The state counts up by four each time the gate opens: a closing that was given up cannot be
  // taken for the next one.
  static constexpr std::uint32_t kOpen = 0, kClosing = 1, kClosed = 2, kPhase = 3;
  static constexpr unsigned kShards = 16;
  // In one word: how many have passed, above how many are inside.
  static constexpr std::uint64_t kPass = (std::uint64_t{1} << 32) | 1;
  struct alignas(64) Shard {
    std::atomic<std::uint64_t> inside{0};
  };

  static unsigned shard() noexcept {
    if (__builtin_expect(shard_ == 0, 0)) {
      shard_ = 1 + next_shard_.fetch_add(1, std::memory_order_relaxed) % kShards;
    }
    return shard_ - 1;
  }
  static bool is(std::uint32_t state, std::uint32_t phase) { return (state & kPhase) == phase; }
  void wait_outside(std::atomic<std::uint64_t>& inside) noexcept;
  void tell_closer() noexcept;
  bool anybody_inside() const noexcept;
  // False: no longer in `state`.
  bool change(std::uint32_t state, std::uint32_t next) noexcept;
  static std::uint32_t opened(std::uint32_t state) { return (state | kPhase) + 1; }

  inline static std::atomic<unsigned> next_shard_{0};
  inline static thread_local unsigned shard_ = 0;
  inline static thread_local unsigned depth_ = 0;

  Shard shards_[kShards];
  const std::uint64_t patience_ns_;
  std::atomic<std::uint64_t> closed_{0};
  std::atomic<std::uint64_t> given_up_{0};
  std::atomic<std::uint64_t> held_{0};
  std::atomic<std::uint64_t> held_ns_{0};
  sys::FutexWord state_{kOpen};
  sys::FutexWord left_{0};  // counted up when a call leaves, or comes to, a gate that is not open
  std::atomic<std::uint32_t> captures_{0};
  std::atomic<std::uint32_t> waiting_{0};  // calls that are held
  std::atomic<std::uint32_t> closers_{0};  // who waits for his turn to close it
};

}  // namespace kvmem
