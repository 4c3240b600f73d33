#include "os/fault_reader.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

namespace kvmem::os {
namespace {

constexpr int kBatchesMax = 16;  // a wake-up; then others get their turn

ssize_t read_without_waiting(int fd, uffd_msg* messages, std::size_t size_bytes) {
  iovec part{messages, size_bytes};
  const ssize_t n = ::preadv2(fd, &part, 1, -1, RWF_NOWAIT);
  if (n >= 0 || errno != EOPNOTSUPP) return n;
  // Before 6.9 only the descriptor's own flag tells the kernel. An engine that takes it back
  // between these two lines stops its daemon: give such users a daemon of their own.
  if ((::fcntl(fd, F_GETFL) & O_NONBLOCK) == 0) {
    errno = EBADF;
    return -1;
  }
  return ::read(fd, messages, size_bytes);
}

}  // namespace

void FaultReader::start(Ring& ring, int fd, void* owner, Ready ready, Stopped stopped) {
  KV_CHECK(state_ == State::kIdle);
  ring_ = &ring;
  fd_ = fd;
  owner_ = owner;
  ready_ = ready;
  stopped_ = stopped;
  dead_ = false;
  state_ = State::kReading;
  arm();
}

void FaultReader::stop() {
  if (state_ != State::kReading) return;
  state_ = State::kStopping;
  ring_->cancel(this);
}

void FaultReader::arm() {
  ring_->prepare(this, [&](io_uring_sqe* sqe) {
    if (dead_) {
      io_uring_prep_timeout(sqe, &never_, 0, 0);  // something for stop() to cancel
    } else {
      io_uring_prep_poll_add(sqe, fd_, POLLIN);
    }
  });
}

int FaultReader::read_batch(std::array<Fault, kBatch>& faults) {
  uffd_msg messages[kBatch];
  const ssize_t n = read_without_waiting(fd_, messages, sizeof messages);
  if (n < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
  int count = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(n) / sizeof messages[0]; ++i) {
    if (messages[i].event != UFFD_EVENT_PAGEFAULT) continue;
    const auto& fault = messages[i].arg.pagefault;
    faults[static_cast<std::size_t>(count++)] = {fault.address,
                                                 (fault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0,
                                                 (fault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0,
                                                 (fault.flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0};
  }
  return count;
}

void FaultReader::on_readable(Completion* self, int result, std::uint32_t /*flags*/) {
  auto* reader = static_cast<FaultReader*>(self);
  if (reader->state_ == State::kStopping) {
    reader->state_ = State::kIdle;
    reader->stopped_(reader->owner_);  // may destroy reader
    return;
  }
  // POLLERR: the engine made it block, or it is none of ours to read.
  if (result < 0 || (result & POLLERR) != 0) reader->dead_ = true;
  reader->arm();  // before `ready`, which may stop it
  std::array<Fault, kBatch> faults;
  for (int batch = 0; batch < kBatchesMax && reader->state_ == State::kReading && !reader->dead_;
       ++batch) {
    const int count = reader->read_batch(faults);
    if (count < 0) reader->dead_ = true;
    if (count <= 0) return;
    reader->ready_(reader->owner_, std::span(faults.data(), static_cast<std::size_t>(count)));
  }
}

}  // namespace kvmem::os
