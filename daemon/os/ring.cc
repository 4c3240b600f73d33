#include "os/ring.h"

#include "base/check.h"

namespace kvmem::os {

namespace {

// Prepared entries that are worth a system call of their own.
constexpr unsigned kSubmitEarly = 2;

}  // namespace

Result<Ring> Ring::create(unsigned entries) {
  Ring ring;
  io_uring_params params{};
  params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL;
  int error = io_uring_queue_init_params(entries, &ring.ring_, &params);
  if (error == -EINVAL) {  // before 6.1: without deferred task work
    params = {};
    error = io_uring_queue_init_params(entries, &ring.ring_, &params);
  }
  if (error < 0) return Status::from_errno("io_uring_setup", -error);
  ring.live_ = true;
  return ring;
}

Ring::~Ring() {
  if (live_) io_uring_queue_exit(&ring_);
}

io_uring_sqe* Ring::next_entry() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  for (int tries = 0; sqe == nullptr && tries < 1000; ++tries) {
    // EBUSY/EAGAIN: the completion queue is full; the kernel keeps the overflow.
    (void)io_uring_submit(&ring_);
    sqe = io_uring_get_sqe(&ring_);
  }
  KV_CHECK(sqe != nullptr);
  return sqe;
}

Status Ring::submit() {
  int submitted = io_uring_submit(&ring_);
  if (submitted < 0 && submitted != -EINTR && submitted != -EAGAIN && submitted != -EBUSY) {
    return Status::from_errno("io_uring_enter", -submitted);
  }
  return {};
}

Result<unsigned> Ring::run_once(bool wait) {
  int result = wait ? io_uring_submit_and_wait(&ring_, 1) : io_uring_submit_and_get_events(&ring_);
  if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY) {
    return Status::from_errno("io_uring_enter", -result);
  }
  unsigned ran = 0;
  io_uring_cqe* cqe = nullptr;
  // What was ready on entry: what completes while it is handled is the next turn's.
  for (unsigned left = io_uring_cq_ready(&ring_); left > 0 && io_uring_peek_cqe(&ring_, &cqe) == 0;
       --left) {
    auto* done = static_cast<Completion*>(io_uring_cqe_get_data(cqe));
    const int res = cqe->res;
    const std::uint32_t flags = cqe->flags;
    io_uring_cqe_seen(&ring_, cqe);  // before run(), which may submit and reap no more
    if (done != nullptr) done->run(done, res, flags);
    ++ran;
    // A device shall not stand still until the last of many completions has been handled. What the
    // kernel does not take now, the next turn submits.
    if (io_uring_sq_ready(&ring_) >= kSubmitEarly) (void)io_uring_submit(&ring_);
  }
  return ran;
}

void Ring::cancel(Completion* target) {
  prepare(nullptr, [&](io_uring_sqe* sqe) { io_uring_prep_cancel(sqe, target, 0); });
}

}  // namespace kvmem::os
