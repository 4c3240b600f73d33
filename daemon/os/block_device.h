// BlockDevice: where the page store's bytes go. The seam at which tests put a simulated disk.
//
// Every call is asynchronous and belongs to the loop's thread. A BlockIo is caller-owned and, with
// the memory its iovecs name, belongs to the device until its `run` is called with the bytes moved
// or -errno. `run` is never called from inside the call that started the operation. Reads and
// writes may be short; offsets, lengths and addresses are multiples of kOsPageBytes.
// Nothing is ordered but by completion: what must come after is started after.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "os/ring.h"

namespace kvmem::os {

struct BlockIo : Completion {
  std::uint64_t offset = 0;
  iovec parts[2] = {};
  unsigned part_count = 0;

  std::uint64_t size_bytes() const {
    std::uint64_t sum = 0;
    for (unsigned i = 0; i < part_count; ++i) sum += parts[i].iov_len;
    return sum;
  }
};

class BlockDevice {
 public:
  virtual ~BlockDevice() = default;
  // As found at open; a regular file grows by reserve().
  virtual std::uint64_t size_bytes() const = 0;
  // False for a disk or partition, whose size is what it is.
  virtual bool grows() const = 0;
  virtual void read(BlockIo* io) = 0;
  virtual void write(BlockIo* io) = 0;
  // Everything whose write completed before this call is on stable storage when it succeeds. A
  // failure is reported once: a later success says nothing about what the failed one covered.
  virtual void sync(BlockIo* io) = 0;
  // Makes [io->offset, io->offset + size_bytes) exist and have space; -ENOSPC when there is none.
  virtual void reserve(BlockIo* io, std::uint64_t size_bytes) = 0;
  // Blocks until at least one completion has run. For start-up and shutdown only.
  virtual Status wait() = 0;
};

struct BlockFileOptions {
  // How long to wait for the lock: the kernel may still be ending the I/O of a killed daemon.
  unsigned lock_wait_ms = 5000;
};

// A regular file (created 0600 if absent) or a block device, opened O_DIRECT where it can be and
// locked for this process. REQUIRES: ring outlives the device, which has nothing in flight when it
// is destroyed.
// kBusy: another process holds it. kInvalid: neither file nor block device. kErrno: the call named.
Result<std::unique_ptr<BlockDevice>> open_block_file(Ring& ring, const std::string& path,
                                                     const BlockFileOptions& options = {});

}  // namespace kvmem::os
