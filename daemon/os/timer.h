// Timer: calls back on the loop once, after a time. Restart it from the callback to repeat.
//
//   idle -> armed -> idle       fired
//   armed -> stopping -> idle   stop(); does not fire
#pragma once

#include <cstdint>

#include "base/check.h"
#include "os/ring.h"

namespace kvmem::os {

class Timer : private Completion {
 public:
  using Fired = void (*)(void* owner);

  Timer() { run = &Timer::on_end; }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() { KV_CHECK(!busy_); }

  // REQUIRES: not busy.
  void start(Ring& ring, std::uint64_t after_ns, void* owner, Fired fired) {
    KV_CHECK(!busy_);
    busy_ = true;
    stopping_ = false;
    owner_ = owner;
    fired_ = fired;
    ring_ = &ring;
    after_.tv_sec = static_cast<long long>(after_ns / 1'000'000'000);
    after_.tv_nsec = static_cast<long long>(after_ns % 1'000'000'000);
    ring.prepare(this, [&](io_uring_sqe* sqe) { io_uring_prep_timeout(sqe, &after_, 0, 0); });
  }
  void stop() {
    if (!busy_ || stopping_) return;
    stopping_ = true;
    ring_->prepare(nullptr, [&](io_uring_sqe* sqe) {
      io_uring_prep_timeout_remove(
          sqe, reinterpret_cast<std::uint64_t>(static_cast<Completion*>(this)), 0);
    });
  }
  bool busy() const { return busy_; }

 private:
  static void on_end(Completion* self, int /*result*/, std::uint32_t /*flags*/) {
    auto* timer = static_cast<Timer*>(self);
    timer->busy_ = false;
    if (!timer->stopping_) timer->fired_(timer->owner_);
  }

  __kernel_timespec after_{};
  Ring* ring_ = nullptr;
  void* owner_ = nullptr;
  Fired fired_ = nullptr;
  bool busy_ = false;
  bool stopping_ = false;
};

}  // namespace kvmem::os
