#include "policy/block_policy.h"

#include <limits>

#include "policy/block_kvmem.h"
#include "policy/block_plain.h"

namespace kvmem::policy {

double BlockPolicy::next_to_go(std::uint64_t /*time_ms*/) {
  return resident_blocks() > 0 ? 0 : std::numeric_limits<double>::infinity();
}

std::unique_ptr<BlockPolicy> make_block_policy(std::string_view name, std::size_t capacity_blocks) {
  if (name == "kvmem") return make_kvmem(capacity_blocks);
  if (name == "lru") return make_lru(capacity_blocks);
  if (name == "lfu-da") return make_lfu_da(capacity_blocks);
  if (name == "arc") return make_arc(capacity_blocks);
  if (name == "s3fifo") return make_s3fifo(capacity_blocks);
  return nullptr;
}

std::string_view block_policy_names() { return "kvmem, lru, lfu-da, arc, s3fifo"; }

}  // namespace kvmem::policy
