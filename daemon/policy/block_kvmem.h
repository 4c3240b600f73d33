// The policy of kvmem: blocks stay by what is expected of them, learned from the requests
// themselves.
//
// A request's path is cut into *pieces*, runs of blocks of one kind: blocks never seen before,
// blocks asked for two times, three, four, five, six to ten ... , the partial block at the end. The
// last request that asked for a block owns it. A piece is given up from its end, and only where no
// resident block follows; a new request's own pieces compete with all others, so what is not worth
// it is not admitted. Which piece loses its last block is one of three rules:
//
//   returns   the least rate of returns expected (block_return.h), learned online
//   counts    the least τ·min(times asked for − 1, 6) − age, τ the mean time until a return
//   recency   the oldest
//
// Each rule has a shadow, the keys it would hold by itself. What is resident goes by `counts` at
// first, which needs no learning, and then by the rule whose shadow leads: whose prefix hits of
// late are more than those of the rule in use by more than chance would have it.
//
// Blocks that are gone are remembered as ghosts, run by run, 16 bytes each: whether they are asked
// for again is what is learned from.
//
//   new -> resident, in some of the sets (the real one and the shadows) -> ghost -> forgotten
//             ^                                                              |
//             +------------------------- asked for again --------------------+
//
// Ghosts are forgotten, oldest piece first, beyond 16 x capacity + 262,144 blocks, or as many
// pieces.
#pragma once

#include <cstddef>
#include <memory>

#include "policy/block_policy.h"

namespace kvmem::policy {

std::unique_ptr<BlockPolicy> make_kvmem(std::size_t capacity_blocks);

}  // namespace kvmem::policy
