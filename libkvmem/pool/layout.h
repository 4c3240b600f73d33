// Where the KV cache of many sequences lies, as addresses that never change. Pure arithmetic.
//
// Each sequence has a row: addresses for its longest length, of which only pages that its tokens
// have reached need memory. Keys and values of a layer are one strided tensor over all rows,
// [sequence, token, head, element], elements of a head next to each other.
//
//   packed     a token's keys and values of all layers lie together, and tokens follow each other.
//              A sequence grows by one page, whatever the number of layers, and wastes half a page
//              on average. A layer's tokens are token_bytes() apart.
//
//   per layer  each layer's keys, and each layer's values, are planes of their own. Tokens of a
//              layer are next to each other, which kernels read fastest, but a sequence grows by a
//              page in each plane.
//
// Sizes in bytes. A page is what the backing maps at once (2 MiB, or less where the driver grants
// it), a power of two.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/page.h"

namespace kvmem::pool {

enum class Layout : std::uint32_t { kPerLayer = 0, kPacked = 1 };

struct Geometry {
  std::uint32_t layers = 0;
  std::uint32_t kv_heads = 0;  // of this rank
  std::uint32_t head_dim = 0;
  std::uint32_t element_bytes = 0;
  std::uint64_t tokens_max = 0;  // of a sequence
  std::uint64_t sequences_max = 0;
  std::uint64_t page_bytes = kPageBytes;
  Layout layout = Layout::kPacked;

  // Null, or what is wrong with it.
  const char* fault() const;

  constexpr std::uint64_t head_bytes() const { return std::uint64_t{head_dim} * element_bytes; }
  // Of a token's keys, or values, in one layer.
  constexpr std::uint64_t plane_token_bytes() const { return kv_heads * head_bytes(); }
  constexpr std::uint64_t token_bytes() const { return 2ULL * layers * plane_token_bytes(); }
  constexpr std::uint32_t planes() const { return layout == Layout::kPacked ? 1 : 2 * layers; }
  // Between tokens in a plane, between rows in a plane, between planes.
  constexpr std::uint64_t token_stride() const {
    return layout == Layout::kPacked ? token_bytes() : plane_token_bytes();
  }
  constexpr std::uint64_t row_bytes() const {
    return align_up(tokens_max * token_stride(), page_bytes);
  }
  constexpr std::uint64_t plane_bytes() const { return sequences_max * row_bytes(); }
  constexpr std::uint64_t pool_bytes() const { return planes() * plane_bytes(); }

  // Pages of a row that `tokens` tokens reach, in each plane.
  constexpr std::uint64_t row_pages(std::uint64_t tokens) const {
    return (tokens * token_stride() + page_bytes - 1) / page_bytes;
  }
  constexpr std::uint64_t allocated_bytes(std::uint64_t tokens) const {
    return planes() * row_pages(tokens) * page_bytes;
  }
  // What a sequence grows by.
  constexpr std::uint64_t growth_bytes() const { return planes() * page_bytes; }
};

// A layer's keys or values, of all sequences.
struct View {
  std::uint64_t offset = 0;  // of sequence 0, token 0, head 0, from the pool's start
  std::uint64_t sequence_stride = 0;
  std::uint64_t token_stride = 0;
  std::uint64_t head_stride = 0;
};
// REQUIRES: layer < layers.
View view_of(const Geometry& geometry, std::uint32_t layer, bool is_value);

}  // namespace kvmem::pool
