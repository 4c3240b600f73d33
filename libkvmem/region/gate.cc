#include "region/gate.h"

namespace kvmem {

bool Gate::change(std::uint32_t state, std::uint32_t next) noexcept {
  if (!state_.compare_exchange_strong(state, next, std::memory_order_seq_cst)) return false;
  sys::futex_wake(state_, INT32_MAX);
  return true;
}

void Gate::wait_outside(std::atomic<std::uint64_t>& inside) noexcept {
  const std::uint64_t begin_ns = sys::now_ns();
  held_.fetch_add(1, std::memory_order_relaxed);
  waiting_.fetch_add(1, std::memory_order_seq_cst);
  for (;;) {
    inside.fetch_sub(1, std::memory_order_seq_cst);
    tell_closer();
    for (;;) {
      const std::uint32_t state = state_.load(std::memory_order_seq_cst);
      if (is(state, kOpen)) break;
      const std::uint64_t waited_ns = sys::now_ns() - begin_ns;
      if (is(state, kClosed)) {
        sys::futex_wait(state_, state);
      } else if (waited_ns < patience_ns_) {
        sys::futex_wait_for(state_, state, patience_ns_ - waited_ns);
      } else if (change(state, opened(state))) {
        given_up_.fetch_add(1, std::memory_order_relaxed);
        tell_closer();
      }
    }
    inside.fetch_add(1, std::memory_order_seq_cst);
    if (is(state_.load(std::memory_order_seq_cst), kOpen)) break;
  }
  waiting_.fetch_sub(1, std::memory_order_seq_cst);
  tell_closer();
  held_ns_.fetch_add(sys::now_ns() - begin_ns, std::memory_order_relaxed);
}

void Gate::tell_closer() noexcept {
  left_.fetch_add(1, std::memory_order_seq_cst);
  sys::futex_wake(left_, INT32_MAX);
}

bool Gate::anybody_inside() const noexcept {
  for (const Shard& shard : shards_) {
    if (static_cast<std::uint32_t>(shard.inside.load(std::memory_order_seq_cst)) != 0) return true;
  }
  return false;
}

std::uint32_t Gate::passes() const noexcept {
  std::uint32_t sum = 0;
  for (const Shard& shard : shards_) {
    sum += static_cast<std::uint32_t>(shard.inside.load(std::memory_order_relaxed) >> 32);
  }
  return sum;
}

Status Gate::close(Status (*drain)(void* argument), void* argument) {
  std::uint32_t closing = 0;
  for (;;) {
    const std::uint32_t seen = left_.load(std::memory_order_seq_cst);
    const std::uint32_t state = state_.load(std::memory_order_seq_cst);
    closing = state | kClosing;
    if (!is(state, kOpen)) {  // another one closes it: after that
      closers_.fetch_add(1, std::memory_order_seq_cst);
      tell_closer();
      sys::futex_wait(state_, state);
      closers_.fetch_sub(1, std::memory_order_seq_cst);
    } else if (waiting_.load(std::memory_order_seq_cst) != 0) {
      sys::futex_wait(left_, seen);  // and after those that were held
    } else if (change(state, closing)) {
      break;
    }
  }
  Status status;
  for (;;) {
    const std::uint32_t seen = left_.load(std::memory_order_seq_cst);
    if (state_.load(std::memory_order_seq_cst) != closing || !anybody_inside()) break;
    sys::futex_wait(left_, seen);
  }
  // Nobody is inside: no capture can begin.
  if (captures_.load(std::memory_order_relaxed) != 0) {
    status = Status(Code::kBusy, "a stream is being captured");
  } else if (state_.load(std::memory_order_seq_cst) == closing) {
    status = drain(argument);
  }
  if (status.ok()) {
    if (change(closing, (closing & ~kPhase) | kClosed)) {
      closed_.fetch_add(1, std::memory_order_relaxed);
      return {};
    }
    return {Code::kBusy, "the engine had work to start"};
  }
  (void)change(closing, opened(closing));
  return status;
}

void Gate::open() {
  const std::uint32_t state = state_.load(std::memory_order_relaxed);
  (void)change(state, opened(state));
}

Gate::Stats Gate::stats() const {
  return {closed_.load(std::memory_order_relaxed), given_up_.load(std::memory_order_relaxed),
          held_.load(std::memory_order_relaxed), held_ns_.load(std::memory_order_relaxed),
          waiting_.load(std::memory_order_relaxed)};
}

}  // namespace kvmem
