// Opening a store: which superblock counts, what the segments hold, and the claim on the device by
// a new epoch.
#include <sys/random.h>

#include <algorithm>
#include <new>

#include "base/check.h"
#include "tier/store_impl.h"

namespace kvmem::tier {

namespace {

using format::kBlockBytes;

constexpr unsigned kScanDepth = 64;

// Reads many places, kScanDepth at a time, and hands each to `consume(number, bytes, error,
// again)`. `offset_of(number)` says where. consume() returns false to have the place read again,
// once: then `again` is true.
template <class OffsetOf, class Consume>
class Scan {
 public:
  Scan(os::BlockDevice& device, std::uint64_t count, std::size_t blocks, OffsetOf offset_of,
       Consume consume)
      : device_(device), count_(count), blocks_(blocks), offset_of_(offset_of), consume_(consume) {}

  Status run() {
    const auto depth = static_cast<unsigned>(std::min<std::uint64_t>(kScanDepth, count_));
    if (depth == 0) return {};
    BlockBuffer memory = allocate_blocks(depth * blocks_);
    if (memory == nullptr) return {Code::kNoMemory, "store: recovery buffers"};
    for (unsigned i = 0; i < depth; ++i) {
      reads_[i].scan = this;
      reads_[i].run = &Scan::on_read;
      reads_[i].memory = static_cast<char*>(memory.get()) + i * blocks_ * kBlockBytes;
      start(reads_[i]);
    }
    while (finished_ < count_) {
      Status status = device_.wait();
      if (status.ok()) continue;
      (void)memory.release();  // the device still has it
      return status;
    }
    return {};
  }

 private:
  struct Read : os::BlockIo {
    Scan* scan = nullptr;
    std::uint64_t number = 0;
    bool again = false;
    void* memory = nullptr;
  };

  void start(Read& read) {
    if (next_ == count_) return;
    read.number = next_++;
    read.again = false;
    read.offset = offset_of_(read.number);
    read.parts[0] = {read.memory, blocks_ * kBlockBytes};
    read.part_count = 1;
    device_.read(&read);
  }

  static void on_read(os::Completion* self, int result, std::uint32_t /*flags*/) {
    auto* read = static_cast<Read*>(self);
    Scan& scan = *read->scan;
    const std::size_t size_bytes = scan.blocks_ * kBlockBytes;
    const std::size_t got = result < 0 ? 0 : std::min<std::size_t>(size_bytes, result);
    // Beyond the end of the file is nothing, which will not verify. Short of it is an error.
    const bool cut = result >= 0 && got < size_bytes;
    const bool beyond = read->offset + size_bytes > scan.device_.size_bytes();
    std::memset(static_cast<char*>(read->memory) + got, 0, size_bytes - got);
    const int error = result < 0 ? -result : cut && !beyond ? EIO : 0;
    if (!scan.consume_(read->number, read->memory, error, read->again) && !read->again) {
      read->again = true;
      scan.device_.read(read);
      return;
    }
    ++scan.finished_;
    scan.start(*read);
  }

  os::BlockDevice& device_;
  const std::uint64_t count_;
  const std::size_t blocks_;
  OffsetOf offset_of_;
  Consume consume_;
  std::uint64_t next_ = 0;
  std::uint64_t finished_ = 0;
  Read reads_[kScanDepth];
};

struct BlockingIo : os::BlockIo {
  int result = 0;
  bool finished = false;
};

void note_result(os::Completion* self, int result, std::uint32_t /*flags*/) {
  auto* io = static_cast<BlockingIo*>(self);
  io->result = result;
  io->finished = true;
}

// Starts an operation and waits for it; -errno as a Status, a short transfer as EIO.
template <class Start>
Status run_blocking(os::BlockDevice& device, BlockingIo& io, const char* what, Start start) {
  io.run = &note_result;
  io.finished = false;
  start(&io);
  while (!io.finished) KV_TRY(device.wait());
  if (io.result < 0) return Status::from_errno(what, -io.result);
  return {};
}

format::Id boot_of(const StoreOptions& options) {
  format::Id boot;
  std::memcpy(boot.bytes, options.boot_id, sizeof boot.bytes);
  return boot;
}

}  // namespace

Status Store::Impl::open() {
  if (options.page_bytes == 0 || !is_aligned(options.page_bytes, kBlockBytes) ||
      options.page_bytes > (1U << 30) || options.slots_per_segment < 1 ||
      options.slots_per_segment > format::kSlotsPerSegmentMax || options.inflight_max < 1) {
    return {Code::kInvalid, "store: impossible options"};
  }
  geometry = {options.page_bytes, options.slots_per_segment};
  open_block = allocate_blocks(2);
  seal_block = allocate_blocks(1);
  header_memory = allocate_blocks(options.inflight_max);
  if (open_block == nullptr || seal_block == nullptr || header_memory == nullptr) {
    return {Code::kNoMemory, "store: block buffers"};
  }
  try {
    headers.reserve(options.inflight_max);
  } catch (const std::bad_alloc&) {
    return {Code::kNoMemory, "store: block buffers"};
  }
  for (std::uint32_t i = 0; i < options.inflight_max; ++i) {
    headers.push_back(static_cast<char*>(header_memory.get()) + i * kBlockBytes);
  }

  bool blank = false;
  int newest = 0;  // the copy that counts
  KV_TRY(read_superblocks(&blank, &newest));
  // Of a file, also the segment that its end cuts: a file system may have no fallocate.
  const std::uint64_t file_bytes = device->size_bytes();
  std::uint64_t present = geometry.segments_in(file_bytes);
  if (device->grows() && geometry.segment_offset(present) < file_bytes) ++present;
  std::uint64_t usable =
      options.capacity_bytes == 0 ? present : geometry.segments_in(options.capacity_bytes);
  if (!device->grows()) usable = std::min(usable, present);
  KV_ASSIGN_OR_RETURN(
      table, StoreTable::create(std::max(present, usable), usable, geometry.slots_per_segment));
  if (blank) {
    if (::getrandom(id.bytes, sizeof id.bytes, 0) != sizeof id.bytes) {
      return Status::from_errno("getrandom");
    }
    if (device->grows()) {
      BlockingIo io;
      KV_TRY(run_blocking(*device, io, "store: reserve superblocks", [&](os::BlockIo* b) {
        b->offset = 0;
        device->reserve(b, 2 * kBlockBytes);
      }));
    }
    table.finish_recovery(device->grows() ? 0 : present);
  } else {
    KV_TRY(recover(present));
  }
  // Everybody's from here on: older epochs are history. The sync also makes durable what a killed
  // predecessor had written and we found.
  ++store_epoch;
  if (boot_epoch == kNoEpoch) boot_epoch = store_epoch;
  KV_TRY(write_superblock(blank ? 0 : 1 - newest));
  if (!blank) return {};
  // A new store gets both before it holds anything, so that losing one never looks like a blank
  // disk.
  ++store_epoch;
  return write_superblock(1);
}

Status Store::Impl::read_superblocks(bool* blank, int* newest) {
  *blank = device->size_bytes() == 0;
  if (*blank) return {};
  BlockBuffer blocks = allocate_blocks(2);
  if (blocks == nullptr) return {Code::kNoMemory, "store: block buffers"};
  const auto* bytes = static_cast<const char*>(blocks.get());

  // One by one: a superblock that cannot be read does not take the other with it.
  Status read_error;
  for (int copy : {0, 1}) {
    BlockingIo io;
    io.offset = static_cast<std::uint64_t>(copy) * kBlockBytes;
    io.parts[0] = {static_cast<char*>(blocks.get()) + io.offset, kBlockBytes};
    io.part_count = 1;
    Status status;
    for (int attempt = 0; attempt < 2; ++attempt) {
      status = run_blocking(*device, io, "store: read superblock",
                            [&](os::BlockIo* b) { device->read(b); });
      if (!io.finished) {
        (void)blocks.release();  // the device still has it
        return status;
      }
      if (format::valid(io.parts[0].iov_base, format::Magic::kSuperblock, io.offset)) break;
    }
    if (!status.ok()) read_error = status;
  }

  const format::Superblock* best = nullptr;
  for (int copy : {0, 1}) {
    const std::uint64_t offset = static_cast<std::uint64_t>(copy) * kBlockBytes;
    const auto* superblock = format::as<format::Superblock>(bytes + offset);
    if (!format::valid(superblock, format::Magic::kSuperblock, offset)) continue;
    if (best != nullptr && best->head.epoch >= superblock->head.epoch) continue;
    best = superblock;
    *newest = copy;
  }
  if (best == nullptr) {
    if (!read_error.ok()) return read_error;
    bool zero = true;
    bool ours = true;  // superblocks cut short, or nothing
    for (int copy : {0, 1}) {
      const char* block = bytes + static_cast<std::size_t>(copy) * kBlockBytes;
      const bool empty = format::all_zero(block, kBlockBytes);
      zero = zero && empty;
      ours = ours &&
             (empty || format::as<format::BlockHead>(block)->magic == format::Magic::kSuperblock);
    }
    // A file no longer than the superblocks never held a record: its creation was cut short.
    const bool holds_nothing = device->grows() ? device->size_bytes() <= 2 * kBlockBytes : zero;
    *blank = holds_nothing && (device->grows() ? ours : zero);
    if (*blank) return {};
    if (ours && !zero) {
      return {Code::kCorrupt,
              "store: both superblocks are damaged; restore the file, or remove it (on a block "
              "device: zero its first 8 KiB) to start an empty store"};
    }
    return {Code::kInvalid,
            "store: not a kvmem store and not empty; name another path, or remove the file (on a "
            "block device: zero its first 8 KiB)"};
  }
  if (best->version != format::kVersion) {
    return {Code::kUnsupported, "store: made by another version of kvmem; name another path",
            static_cast<int>(best->version)};
  }
  if (best->page_bytes != geometry.page_bytes ||
      best->slots_per_segment != geometry.slots_per_segment) {
    return {Code::kInvalid,
            "store: made with another page or segment size; configure that, or name another path"};
  }
  id = best->head.store;
  store_epoch = best->head.epoch;
  const format::Id boot = boot_of(options);
  if (best->boot == boot && !(boot == format::Id{})) boot_epoch = best->boot_epoch;
  return {};
}

Status Store::Impl::recover(std::uint64_t segments) {
  std::vector<std::uint32_t> unsealed;
  auto read_segment = [&](std::uint64_t number, const void* blocks, int error, bool again) {
    const auto i = static_cast<std::uint32_t>(number);
    const void* index_block = static_cast<const char*>(blocks) + kBlockBytes;
    if (error != 0 && !again) return false;
    if (error != 0) {  // it may hold records: leave it alone
      table.recover_segment(i, SegmentState::kFailed, RecordKind::kEphemeral, 0);
      return true;
    }
    const auto* header = format::as<format::SegmentHeader>(blocks);
    if (!format::valid(blocks, format::Magic::kSegment, geometry.segment_offset(number)) ||
        !(header->head.store == id) || header->kind > 1) {
      return false;
    }
    const std::uint64_t epoch = header->head.epoch;
    // A superblock may have been lost: no epoch is ever given twice.
    store_epoch = std::max(store_epoch, epoch >> 32);
    const auto kind = static_cast<RecordKind>(header->kind);
    if (kind == RecordKind::kEphemeral && epoch >> 32 < boot_epoch) return true;
    const auto* index = format::as<format::Index>(index_block);
    const bool sealed =
        kind == RecordKind::kPersistent &&
        format::valid(index_block, format::Magic::kIndex, geometry.index_offset(number)) &&
        index->head.store == id && index->head.epoch == epoch;
    // Sealed either way: an index that could not be made out now may be readable the next time, and
    // must be voided before slots change. Only ephemeral segments never have one.
    const bool may_have_index = kind == RecordKind::kPersistent;
    table.recover_segment(i, may_have_index ? SegmentState::kSealed : SegmentState::kOpen, kind,
                          epoch);
    if (!sealed) {
      unsealed.push_back(i);
      return true;
    }
    for (std::uint32_t k = 0; k < geometry.slots_per_segment; ++k) {
      const format::IndexEntry& entry = index->entries[k];
      if (entry.used != 1) continue;
      table.recover_slot(table.first_slot(i) + k, entry.key, entry.generation,
                         RecordKind::kPersistent);
    }
    return true;
  };
  KV_TRY(Scan(
             *device, segments, 2, [&](std::uint64_t i) { return geometry.segment_offset(i); },
             read_segment)
             .run());

  auto slot_of = [&](std::uint64_t number) {
    return table.first_slot(unsealed[number / geometry.slots_per_segment]) +
           static_cast<std::uint32_t>(number % geometry.slots_per_segment);
  };
  auto read_header = [&](std::uint64_t number, const void* block, int error, bool again) {
    const std::uint32_t slot = slot_of(number);
    if (error != 0 && !again) return false;
    if (error != 0) {
      table.recover_retired(slot);
      return true;
    }
    const auto* header = format::as<format::RecordHeader>(block);
    if (!format::valid(block, format::Magic::kRecord, geometry.slot_offset(slot)) ||
        !(header->head.store == id) ||
        header->head.epoch != table.segment(table.segment_of(slot)).epoch || header->kind > 1 ||
        header->generation >> kGenerationBits != 0) {
      return false;
    }
    const auto kind = static_cast<RecordKind>(header->kind);
    if (kind == RecordKind::kPersistent || header->store_epoch >= boot_epoch) {
      table.recover_slot(slot, header->key, header->generation, kind);
    }
    return true;
  };
  KV_TRY(Scan(
             *device, unsealed.size() * geometry.slots_per_segment, 1,
             [&](std::uint64_t number) { return geometry.slot_offset(slot_of(number)); },
             read_header)
             .run());
  table.finish_recovery(segments);
  for (RecordKind kind : {RecordKind::kEphemeral, RecordKind::kPersistent}) {
    stats.recovered[static_cast<unsigned>(kind)] = table.live(kind);
  }
  return {};
}

Status Store::Impl::write_superblock(int copy) {
  const std::uint64_t offset = static_cast<std::uint64_t>(copy) * kBlockBytes;
  void* block = open_block.get();
  format::begin_block(block, format::Magic::kSuperblock, id, offset, store_epoch);
  auto* superblock = format::as<format::Superblock>(block);
  superblock->version = format::kVersion;
  superblock->slots_per_segment = geometry.slots_per_segment;
  superblock->page_bytes = geometry.page_bytes;
  superblock->boot = boot_of(options);
  superblock->boot_epoch = boot_epoch;
  format::finish_block(block);
  BlockingIo io;
  io.offset = offset;
  io.parts[0] = {block, kBlockBytes};
  io.part_count = 1;
  Status status = run_blocking(*device, io, "store: write superblock",
                               [&](os::BlockIo* b) { device->write(b); });
  if (!io.finished) (void)open_block.release();  // the device still has it
  KV_TRY(status);
  if (io.result != static_cast<int>(kBlockBytes)) {
    return Status::from_errno("store: write superblock", EIO);
  }
  return run_blocking(*device, io, "store: sync superblock",
                      [&](os::BlockIo* b) { device->sync(b); });
}

}  // namespace kvmem::tier
