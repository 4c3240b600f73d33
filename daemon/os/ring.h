// Ring: the daemon's one io_uring. Completions are calls on caller-owned objects; nothing here
// allocates after create().
//
// Owned and used by one thread (the loop). A Completion must outlive the operation that names it.
// A full submission queue is submitted on the spot, so prepare() never fails; callers bound what
// they have in flight to entries/2, which the completion queue (twice the size) can hold.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <utility>

#include "base/status.h"

namespace kvmem::os {

// What happens when an operation ends: `run(self, result, cqe_flags)`, result >= 0 or -errno.
// With IORING_CQE_F_MORE in cqe_flags the operation (a multishot) goes on.
struct Completion {
  using Run = void (*)(Completion* self, int result, std::uint32_t cqe_flags);
  Run run = nullptr;
};

class Ring {
 public:
  // kUnsupported or kErrno when the kernel has no io_uring or forbids it.
  static Result<Ring> create(unsigned entries);
  Ring(Ring&& other) noexcept : ring_(other.ring_), live_(std::exchange(other.live_, false)) {}
  Ring& operator=(Ring&&) = delete;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring();

  // A zeroed submission entry whose completion is `done` (null: the result is dropped).
  // Fill it with io_uring_prep_*, which keep user_data: call prepare() with the filling function.
  template <class Fill>
  void prepare(Completion* done, Fill&& fill) {
    io_uring_sqe* sqe = next_entry();
    std::forward<Fill>(fill)(sqe);
    io_uring_sqe_set_data(sqe, done);
  }

  // Submits what is prepared, waits for at least one completion (`wait`), runs those that are ready
  // then, and submits between them what they prepare. Returns how many ran.
  Result<unsigned> run_once(bool wait);
  // Hands prepared entries to the kernel without running completions.
  Status submit();
  // Asks the kernel to cancel the operation of `target`; its completion still runs, with
  // -ECANCELED.
  void cancel(Completion* target);

  io_uring* raw() { return &ring_; }

 private:
  Ring() = default;
  io_uring_sqe* next_entry();

  io_uring ring_{};
  bool live_ = false;
};

}  // namespace kvmem::os
