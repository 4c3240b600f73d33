// The well-known policies, to compare with: each block for itself, those of a request touched tail
// first, so that a suffix goes before its prefix.
//
//   lru     least recently used
//   lfu-da  least frequently used with dynamic aging: priority = uses while resident + the priority
//           of the last block evicted (Arlitt et al., 2000); ties: the least recently used
//   arc     Megiddo and Modha, FAST 2003
//   s3fifo  Yang et al., SOSP 2023: a small queue of a tenth, blocks used again while in it move
//   on;
//           counts up to 3; as many ghosts as the main queue may hold
#pragma once

#include <cstddef>
#include <memory>

#include "policy/block_policy.h"

namespace kvmem::policy {

std::unique_ptr<BlockPolicy> make_lru(std::size_t capacity_blocks);
std::unique_ptr<BlockPolicy> make_lfu_da(std::size_t capacity_blocks);
std::unique_ptr<BlockPolicy> make_arc(std::size_t capacity_blocks);
std::unique_ptr<BlockPolicy> make_s3fifo(std::size_t capacity_blocks);

}  // namespace kvmem::policy
