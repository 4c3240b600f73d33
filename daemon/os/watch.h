// Watch: calls back on the loop when a descriptor can be read or has hung up.
//
//   idle -> armed       start()
//   armed -> stopping   stop(): cancelled, no further `ready`
//   stopping -> idle    the kernel has let go; `stopped` runs, the owner may be destroyed
#pragma once

#include <poll.h>

#include <cstdint>

#include "base/check.h"
#include "os/ring.h"

namespace kvmem::os {

class Watch : private Completion {
 public:
  using Ready = void (*)(void* owner, std::uint32_t poll_events);
  using Stopped = void (*)(void* owner);

  Watch() { run = &Watch::on_event; }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  ~Watch() { KV_CHECK(state_ == State::kIdle); }

  // `ready` must read until nothing is left: wake-ups are edges.
  void start(Ring& ring, int fd, void* owner, Ready ready, Stopped stopped) {
    KV_CHECK(state_ == State::kIdle);
    ring_ = &ring;
    fd_ = fd;
    owner_ = owner;
    ready_ = ready;
    stopped_ = stopped;
    state_ = State::kArmed;
    arm();
  }
  void stop() {
    if (state_ != State::kArmed) return;
    state_ = State::kStopping;
    ring_->cancel(this);
  }
  bool idle() const { return state_ == State::kIdle; }

 private:
  enum class State : std::uint8_t { kIdle, kArmed, kStopping };

  void arm() {
    ring_->prepare(this, [&](io_uring_sqe* sqe) {
      io_uring_prep_poll_multishot(sqe, fd_, POLLIN | POLLHUP | POLLERR);
    });
  }
  static void on_event(Completion* self, int result, std::uint32_t flags) {
    auto* watch = static_cast<Watch*>(self);
    const bool more = (flags & IORING_CQE_F_MORE) != 0;
    if (watch->state_ == State::kStopping) {
      if (more) return;
      watch->state_ = State::kIdle;
      watch->stopped_(watch->owner_);  // may destroy watch
      return;
    }
    if (!more) watch->arm();
    watch->ready_(watch->owner_, result < 0 ? POLLERR : static_cast<std::uint32_t>(result));
  }

  Ring* ring_ = nullptr;
  void* owner_ = nullptr;
  Ready ready_ = nullptr;
  Stopped stopped_ = nullptr;
  int fd_ = -1;
  State state_ = State::kIdle;
};

}  // namespace kvmem::os
