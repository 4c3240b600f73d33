// KV pools on the software driver: which bytes a sequence sees, what it costs, and what becomes of
// its memory when it is shared, cut, parked and closed.

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "pool/device_backing.h"
#include "pool/pool.h"
#include "tests/unit/device_fixture.h"

namespace kvmem::pool {
namespace {

// Packed, eight tokens are three pages: tokens straddle them.
Geometry geometry(Layout layout = Layout::kPacked) {
  Geometry g;
  g.layers = 2;
  g.kv_heads = 3;
  g.head_dim = layout == Layout::kPacked ? 16384 : 65536;
  g.element_bytes = 4;
  g.tokens_max = 32;
  g.sequences_max = 8;
  g.layout = layout;
  return g;
}

class Pool : public test::DeviceTest {
 protected:
  struct Setup {
    std::uint64_t pages_max = 1000;
    std::uint32_t idle = 0;
  };
  Owned<KvPool> make(const Geometry& g, const Setup& setup) {
    DevicePool::Options options;
    options.bytes_max = setup.pages_max * page();
    options.idle_low = options.idle_high = setup.idle;
    geometry_ = g;
    static constexpr DeviceBacking::Hooks kHooks{
        [](CUcontext context) {
          ++pauses_;
          if (is_busy_) return Status(Code::kBusy, "the engine captures a stream");
          return DeviceBacking::synchronize(context);
        },
        [] {},
        [](std::size_t size_bytes, const char*) {
          banked_ += size_bytes;
          return static_cast<unsigned char*>(std::malloc(size_bytes));
        },
        [](unsigned char* bank, std::size_t size_bytes) {
          banked_ -= size_bytes;
          std::free(bank);
        }};
    pauses_ = 0;
    banked_ = 0;
    is_busy_ = false;
    auto backing = DeviceBacking::create(cuda::PrimaryContext(0), pool(options),
                                         g.pool_bytes() / g.page_bytes, kHooks, "kv");
    EXPECT_TRUE(backing.ok());
    auto made = KvPool::create(g, *std::move(backing));
    EXPECT_TRUE(made.ok());
    return *std::move(made);
  }

  // One byte value for each token of a sequence, all of its keys and values.
  void put(const KvPool& kv, std::uint32_t row, std::uint64_t token, unsigned char value) const {
    for_pieces(kv, row, token, [&](CUdeviceptr at, std::size_t bytes) {
      EXPECT_EQ(cuMemsetD8Async(at, value, bytes, nullptr), CUDA_SUCCESS);
    });
  }
  std::size_t mismatches(const KvPool& kv, std::uint32_t row, std::uint64_t token,
                         unsigned char value) const {
    std::size_t count = 0;
    for_pieces(kv, row, token,
               [&](CUdeviceptr at, std::size_t bytes) { count += wrong(at, bytes, value); });
    return count;
  }
  std::uint32_t opened(KvPool& kv) {
    std::uint32_t row = 0;
    EXPECT_TRUE(kv.open(&row).ok());
    return row;
  }
  // `tokens` more, of values from `first` on.
  void append(KvPool& kv, std::uint32_t row, std::uint64_t tokens, unsigned char first) const {
    const std::uint64_t before = *kv.tokens(row);
    ASSERT_TRUE(kv.extend(row, before + tokens).ok());
    for (std::uint64_t i = 0; i < tokens; ++i) {
      put(kv, row, before + i, static_cast<unsigned char>(first + i));
    }
  }
  std::size_t mismatches(const KvPool& kv, std::uint32_t row, std::uint64_t begin,
                         std::uint64_t end, unsigned char first) const {
    std::size_t count = 0;
    for (std::uint64_t i = begin; i < end; ++i) {
      count += mismatches(kv, row, i, static_cast<unsigned char>(first + i - begin));
    }
    return count;
  }

  static inline std::atomic<int> pauses_;
  static inline std::atomic<bool> is_busy_;
  static inline std::atomic<std::size_t> banked_;

 private:
  template <class Each>
  void for_pieces(const KvPool& kv, std::uint32_t row, std::uint64_t token, Each each) const {
    for (std::uint32_t layer = 0; layer < geometry_.layers; ++layer) {
      for (const bool is_value : {false, true}) {
        const View view = view_of(geometry_, layer, is_value);
        each(kv.address() + view.offset + row * view.sequence_stride + token * view.token_stride,
             geometry_.plane_token_bytes());
      }
    }
  }
  Geometry geometry_;
};

TEST_F(Pool, ASequenceHasPagesForItsTokensAndNoMore) {
  const Geometry g = geometry();
  auto kv = make(g, {});
  const std::uint32_t row = opened(*kv);
  EXPECT_EQ(kv->stats().frames, 0U);
  ASSERT_TRUE(kv->extend(row, 5).ok());
  EXPECT_EQ(kv->stats().frames, g.row_pages(5));
  ASSERT_TRUE(kv->extend(row, 32).ok());
  EXPECT_EQ(kv->stats().frames, g.row_pages(32));
  EXPECT_EQ(kv->extend(row, 33).code(), Code::kInvalid);
  EXPECT_EQ(kv->extend(row, 31).code(), Code::kInvalid);
  EXPECT_EQ(kv->extend(row + 1, 1).code(), Code::kInvalid);
  EXPECT_EQ(*kv->tokens(row), 32U);
}

TEST_F(Pool, EachLayoutKeepsEveryTokenApart) {
  for (const Layout layout : {Layout::kPacked, Layout::kPerLayer}) {
    auto kv = make(geometry(layout), {});
    std::uint32_t rows[3];
    for (std::uint32_t& row : rows) {
      row = opened(*kv);
      append(*kv, row, 9, static_cast<unsigned char>(10 + 20 * row));
    }
    for (const std::uint32_t row : rows) {
      EXPECT_EQ(mismatches(*kv, row, 0, 9, static_cast<unsigned char>(10 + 20 * row)), 0U);
    }
  }
}

TEST_F(Pool, StepsFindTheirPagesMappedAhead) {
  auto kv = make(geometry(), {.idle = 8});
  std::uint32_t rows[2] = {opened(*kv), opened(*kv)};
  ASSERT_TRUE(kv->extend(rows[0], 2).ok());
  ASSERT_TRUE(kv->extend(rows[1], 7).ok());
  ASSERT_TRUE(kv->step(rows, nullptr, 2).ok());
  for (int i = 0; i < 20; ++i) {
    kv->wait_until_quiet();
    ASSERT_TRUE(kv->step(rows, nullptr, 2).ok());
  }
  const KvPool::Stats stats = kv->stats();
  EXPECT_EQ(*kv->tokens(rows[0]), 23U);
  EXPECT_EQ(stats.steps, 21U);
  const Geometry g = geometry();
  EXPECT_EQ(stats.grown_pages, g.row_pages(23) - g.row_pages(2) + g.row_pages(28) - g.row_pages(7));
  EXPECT_LE(stats.late_pages, 2U);  // of the first step
}

TEST_F(Pool, AStepThatIsNoneChangesNoLength) {
  auto kv = make(geometry(), {.pages_max = 7});
  std::uint32_t rows[3] = {opened(*kv), opened(*kv), opened(*kv)};
  const std::uint32_t twice[2] = {rows[0], rows[0]};
  EXPECT_EQ(kv->step(twice, nullptr, 2).code(), Code::kInvalid);
  const std::uint64_t lengths[3] = {4, 4, 10};
  EXPECT_EQ(kv->step(rows, lengths, 3).code(), Code::kNoMemory);
  for (const std::uint32_t row : rows) EXPECT_EQ(*kv->tokens(row), 0U);
  const std::uint64_t fewer[3] = {4, 4, 1};
  EXPECT_TRUE(kv->step(rows, fewer, 3).ok());
  EXPECT_EQ(kv->step(rows, fewer, 3).code(), Code::kOk);  // touches them, no token more
  const std::uint64_t back[1] = {3};
  EXPECT_EQ(kv->step(rows, back, 1).code(), Code::kInvalid);
}

TEST_F(Pool, AForkSharesFullPagesAndCopiesTheRest) {
  for (const Layout layout : {Layout::kPacked, Layout::kPerLayer}) {
    const Geometry g = geometry(layout);
    auto kv = make(g, {});
    const std::uint32_t parent = opened(*kv);
    append(*kv, parent, 7, 1);
    const std::uint64_t before = kv->stats().frames;
    std::uint32_t child = 0;
    ASSERT_TRUE(kv->fork(parent, 5, nullptr, &child).ok());
    EXPECT_EQ(*kv->tokens(child), 5U);
    const std::uint64_t full = 5 * g.token_stride() / g.page_bytes;
    EXPECT_EQ(kv->stats().shared_frames, full * g.planes());
    EXPECT_EQ(kv->stats().frames, before + (g.row_pages(5) - full) * g.planes());
    // Both go on, each for itself.
    append(*kv, child, 6, 101);
    append(*kv, parent, 4, 201);
    EXPECT_EQ(mismatches(*kv, child, 0, 5, 1), 0U);
    EXPECT_EQ(mismatches(*kv, child, 5, 11, 101), 0U);
    EXPECT_EQ(mismatches(*kv, parent, 0, 7, 1), 0U);
    EXPECT_EQ(mismatches(*kv, parent, 7, 11, 201), 0U);
    EXPECT_EQ(kv->fork(parent, 12, nullptr, &child).code(), Code::kInvalid);
  }
}

TEST_F(Pool, ASequenceThatIsCutBackIntoASharedPageGetsItsOwn) {
  for (const Layout layout : {Layout::kPacked, Layout::kPerLayer}) {
    auto kv = make(geometry(layout), {});
    const std::uint32_t parent = opened(*kv);
    append(*kv, parent, 12, 1);
    std::uint32_t child = 0;
    ASSERT_TRUE(kv->fork(parent, 10, nullptr, &child).ok());
    ASSERT_TRUE(kv->truncate(parent, 3).ok());
    append(*kv, parent, 12, 120);
    EXPECT_EQ(mismatches(*kv, parent, 0, 3, 1), 0U);
    EXPECT_EQ(mismatches(*kv, parent, 3, 15, 120), 0U);
    EXPECT_EQ(mismatches(*kv, child, 0, 10, 1), 0U);
    ASSERT_TRUE(kv->truncate(child, 0).ok());
    append(*kv, child, 12, 60);
    EXPECT_EQ(mismatches(*kv, parent, 0, 3, 1), 0U);
    EXPECT_EQ(mismatches(*kv, child, 0, 12, 60), 0U);
  }
}

TEST_F(Pool, AClosedSequencesPagesAreUsedAgainWithoutTheDriver) {
  auto kv = make(geometry(), {});
  std::uint32_t row = opened(*kv);
  append(*kv, row, 8, 1);
  ASSERT_TRUE(kv->close(row).ok());
  EXPECT_EQ(kv->close(row).code(), Code::kInvalid);
  kv->wait_until_quiet();
  EXPECT_EQ(kv->stats().spare_frames, geometry().row_pages(8));
  reset_calls();
  row = opened(*kv);
  ASSERT_TRUE(kv->extend(row, 8).ok());
  EXPECT_EQ(calls("cuMemMap") + calls("cuMemUnmap") + calls("cuMemCreate"), 0U);
  EXPECT_EQ(kv->stats().spare_frames, 0U);
}

TEST_F(Pool, WhatClosedSequencesLeftIsReclaimedTogether) {
  const Geometry g = geometry();
  auto kv = make(g, {.pages_max = 4 * g.row_pages(8)});
  std::uint32_t rows[4];
  for (std::uint32_t& row : rows) {
    row = opened(*kv);
    append(*kv, row, 8, 7);
  }
  for (const std::uint32_t row : rows) ASSERT_TRUE(kv->close(row).ok());
  EXPECT_TRUE(kv->fits(16, 2));
  EXPECT_FALSE(kv->fits(17, 2));
  const std::uint32_t row = opened(*kv);
  const int before = pauses_;
  append(*kv, row, 32, 3);
  EXPECT_EQ(pauses_ - before, 1);
  EXPECT_EQ(mismatches(*kv, row, 0, 32, 3), 0U);
}

TEST_F(Pool, TheParentsPagesOutliveIt) {
  auto kv = make(geometry(), {});
  const std::uint32_t parent = opened(*kv);
  append(*kv, parent, 9, 1);
  std::uint32_t child = 0;
  ASSERT_TRUE(kv->fork(parent, 8, nullptr, &child).ok());
  ASSERT_TRUE(kv->close(parent).ok());
  // Every row is used, and the parent's own among them.
  for (std::uint32_t i = 0; i + 1 < geometry().sequences_max; ++i) {
    append(*kv, opened(*kv), 9, static_cast<unsigned char>(50 + i));
  }
  std::uint32_t none = 0;
  EXPECT_EQ(kv->open(&none).code(), Code::kNoSpace);
  EXPECT_EQ(mismatches(*kv, child, 0, 8, 1), 0U);
}

TEST_F(Pool, ParkedSequencesComeBackWithTheirBytes) {
  for (const Layout layout : {Layout::kPacked, Layout::kPerLayer}) {
    const Geometry g = geometry(layout);
    auto kv = make(g, {});
    const std::uint32_t parent = opened(*kv);
    append(*kv, parent, 9, 1);
    std::uint32_t child = 0;
    ASSERT_TRUE(kv->fork(parent, 6, nullptr, &child).ok());
    append(*kv, child, 3, 101);
    ASSERT_TRUE(kv->park(child).ok());
    EXPECT_EQ(kv->stats().parked, 1U);
    EXPECT_EQ(banked_, kv->stats().parked_pages * page());
    EXPECT_GT(banked_, 0U);
    ASSERT_TRUE(kv->park(parent).ok());
    append(*kv, opened(*kv), 20, 77);
    ASSERT_TRUE(kv->step(&child, nullptr, 1).ok());
    put(*kv, child, 9, 104);
    EXPECT_EQ(mismatches(*kv, child, 0, 6, 1), 0U);
    EXPECT_EQ(mismatches(*kv, child, 6, 10, 101), 0U);
    ASSERT_TRUE(kv->prefetch(parent).ok());
    kv->wait_until_quiet();
    EXPECT_EQ(kv->stats().parked, 0U);
    EXPECT_EQ(mismatches(*kv, parent, 0, 9, 1), 0U);
    EXPECT_EQ(banked_, 0U);
  }
}

TEST_F(Pool, SequencesNoStepHasNamedMakeRoom) {
  const Geometry g = geometry();
  const std::uint64_t each = g.row_pages(16);
  auto kv = make(g, {.pages_max = 3 * each});
  std::uint32_t rows[6];
  const std::uint64_t length = 16;
  for (std::uint32_t i = 0; i < 6; ++i) {
    rows[i] = opened(*kv);
    ASSERT_TRUE(kv->step(&rows[i], &length, 1).ok()) << i;
    for (std::uint64_t t = 0; t < 16; ++t) {
      put(*kv, rows[i], t, static_cast<unsigned char>(40 * i + t));
    }
  }
  EXPECT_EQ(kv->stats().parked, 3U);
  for (int round = 0; round < 2; ++round) {
    for (std::uint32_t i = 0; i < 6; ++i) {
      ASSERT_TRUE(kv->step(&rows[i], &length, 1).ok());
      EXPECT_EQ(mismatches(*kv, rows[i], 0, 16, static_cast<unsigned char>(40 * i)), 0U);
    }
  }
  // Four at once are too many, and then all is as it was.
  const std::uint64_t lengths[4] = {16, 16, 16, 16};
  EXPECT_EQ(kv->step(rows, lengths, 4).code(), Code::kNoMemory);
  ASSERT_TRUE(kv->step(rows, lengths, 3).ok());
  for (std::uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(mismatches(*kv, rows[i], 0, 16, static_cast<unsigned char>(40 * i)), 0U);
  }
}

TEST_F(Pool, APinnedSequenceIsNotParked) {
  const Geometry g = geometry();
  auto kv = make(g, {.pages_max = 2 * g.row_pages(16)});
  const std::uint64_t length = 16;
  std::uint32_t rows[3] = {opened(*kv), opened(*kv), opened(*kv)};
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(kv->pin(rows[i], true).ok());
    ASSERT_TRUE(kv->step(&rows[i], &length, 1).ok());
  }
  EXPECT_EQ(kv->park(rows[0]).code(), Code::kBusy);
  EXPECT_EQ(kv->step(&rows[2], &length, 1).code(), Code::kNoMemory);
  ASSERT_TRUE(kv->pin(rows[0], false).ok());
  EXPECT_TRUE(kv->step(&rows[2], &length, 1).ok());
}

TEST_F(Pool, PredictedTokensFindTheirPagesMade) {
  for (const Layout layout : {Layout::kPacked, Layout::kPerLayer}) {
    const Geometry g = geometry(layout);
    auto kv = make(g, {});
    const std::uint32_t row = opened(*kv);
    kv->predict(30);
    const std::uint64_t pages = g.planes() * g.row_pages(30);
    for (int i = 0; i < 200 && live(SOFTGPU_HANDLES) < pages; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ASSERT_TRUE(kv->extend(row, 30).ok());
    EXPECT_EQ(kv->stats().late_creates, 0U);
    kv->predict(UINT64_MAX);  // as many as there may be
  }
}

TEST_F(Pool, WhatTheDriverRefusesChangesNothing) {
  for (const char* entry : {"cuMemCreate", "cuMemMap", "cuMemSetAccess"}) {
    int refused = 0;
    for (std::uint64_t nth = 1; nth < 4; ++nth) {
      auto kv = make(geometry(), {});
      const std::uint32_t row = opened(*kv);
      append(*kv, row, 4, 1);
      fail(entry, nth, CUDA_ERROR_OUT_OF_MEMORY);
      std::uint32_t child = 0;
      const Status forked = kv->fork(row, 4, nullptr, &child);
      if (forked.ok()) {
        EXPECT_EQ(mismatches(*kv, child, 0, 4, 1), 0U);
        ASSERT_TRUE(kv->close(child).ok());
      }
      fail_nothing(entry);
      refused += !forked.ok();
      EXPECT_EQ(*kv->tokens(row), 4U);
      EXPECT_EQ(mismatches(*kv, row, 0, 4, 1), 0U);
      ASSERT_TRUE(kv->close(row).ok());
      kv->wait_until_quiet();
      EXPECT_EQ(kv->stats().shared_frames, 0U);
    }
    EXPECT_GT(refused, 0) << entry;
  }
}

TEST_F(Pool, ATruncateThatFailsKeepsEveryToken) {
  for (const Layout layout : {Layout::kPacked, Layout::kPerLayer}) {
    for (const char* entry : {"cuMemMap", "cuMemSetAccess", "cuMemcpyDtoDAsync"}) {
      int refused = 0;
      for (std::uint64_t nth = 1; nth < 6; ++nth) {
        auto kv = make(geometry(layout), {});
        const std::uint32_t parent = opened(*kv);
        append(*kv, parent, 12, 1);
        std::uint32_t child = 0;
        ASSERT_TRUE(kv->fork(parent, 10, nullptr, &child).ok());
        kv->wait_until_quiet();
        fail(entry, nth, CUDA_ERROR_OUT_OF_MEMORY);
        const Status cut = kv->truncate(parent, 3);
        fail_nothing(entry);
        refused += !cut.ok();
        const std::uint64_t left = *kv->tokens(parent);
        EXPECT_EQ(left, cut.ok() ? 3U : 12U);
        ASSERT_TRUE(kv->step(&parent, &left, 1).ok());
        EXPECT_EQ(mismatches(*kv, parent, 0, left, 1), 0U) << entry << nth;
        EXPECT_EQ(mismatches(*kv, child, 0, 10, 1), 0U) << entry << nth;
      }
      EXPECT_GT(refused, 0) << entry;
    }
  }
}

TEST_F(Pool, APrefetchWithoutRoomLosesNothing) {
  const Geometry g = geometry(Layout::kPerLayer);
  auto kv = make(g, {.pages_max = 12});
  const std::uint32_t parked = opened(*kv);
  append(*kv, parked, 5, 1);  // four planes of two pages
  ASSERT_TRUE(kv->park(parked).ok());
  const std::uint32_t other = opened(*kv);
  append(*kv, other, 5, 101);
  ASSERT_TRUE(kv->pin(other, true).ok());
  ASSERT_TRUE(kv->prefetch(parked).ok());
  kv->wait_until_quiet();
  EXPECT_EQ(kv->stats().parked, 1U);
  ASSERT_TRUE(kv->close(other).ok());
  const std::uint64_t length = 5;
  ASSERT_TRUE(kv->step(&parked, &length, 1).ok());
  EXPECT_EQ(mismatches(*kv, parked, 0, 5, 1), 0U);
}

TEST_F(Pool, WhoNeedsMemoryWhileTheEngineIsBusyIsToldSo) {
  const Geometry g = geometry();
  auto kv = make(g, {.pages_max = 6});
  const std::uint32_t first = opened(*kv);
  append(*kv, first, 8, 1);
  ASSERT_TRUE(kv->close(first).ok());
  // In the same row, whose pages are ahead of it.
  EXPECT_EQ(opened(*kv), first);
  const std::uint32_t other = opened(*kv);
  ASSERT_TRUE(kv->step(nullptr, nullptr, 0).ok());
  is_busy_ = true;
  EXPECT_EQ(kv->extend(other, 16).code(), Code::kBusy);
  is_busy_ = false;
  EXPECT_TRUE(kv->extend(other, 16).ok());
}

TEST_F(Pool, WhatCouldNotBeUnmappedAtItsCloseIsLater) {
  const Geometry g = geometry();
  auto kv = make(g, {.pages_max = 8});
  const std::uint32_t parent = opened(*kv);
  append(*kv, parent, 16, 1);
  std::uint32_t child = 0;
  ASSERT_TRUE(kv->fork(parent, 16, nullptr, &child).ok());
  is_busy_ = true;
  ASSERT_TRUE(kv->close(parent).ok());
  ASSERT_TRUE(kv->close(child).ok());
  kv->wait_until_quiet();
  is_busy_ = false;
  const std::uint32_t next = opened(*kv);
  append(*kv, next, 16, 7);
  EXPECT_EQ(mismatches(*kv, next, 0, 16, 7), 0U);
}

TEST_F(Pool, WhatIsAheadOfOneSequenceIsNotTakenForWhatIsAheadOfAnother) {
  auto kv = make(geometry(), {.pages_max = 5});
  const std::uint32_t rows[2] = {opened(*kv), opened(*kv)};
  const std::uint64_t lengths[2] = {5, 5};  // of two pages each, near their end
  ASSERT_TRUE(kv->step(rows, lengths, 2).ok());
  for (int i = 0; i < 20; ++i) {
    kv->wait_until_quiet();
    ASSERT_TRUE(kv->step(rows, lengths, 2).ok());
  }
  EXPECT_EQ(pauses_, 0);
  EXPECT_EQ(kv->stats().reclaimed_pages, 0U);
}

TEST_F(Pool, NothingIsLeftOfIt) {
  const std::uint64_t handles = live(SOFTGPU_HANDLES);
  const std::uint64_t reservations = live(SOFTGPU_RESERVATIONS);
  {
    auto kv = make(geometry(), {.idle = 4});
    const std::uint32_t parent = opened(*kv);
    append(*kv, parent, 9, 1);
    std::uint32_t child = 0;
    ASSERT_TRUE(kv->fork(parent, 9, nullptr, &child).ok());
    append(*kv, child, 9, 1);
    ASSERT_TRUE(kv->park(child).ok());
  }
  EXPECT_EQ(live(SOFTGPU_HANDLES), handles);
  EXPECT_EQ(live(SOFTGPU_RESERVATIONS), reservations);
  EXPECT_EQ(banked_, 0U);
}

// A random engine beside a model of it that knows nothing of pages.
class RandomPool : public Pool, public testing::WithParamInterface<unsigned> {};

TEST_P(RandomPool, SeesTheBytesItWrote) {
  const Layout layout = GetParam() % 2 == 0 ? Layout::kPacked : Layout::kPerLayer;
  const Geometry g = geometry(layout);
  auto kv = make(g, {.pages_max = g.planes() * 40, .idle = 2});
  std::mt19937 random(GetParam());
  std::map<std::uint32_t, std::vector<unsigned char>> model;
  unsigned char next = 1;
  const auto pick = [&] {
    auto it = model.begin();
    std::advance(it, random() % model.size());
    return it->first;
  };
  const auto check = [&](std::uint32_t row) {
    std::size_t bad = 0;
    for (std::uint64_t t = 0; t < model[row].size(); ++t) {
      bad += mismatches(*kv, row, t, model[row][t]);
    }
    return bad;
  };
  for (int i = 0; i < 150; ++i) {
    const unsigned what = random() % 10;
    if (model.empty() || what == 0) {
      std::uint32_t row = 0;
      const Status status = kv->open(&row);
      ASSERT_EQ(status.ok(), model.size() < g.sequences_max);
      if (status.ok()) model[row] = {};
      continue;
    }
    const std::uint32_t row = pick();
    std::vector<unsigned char>& tokens = model[row];
    if (what <= 4) {
      const std::uint64_t length = std::min<std::uint64_t>(32, tokens.size() + random() % 7);
      const Status status = what == 4 ? kv->step(&row, &length, 1) : kv->extend(row, length);
      ASSERT_TRUE(status.ok() || status.code() == Code::kNoMemory) << status.what();
      if (!status.ok()) continue;
      while (tokens.size() < length) {
        put(*kv, row, tokens.size(), next);
        tokens.push_back(next++);
      }
    } else if (what == 5) {
      const std::uint64_t length = random() % (tokens.size() + 1);
      const Status status = kv->truncate(row, length);
      ASSERT_TRUE(status.ok() || status.code() == Code::kNoMemory) << status.what();
      if (status.ok()) tokens.resize(length);
    } else if (what == 6) {
      std::uint32_t child = 0;
      const std::uint64_t length = random() % (tokens.size() + 1);
      const Status status = kv->fork(row, length, nullptr, &child);
      ASSERT_TRUE(status.ok() || status.code() == Code::kNoMemory ||
                  status.code() == Code::kNoSpace)
          << status.what();
      if (status.ok()) model[child].assign(tokens.begin(), tokens.begin() + length);
    } else if (what == 7) {
      ASSERT_TRUE(kv->park(row).ok());
    } else if (what == 8) {
      ASSERT_TRUE(kv->close(row).ok());
      model.erase(row);
    } else {
      const Status status = kv->resume(row);
      ASSERT_TRUE(status.ok() || status.code() == Code::kNoMemory) << status.what();
      if (status.ok()) {
        ASSERT_EQ(check(row), 0U) << "after " << i;
      }
    }
  }
  for (const auto& [row, tokens] : model) {
    const std::uint64_t length = tokens.size();
    ASSERT_TRUE(kv->step(&row, &length, 1).ok());
    EXPECT_EQ(check(row), 0U);
  }
}
INSTANTIATE_TEST_SUITE_P(Seeds, RandomPool, testing::Range(1U, 9U));

}  // namespace
}  // namespace kvmem::pool
