// What the page store writes. Little-endian; every block is 4 KiB and begins with a BlockHead that
// says what it is, whose, where, and of which epoch, under a checksum of the whole block: a block
// that was torn, misdirected, left over or flipped is not valid().
//
// Pure functions on bytes; no I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tier/store.h"

namespace kvmem::tier::format {

inline constexpr std::size_t kBlockBytes = 4096;
inline constexpr unsigned kSlotsPerSegmentMax = 64;
inline constexpr std::uint32_t kVersion = 1;

struct Id {
  std::uint8_t bytes[16] = {};
  bool operator==(const Id&) const = default;
};

struct Geometry {
  std::uint64_t page_bytes = 0;
  std::uint32_t slots_per_segment = 0;

  std::uint64_t slot_bytes() const { return kBlockBytes + page_bytes; }
  std::uint64_t segment_bytes() const { return 2 * kBlockBytes + slots_per_segment * slot_bytes(); }
  std::uint64_t segment_offset(std::uint64_t segment) const {
    return 2 * kBlockBytes + segment * segment_bytes();
  }
  std::uint64_t index_offset(std::uint64_t segment) const {
    return segment_offset(segment) + kBlockBytes;
  }
  // `slot` counts through the whole store.
  std::uint64_t slot_offset(std::uint64_t slot) const {
    return segment_offset(slot / slots_per_segment) + 2 * kBlockBytes +
           slot % slots_per_segment * slot_bytes();
  }
  // Whole segments in a file of that size.
  std::uint64_t segments_in(std::uint64_t file_bytes) const {
    return file_bytes < 2 * kBlockBytes ? 0 : (file_bytes - 2 * kBlockBytes) / segment_bytes();
  }
};

// Eight letters each, so that a hex dump explains itself.
enum class Magic : std::uint64_t {
  kSuperblock = 0x315055534d454d56,  // "VMEMSUP1"
  kSegment = 0x314745534d454d56,     // "VMEMSEG1"
  kIndex = 0x315844494d454d56,       // "VMEMIDX1"
  kRecord = 0x314345524d454d56,      // "VMEMREC1"
};

struct BlockHead {
  Magic magic;
  std::uint64_t checksum;  // XXH3-64 of the block with this field zero
  std::uint64_t offset;    // where on the device this block belongs
  Id store;
  std::uint64_t epoch;  // the store's (superblock) or the segment's (all else)
};
static_assert(sizeof(BlockHead) == 48);

struct Superblock {
  BlockHead head;
  std::uint32_t version;
  std::uint32_t slots_per_segment;
  std::uint64_t page_bytes;
  Id boot;                   // the host's boot in which this was written
  std::uint64_t boot_epoch;  // the store's epoch when it was first opened in that boot
};

struct SegmentHeader {
  BlockHead head;
  std::uint64_t kind;  // RecordKind: which records it was opened for
};

struct IndexEntry {
  Key key;
  std::uint64_t generation;
  std::uint64_t used;  // 1: a persistent record is in this slot
};

struct Index {
  BlockHead head;
  IndexEntry entries[kSlotsPerSegmentMax];
};

enum class Codec : std::uint16_t { kRaw = 0 };

struct PageChecksum {
  std::uint64_t lo = 0;
  std::uint64_t hi = 0;
  bool operator==(const PageChecksum&) const = default;
};

struct RecordHeader {
  BlockHead head;
  Key key;
  std::uint64_t generation;
  std::uint16_t kind;
  Codec codec;
  std::uint32_t reserved;
  std::uint64_t store_epoch;  // when it was written: tells an ephemeral record of an earlier boot
  std::uint64_t raw_bytes;
  std::uint64_t stored_bytes;
  PageChecksum checksum;  // XXH3-128 of the stored bytes
};

// A block of type T in a 4 KiB buffer.
template <class T>
T* as(void* block) {
  static_assert(sizeof(T) <= kBlockBytes);
  return static_cast<T*>(block);
}
template <class T>
const T* as(const void* block) {
  static_assert(sizeof(T) <= kBlockBytes);
  return static_cast<const T*>(block);
}

// Zeroes the block and sets all of the head but the checksum.
void begin_block(void* block, Magic magic, const Id& store, std::uint64_t offset,
                 std::uint64_t epoch);
// Sets the checksum: the last step before the block is written.
void finish_block(void* block);
// The block is whole, of this type, and belongs there. Whose and of which epoch is for the caller.
bool valid(const void* block, Magic magic, std::uint64_t offset);
bool all_zero(const void* bytes, std::size_t size_bytes);

PageChecksum checksum_page(const void* page, std::size_t size_bytes);

}  // namespace kvmem::tier::format
