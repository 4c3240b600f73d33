#include "tier/store_format.h"

#include <xxhash.h>
#if defined(__x86_64__)
// XXH3 by what the processor has (AVX2: 29 GB/s, AVX-512 the same) and not by what the distribution
// compiled for (SSE2: 19 GB/s).
#include <xxh_x86dispatch.h>
#endif

namespace kvmem::tier::format {

namespace {

std::uint64_t checksum_block(const void* block) {
  // Hashed around the checksum field, so that a block can be checked where it lies.
  constexpr std::size_t kField = offsetof(BlockHead, checksum);
  constexpr std::size_t kAfter = kField + sizeof(BlockHead::checksum);
  const auto* bytes = static_cast<const unsigned char*>(block);
  const XXH64_hash_t front = XXH3_64bits(bytes, kField);
  return XXH3_64bits_withSeed(bytes + kAfter, kBlockBytes - kAfter, front);
}

}  // namespace

void begin_block(void* block, Magic magic, const Id& store, std::uint64_t offset,
                 std::uint64_t epoch) {
  std::memset(block, 0, kBlockBytes);
  auto* head = as<BlockHead>(block);
  head->magic = magic;
  head->offset = offset;
  head->store = store;
  head->epoch = epoch;
}

void finish_block(void* block) { as<BlockHead>(block)->checksum = checksum_block(block); }

bool valid(const void* block, Magic magic, std::uint64_t offset) {
  const auto* head = as<BlockHead>(block);
  return head->magic == magic && head->offset == offset && head->checksum == checksum_block(block);
}

bool all_zero(const void* bytes, std::size_t size_bytes) {
  const auto* b = static_cast<const unsigned char*>(bytes);
  return size_bytes == 0 || (b[0] == 0 && std::memcmp(b, b + 1, size_bytes - 1) == 0);
}

PageChecksum checksum_page(const void* page, std::size_t size_bytes) {
  const XXH128_hash_t hash = XXH3_128bits(page, size_bytes);
  return {hash.low64, hash.high64};
}

}  // namespace kvmem::tier::format
