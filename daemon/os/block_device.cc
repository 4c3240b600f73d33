#include "os/block_device.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/unique_handle.h"

namespace kvmem::os {

namespace {

class BlockFile final : public BlockDevice {
 public:
  BlockFile(Ring& ring, UniqueFd fd, std::uint64_t size_bytes, bool grows)
      : ring_(ring), fd_(std::move(fd)), size_bytes_(size_bytes), grows_(grows) {}

  std::uint64_t size_bytes() const override { return size_bytes_; }
  bool grows() const override { return grows_; }

  void read(BlockIo* io) override {
    ring_.prepare(io, [&](io_uring_sqe* sqe) {
      io_uring_prep_readv(sqe, fd_.get(), io->parts, io->part_count, io->offset);
    });
  }
  void write(BlockIo* io) override {
    ring_.prepare(io, [&](io_uring_sqe* sqe) {
      io_uring_prep_writev(sqe, fd_.get(), io->parts, io->part_count, io->offset);
    });
  }
  void sync(BlockIo* io) override {
    ring_.prepare(
        io, [&](io_uring_sqe* sqe) { io_uring_prep_fsync(sqe, fd_.get(), IORING_FSYNC_DATASYNC); });
  }
  void reserve(BlockIo* io, std::uint64_t size_bytes) override {
    ring_.prepare(io, [&](io_uring_sqe* sqe) {
      io_uring_prep_fallocate(sqe, fd_.get(), 0, static_cast<off_t>(io->offset),
                              static_cast<off_t>(size_bytes));
    });
  }
  Status wait() override {
    Result<unsigned> ran = ring_.run_once(true);
    return ran.ok() ? Status{} : ran.status();
  }

 private:
  Ring& ring_;
  UniqueFd fd_;  // its lock goes with it
  const std::uint64_t size_bytes_;
  const bool grows_;
};

Status lock(int fd, unsigned wait_ms) {
  for (unsigned waited_ms = 0;; waited_ms += 10) {
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return {};
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) return Status::from_errno("flock");
    if (waited_ms >= wait_ms) {
      return {Code::kBusy, "store: in use by another kvmemd; stop that one or name another path"};
    }
    const timespec pause{0, 10'000'000};
    ::nanosleep(&pause, nullptr);
  }
}

}  // namespace

Result<std::unique_ptr<BlockDevice>> open_block_file(Ring& ring, const std::string& path,
                                                     const BlockFileOptions& options) {
  // O_NONBLOCK: never hang on a fifo that somebody put there.
  const int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK;
  UniqueFd fd(::open(path.c_str(), flags | O_DIRECT, 0600));
  // Some file systems know no O_DIRECT; through the page cache the store is slower, not less safe.
  if (!fd && errno == EINVAL) fd.reset(::open(path.c_str(), flags, 0600));
  if (!fd) return Status::from_errno("open store");
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return Status::from_errno("fstat store");
  const bool is_file = S_ISREG(info.st_mode);
  if (!is_file && !S_ISBLK(info.st_mode)) {
    return Status(Code::kInvalid, "store: neither a file nor a block device; name another path");
  }
  KV_TRY(lock(fd.get(), options.lock_wait_ms));
  // After the lock: whoever had it may have made the file longer.
  std::uint64_t size_bytes = 0;
  if (is_file) {
    if (::fstat(fd.get(), &info) != 0) return Status::from_errno("fstat store");
    size_bytes = static_cast<std::uint64_t>(info.st_size);
  } else if (::ioctl(fd.get(), BLKGETSIZE64, &size_bytes) != 0) {
    return Status::from_errno("BLKGETSIZE64");
  }
  return std::unique_ptr<BlockDevice>(new BlockFile(ring, std::move(fd), size_bytes, is_file));
}

}  // namespace kvmem::os
