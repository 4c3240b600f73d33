// The block cache on the wire: what engine and daemon share beside their messages.
//
// A connection of its own, without Hello:
//   engine: CacheOpen{identity, size_bytes}  -> Reply{size_bytes, page_count} + [blocks, exchange]
//   engine: CacheContains{page_count}        -> Reply{page_count}
//   engine: CacheBegin{page_count, ...}      -> Reply{page_count, region_id, first_page}, once all
//                                               are there; first_page: how many had to be read
//   engine: CacheBegin{kMayCompute, ...}     -> Reply{page_count, region_id, first_page}, at once:
//                                               blocks that are not in DRAM have kNoCacheSlot, and
//                                               the engine computes those before first_page
//   engine: CacheWait{region_id}             -> Reply{page_count, first_page}, as Begin's without
//                                               kMayCompute; kNoCacheSlot: the engine computes it
//   engine: CacheEnd{region_id}              (no reply)
//   engine: CacheComputed{...}               (no reply)
//   engine: CachePut                         -> Reply, once the bytes are copied
//
// `blocks` is memory the engine can only read: slots of cache_slot_bytes(size_bytes) each, filled
// by the daemon, the same for all of the user's connections with blocks of that size. `exchange` is
// the connection's own, readable and writable:
//   [0, kSlotsOffset)                   names, at most kCacheNamesMax: of the request (Contains,
//                                       Begin), or one, of the block (Put)
//   [kSlotsOffset, kStagingOffset)      Begin's answer: the slot of each block that it leases
//   [kStagingOffset, + size_bytes)      the bytes of Put
// The daemon copies what it uses before it looks at it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/page.h"

namespace kvmem::wire {

// Stands for all tokens from the start of the prompt to the block's end.
struct BlockName {
  std::uint64_t hi = 0;
  std::uint64_t lo = 0;
  bool operator==(const BlockName&) const = default;
};

inline constexpr std::uint64_t kCacheNamesMax = std::uint64_t{1} << 14;
inline constexpr std::uint32_t kNoCacheSlot = UINT32_MAX;
inline constexpr std::uint64_t kCacheBlockBytesMax = std::uint64_t{64} << 20;
inline constexpr std::size_t kCacheSlotsOffset = kCacheNamesMax * sizeof(BlockName);
inline constexpr std::size_t kCacheStagingOffset =
    align_up(kCacheSlotsOffset + kCacheNamesMax * sizeof(std::uint32_t), kPageBytes);

constexpr std::uint64_t cache_slot_bytes(std::uint64_t block_bytes) {
  return align_up(block_bytes, kPageBytes);
}
constexpr std::size_t cache_exchange_bytes(std::uint64_t block_bytes) {
  return kCacheStagingOffset + cache_slot_bytes(block_bytes);
}

}  // namespace kvmem::wire
