// Where KV lies: every element has a place of its own, and a row's pages are those its tokens
// reach.
#include <gtest/gtest.h>

#include <set>

#include "pool/layout.h"

namespace kvmem::pool {
namespace {

Geometry small(Layout layout) {
  return {.layers = 3,
          .kv_heads = 5,
          .head_dim = 7,
          .element_bytes = 2,
          .tokens_max = 300,
          .sequences_max = 2,
          .page_bytes = 4096,
          .layout = layout};
}

TEST(PoolLayout, EveryElementHasAPlaceOfItsOwn) {
  for (const Layout layout : {Layout::kPacked, Layout::kPerLayer}) {
    const Geometry g = small(layout);
    ASSERT_EQ(g.fault(), nullptr);
    std::set<std::uint64_t> places;
    for (std::uint32_t layer = 0; layer < g.layers; ++layer) {
      for (const bool is_value : {false, true}) {
        const View view = view_of(g, layer, is_value);
        for (std::uint64_t s = 0; s < g.sequences_max; ++s) {
          for (std::uint64_t t = 0; t < g.tokens_max; ++t) {
            for (std::uint64_t h = 0; h < g.kv_heads; ++h) {
              for (std::uint64_t e = 0; e < g.head_dim; ++e) {
                const std::uint64_t at = view.offset + s * view.sequence_stride +
                                         t * view.token_stride + h * view.head_stride +
                                         e * g.element_bytes;
                ASSERT_LE(at + g.element_bytes, g.pool_bytes());
                ASSERT_EQ(at % g.element_bytes, 0U);
                ASSERT_TRUE(places.insert(at).second) << at;
              }
            }
          }
        }
      }
    }
    EXPECT_EQ(places.size() * g.element_bytes, g.sequences_max * g.tokens_max * g.token_bytes());
  }
}

TEST(PoolLayout, ARowsPagesAreThoseItsTokensReach) {
  for (const Layout layout : {Layout::kPacked, Layout::kPerLayer}) {
    const Geometry g = small(layout);
    for (const std::uint64_t tokens : {0, 1, 9, 10, 58, 59, 117, 299, 300}) {
      std::set<std::uint64_t> pages;
      for (std::uint32_t layer = 0; layer < g.layers; ++layer) {
        for (const bool is_value : {false, true}) {
          const View view = view_of(g, layer, is_value);
          for (std::uint64_t t = 0; t < tokens; ++t) {
            const std::uint64_t at = view.offset + view.sequence_stride + t * view.token_stride;
            pages.insert(at / g.page_bytes);
            pages.insert((at + g.plane_token_bytes() - 1) / g.page_bytes);
          }
        }
      }
      EXPECT_EQ(pages.size() * g.page_bytes, g.allocated_bytes(tokens)) << tokens;
      // In each plane from the row's start, without a gap.
      for (std::uint32_t plane = 0; plane < g.planes(); ++plane) {
        for (std::uint64_t n = 0; n < g.row_pages(tokens); ++n) {
          const std::uint64_t at = plane * g.plane_bytes() + g.row_bytes() + n * g.page_bytes;
          EXPECT_TRUE(pages.contains(at / g.page_bytes));
        }
      }
    }
  }
}

TEST(PoolLayout, APackedSequenceGrowsByAPage) {
  Geometry g{.layers = 32,
             .kv_heads = 8,
             .head_dim = 128,
             .element_bytes = 2,
             .tokens_max = 131072,
             .sequences_max = 256};
  EXPECT_EQ(g.token_bytes(), 131072U);
  EXPECT_EQ(g.growth_bytes(), kPageBytes);
  EXPECT_EQ(g.allocated_bytes(16), kPageBytes);
  EXPECT_EQ(g.allocated_bytes(17), 2 * kPageBytes);
  g.layout = Layout::kPerLayer;
  EXPECT_EQ(g.growth_bytes(), 64 * kPageBytes);
  EXPECT_EQ(g.allocated_bytes(1024), 64 * kPageBytes);
  g.page_bytes = 65536;
  EXPECT_EQ(g.growth_bytes(), 4U << 20);
}

TEST(PoolLayout, WhatIsNoGeometryIsSaid) {
  const auto is_wrong = [](auto change) {
    Geometry g = small(Layout::kPacked);
    change(g);
    return g.fault() != nullptr;
  };
  EXPECT_FALSE(is_wrong([](Geometry&) {}));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.layers = 0; }));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.kv_heads = 0; }));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.head_dim = 0; }));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.element_bytes = 0; }));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.element_bytes = 9; }));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.tokens_max = 0; }));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.sequences_max = 0; }));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.page_bytes = 3 << 20; }));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.page_bytes = 0; }));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.layout = static_cast<Layout>(2); }));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.tokens_max = UINT64_MAX; }));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.sequences_max = std::uint64_t{1} << 40; }));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.layers = g.kv_heads = g.head_dim = UINT32_MAX; }));
  EXPECT_TRUE(is_wrong([](Geometry& g) { g.page_bytes = std::uint64_t{1} << 63; }));
}

}  // namespace
}  // namespace kvmem::pool
