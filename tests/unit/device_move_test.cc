// Pages that move while an engine works on them: every byte right, over many schedules of a device
// that finishes late. And that it takes the gate and the drain to have that.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "region/device.h"
#include "region/gate.h"
#include "tests/unit/device_fixture.h"

extern "C" {
extern const softgpu_kernel move_add_softgpu;
// One word in a thousand: what is lost is lost by the page.
static void move_add_body(const softgpu_launch*, void** params) {
  auto* at = *static_cast<std::uint32_t**>(params[0]);
  const auto words = *static_cast<std::uint64_t*>(params[1]);
  const auto value = *static_cast<std::uint32_t*>(params[2]);
  for (std::uint64_t i = 0; i < words; i += 1024) at[i] += value;
}
const softgpu_kernel move_add_softgpu = {move_add_body, 3, {8, 8, 4}};
}

namespace kvmem {
namespace {

// Small pages: what counts here is what happens to them, not how long it takes.
const int environment_set = ::setenv("SOFTGPU", "granularity=65536", 1);

constexpr std::uint32_t kPages = 12;
constexpr std::uint32_t kThreads = 2;
constexpr std::uint32_t kOwnPages = kPages / kThreads;

struct Guards {
  bool gate = true;
  bool drain = true;
  bool verify = true;
};

class Move : public test::DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    DevicePool::Options options;
    options.bytes_max = 8 * 65536;
    device_ = pool(options);
    ASSERT_EQ(page(), 65536U);
    options.location = {CU_MEM_LOCATION_TYPE_HOST_NUMA, 0};
    options.bytes_max = kPages * page();
    host_ = pool(options);
    CUmodule module = nullptr;
    ASSERT_EQ(cuModuleLoadData(&module, ""), CUDA_SUCCESS);
    ASSERT_EQ(cuModuleGetFunction(&add_, module, "move_add"), CUDA_SUCCESS);
    auto kernels = cuda::Kernels::create();
    if (kernels.ok()) kernels_ = *std::move(kernels);
  }
  void TearDown() override {
    kernels_.reset();
    host_.reset();
    device_.reset();
    DeviceTest::TearDown();
  }

  std::size_t page() const { return device_->page_bytes(); }

  static Status drain(void* argument) {
    const auto* self = static_cast<Move*>(argument);
    const cuda::ContextScope current(self->context());
    return cuda::status_of(cuda::driver().context_synchronize(), "cuCtxSynchronize");
  }
  static Status drain_nothing(void* /*argument*/) { return {}; }

  // Two threads add to pages of their own, each on its stream, while a third moves any of them.
  // What is not as it should be: words, and calls that failed.
  std::uint64_t schedule(unsigned seed, Guards guards) {
    auto made = DeviceRegion::create(*device_, host_.get(), kPages * page());
    EXPECT_TRUE(made.ok());
    DeviceRegion& region = **made;
    EXPECT_TRUE(region.map(0, 6).ok());
    EXPECT_TRUE(region.map(6, 6, DevicePlace::kHost).ok());
    for (std::uint32_t i = 0; i < kPages; ++i) write(region.address() + i * page(), page(), 0);

    Gate gate;
    std::atomic<std::uint64_t> bad{0};
    std::atomic<std::uint32_t> working{kThreads};
    std::vector<std::uint32_t> sums(kPages, 0);
    const auto engine = [&](std::uint32_t thread) {
      CUstream stream = nullptr;
      bad += cuCtxSetCurrent(context()) != CUDA_SUCCESS;
      bad += cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) != CUDA_SUCCESS;
      std::mt19937 random(2 * seed + thread);
      for (int i = 0; i < 8; ++i) {
        const std::uint32_t which = thread * kOwnPages + random() % kOwnPages;
        const std::uint32_t value = random();
        CUdeviceptr at = region.address() + which * page();
        std::uint64_t words = page() / 4;
        std::uint32_t v = value;
        void* params[] = {&at, &words, &v};
        if (guards.gate) gate.enter();
        bad += cuLaunchKernel(add_, 1, 1, 1, 1, 1, 1, 0, stream, params, nullptr) != CUDA_SUCCESS;
        if (guards.gate) gate.leave();
        sums[which] += value;
        if (random() % 4 == 0) bad += cuStreamSynchronize(stream) != CUDA_SUCCESS;
      }
      bad += cuStreamSynchronize(stream) != CUDA_SUCCESS;
      bad += cuStreamDestroy(stream) != CUDA_SUCCESS;
      --working;
    };
    std::vector<std::thread> threads;
    for (std::uint32_t t = 0; t < kThreads; ++t) threads.emplace_back(engine, t);
    std::mt19937 random(seed);
    do {
      const auto first = static_cast<std::uint32_t>(random() % kPages);
      const auto count = static_cast<std::uint32_t>(1 + random() % 4);
      const auto place = random() % 2 == 0 ? DevicePlace::kDevice : DevicePlace::kHost;
      DeviceRegion::Transfer transfer;
      const Status room = region.prepare(first, count, place, &transfer);
      // There is room for eight on the device.
      bad += !room.ok() && room.code() != Code::kNoMemory;
      if (!room.ok()) continue;
      if (kernels_ != nullptr && random() % 4 != 0) {
        bad += !region.copy_ahead(transfer, *kernels_).ok();
      }
      if (!gate.close(guards.drain ? drain : drain_nothing, this).ok()) {
        region.abandon(transfer);
        continue;
      }
      if (!guards.verify) forge(region, transfer);
      bad += !region.finish(transfer, kernels_.get()).ok();
      moved_ += transfer.moved;
      again_ += transfer.again;
      gate.open();
    } while (working > 0);
    for (std::thread& thread : threads) thread.join();

    std::vector<std::uint32_t> host(page() / 4);
    for (std::uint32_t p = 0; p < kPages; ++p) {
      bad += cuMemcpyDtoH(host.data(), region.address() + p * page(), page()) != CUDA_SUCCESS;
      for (std::size_t i = 0; i < host.size(); ++i) bad += host[i] != (i % 1024 == 0 ? sums[p] : 0);
    }
    return bad;
  }

  // As if what was copied ahead were known to be what is in the pages now.
  void forge(const DeviceRegion& region, DeviceRegion::Transfer& transfer) {
    for (std::uint32_t i = transfer.first, k = 0; i < transfer.end; ++i) {
      if (region.place(i) == transfer.place || transfer.hashes.empty()) continue;
      kvmem_batch batch{};
      batch.from[0] = region.address() + i * page();
      batch.page_bytes = page();
      batch.count = 1;
      EXPECT_TRUE(kernels_->hash(batch, &transfer.hashes[k++]).ok());
    }
  }

  Owned<DevicePool> device_, host_;
  Owned<cuda::Kernels> kernels_;  // null: built without a compiler
  CUfunction add_ = nullptr;
  std::uint64_t moved_ = 0;
  std::uint64_t again_ = 0;
};

TEST_F(Move, BehindTheGateOnlyWhatHasChangedIsCopiedAgain) {
  if (kernels_ == nullptr) GTEST_SKIP() << "built without a CUDA compiler";
  auto made = DeviceRegion::create(*device_, host_.get(), 6 * page());
  ASSERT_TRUE(made.ok());
  DeviceRegion& region = **made;
  ASSERT_TRUE(region.map(0, 6).ok());
  for (std::uint32_t i = 0; i < 6; ++i) {
    write(region.address() + i * page(), page(), static_cast<unsigned char>(i + 1));
  }
  DeviceRegion::Transfer transfer;
  ASSERT_TRUE(region.prepare(1, 4, DevicePlace::kHost, &transfer).ok());
  ASSERT_TRUE(region.copy_ahead(transfer, *kernels_).ok());
  EXPECT_EQ(region.place(1), DevicePlace::kDevice);
  write(region.address() + 3 * page() + page() / 2, 1, 77);  // a byte of the third
  reset_calls();
  ASSERT_TRUE(region.finish(transfer, kernels_.get()).ok());
  EXPECT_EQ(transfer.moved, 4U);
  EXPECT_EQ(transfer.again, 1U);
  EXPECT_EQ(calls("cuLaunchKernel"), 2U);  // a hash of all, a copy of one
  EXPECT_EQ(calls("cuMemcpyDtoDAsync"), 0U);
  for (std::uint32_t i = 0; i < 6; ++i) {
    EXPECT_EQ(region.place(i), i >= 1 && i < 5 ? DevicePlace::kHost : DevicePlace::kDevice);
    EXPECT_EQ(wrong(region.address() + i * page(), page(), static_cast<unsigned char>(i + 1)),
              i == 3 ? 1U : 0U);
  }
}

TEST_F(Move, MoreThanABatchOfPages) {
  constexpr std::uint32_t kMany = 2 * KVMEM_BATCH_PAGES + 3;
  DevicePool::Options options;
  const Owned<DevicePool> device = pool(options);
  options.location = {CU_MEM_LOCATION_TYPE_HOST_NUMA, 0};
  const Owned<DevicePool> host = pool(options);
  auto made = DeviceRegion::create(*device, host.get(), kMany * page());
  ASSERT_TRUE(made.ok());
  DeviceRegion& region = **made;
  ASSERT_TRUE(region.map(0, kMany).ok());
  for (std::uint32_t i = 0; i < kMany; ++i) {
    write(region.address() + i * page(), page(), static_cast<unsigned char>(i + 1));
  }
  for (const DevicePlace place : {DevicePlace::kHost, DevicePlace::kDevice}) {
    DeviceRegion::Transfer transfer;
    ASSERT_TRUE(region.prepare(0, kMany, place, &transfer).ok());
    if (kernels_ != nullptr) {
      ASSERT_TRUE(region.copy_ahead(transfer, *kernels_).ok());
    }
    ASSERT_TRUE(region.finish(transfer, kernels_.get()).ok());
    EXPECT_EQ(transfer.moved, kMany);
    for (std::uint32_t i = 0; i < kMany; ++i) {
      ASSERT_EQ(wrong(region.address() + i * page(), page(), static_cast<unsigned char>(i + 1)), 0U)
          << i;
    }
  }
}

TEST_F(Move, WhatIsInAPageGoesWithIt) {
  auto made = DeviceRegion::create(*device_, host_.get(), 8 * page());
  ASSERT_TRUE(made.ok());
  DeviceRegion& region = **made;
  ASSERT_TRUE(region.map(0, 8).ok());
  for (std::uint32_t i = 0; i < 8; ++i) {
    write(region.address() + i * page(), page(), static_cast<unsigned char>(i + 1));
  }
  host_->wait_until_quiet();
  std::uint32_t moved = 0;
  reset_calls();
  ASSERT_TRUE(region.move(1, 3, DevicePlace::kHost, &moved).ok());
  EXPECT_EQ(moved, 3U);
  // Three maps, an unmap and an access for the run; no more, whatever the pool does behind.
  host_->wait_until_quiet();
  EXPECT_EQ(calls("cuMemMap"), 3 + calls("cuMemCreate"));
  EXPECT_EQ(calls("cuMemUnmap"), 1U);
  EXPECT_EQ(calls("cuMemSetAccess"), 1 + calls("cuMemCreate"));
  ASSERT_TRUE(region.move(0, 8, DevicePlace::kHost, &moved).ok());
  EXPECT_EQ(moved, 5U);  // around those that were there
  EXPECT_GE(device_->available(), 8U);
  ASSERT_TRUE(region.move(2, 4, DevicePlace::kDevice, &moved).ok());
  EXPECT_EQ(moved, 4U);
  for (std::uint32_t i = 0; i < 8; ++i) {
    EXPECT_EQ(region.place(i), i >= 2 && i < 6 ? DevicePlace::kDevice : DevicePlace::kHost);
    EXPECT_EQ(wrong(region.address() + i * page(), page(), static_cast<unsigned char>(i + 1)), 0U);
  }
}

TEST_F(Move, WithoutRoomNothingMoves) {
  auto made = DeviceRegion::create(*device_, host_.get(), 12 * page());
  ASSERT_TRUE(made.ok());
  ASSERT_TRUE((*made)->map(0, 12, DevicePlace::kHost).ok());
  std::uint32_t moved = 0;
  EXPECT_EQ((*made)->move(0, 9, DevicePlace::kDevice, &moved).code(), Code::kNoMemory);
  EXPECT_EQ(moved, 0U);
  EXPECT_EQ((*made)->place(0), DevicePlace::kHost);
}

// Every call on the way fails once: a page is in one of the two places and its bytes are right.
TEST_F(Move, AnErrorOfTheDriverKeepsEveryByte) {
  auto made = DeviceRegion::create(*device_, host_.get(), 6 * page());
  ASSERT_TRUE(made.ok());
  DeviceRegion& region = **made;
  ASSERT_TRUE(region.map(0, 6).ok());
  std::uint32_t moved = 0;
  ASSERT_TRUE(region.move(3, 1, DevicePlace::kHost, &moved).ok());  // so that there are two runs
  for (std::uint32_t i = 0; i < 6; ++i) {
    write(region.address() + i * page(), page(), static_cast<unsigned char>(i + 1));
  }
  device_->wait_until_quiet();
  host_->wait_until_quiet();
  for (const char* call : {"cuMemMap", "cuMemUnmap", "cuMemSetAccess", "cuMemcpyDtoDAsync",
                           "cuStreamSynchronize", "cuStreamCreate", "cuCtxPushCurrent"}) {
    for (std::uint64_t nth = 1;; ++nth) {
      fail(call, nth, CUDA_ERROR_OUT_OF_MEMORY);
      const bool ok = region.move(0, 6, DevicePlace::kHost, &moved).ok();
      fail_nothing(call);
      EXPECT_EQ(region.mapped_pages(), 6U);
      for (std::uint32_t i = 0; i < 6; ++i) {
        ASSERT_EQ(wrong(region.address() + i * page(), page(), static_cast<unsigned char>(i + 1)),
                  0U)
            << call << nth;
      }
      ASSERT_TRUE(region.move(0, 3, DevicePlace::kDevice, &moved).ok());
      ASSERT_TRUE(region.move(4, 2, DevicePlace::kDevice, &moved).ok());
      if (ok) {
        ASSERT_GT(nth, 1U) << call;
        break;
      }
    }
  }
  EXPECT_GE(host_->available() + 1, kPages);
}

TEST_F(Move, EveryByteIsRightOverAThousandSchedules) {
  for (unsigned seed = 1; seed <= 1000; ++seed) {
    ASSERT_EQ(schedule(seed, {}), 0U) << "seed " << seed;
  }
  EXPECT_EQ(cuCtxSynchronize(), CUDA_SUCCESS);
  EXPECT_GT(moved_, 2000U);
  if (kernels_ != nullptr) {
    EXPECT_GT(again_, 100U);
  }
}

// That those schedules would find it: each in a process of its own, since the device dies of it.
class MoveDeathTest : public Move {
 protected:
  void run_until_bad(Guards guards) {
    for (unsigned seed = 1; seed <= 1000; ++seed) {
      if (schedule(seed, guards) != 0) std::_Exit(3);
    }
    std::_Exit(0);
  }
};

TEST_F(MoveDeathTest, WithoutTheGateTheyGoWrong) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(run_until_bad({.gate = false}), testing::ExitedWithCode(3), "");
}

TEST_F(MoveDeathTest, WithoutTheDrainTheyGoWrong) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(run_until_bad({.drain = false}), testing::ExitedWithCode(3), "");
}

TEST_F(MoveDeathTest, WithoutTheVerifyTheyGoWrong) {
  if (kernels_ == nullptr) GTEST_SKIP() << "built without a CUDA compiler";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(run_until_bad({.verify = false}), testing::ExitedWithCode(3), "");
}

}  // namespace
}  // namespace kvmem
