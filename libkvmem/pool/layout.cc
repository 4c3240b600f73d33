#include "pool/layout.h"

#include <initializer_list>

namespace kvmem::pool {
namespace {

// Addresses that a process has: more is no geometry.
constexpr unsigned __int128 kPoolBytesMax = std::uint64_t{1} << 46;

}  // namespace

const char* Geometry::fault() const {
  if (layers == 0 || kv_heads == 0 || head_dim == 0)
    return "layers, heads and their size are at least 1";
  if (element_bytes == 0 || element_bytes > 8 || (element_bytes & (element_bytes - 1)) != 0) {
    return "elements have 1, 2, 4 or 8 bytes";
  }
  if (tokens_max == 0 || sequences_max == 0) return "there is at least one token and one sequence";
  if (page_bytes < kOsPageBytes || (page_bytes & (page_bytes - 1)) != 0) {
    return "pages are a power of two, of 4 KiB at least";
  }
  if (layout != Layout::kPacked && layout != Layout::kPerLayer) return "there is no such layout";
  constexpr std::uint32_t kCountMax = 1U << 20;
  if (layers > kCountMax || kv_heads > kCountMax || head_dim > kCountMax) {
    return "layers, heads and their size are at most 2^20";
  }
  // Step by step: none of them overflows.
  unsigned __int128 bytes = static_cast<unsigned __int128>(2) * layers * kv_heads * head_dim;
  bytes *= element_bytes;
  for (const std::uint64_t factor : {tokens_max, sequences_max}) {
    if (bytes > kPoolBytesMax || factor > kPoolBytesMax)
      return "a pool has at most 64 TiB of addresses";
    bytes *= factor;
  }
  bytes += static_cast<unsigned __int128>(planes()) * page_bytes * sequences_max;
  if (bytes > kPoolBytesMax) return "a pool has at most 64 TiB of addresses";
  return nullptr;
}

View view_of(const Geometry& g, std::uint32_t layer, bool is_value) {
  const std::uint64_t plane = 2ULL * layer + (is_value ? 1 : 0);
  View view;
  view.offset = plane * (g.layout == Layout::kPacked ? g.plane_token_bytes() : g.plane_bytes());
  view.sequence_stride = g.row_bytes();
  view.token_stride = g.token_stride();
  view.head_stride = g.head_bytes();
  return view;
}

}  // namespace kvmem::pool
