// Pages stored away in the process's own memory, and back: by whole regions, with errors of the
// driver on the way, and with bytes that have changed meanwhile.

#include <cstdlib>
#include <vector>

#include "region/device.h"
#include "tests/unit/device_fixture.h"

namespace kvmem {
namespace {

const int environment_set = ::setenv("SOFTGPU", "granularity=65536", 1);

// More than a batch, and than a half of the staging memory.
constexpr std::uint32_t kPages = 2 * KVMEM_BATCH_PAGES + 5;

class Store : public test::DeviceTest, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    device_ = pool({.idle_low = 0, .idle_high = 0});
    auto staging = cuda::Staging::create(page());
    ASSERT_TRUE(staging.ok());
    staging_ = *std::move(staging);
    auto kernels = cuda::Kernels::create();
    if (!kernels.ok() && GetParam()) GTEST_SKIP() << kernels.status().what();
    if (GetParam()) kernels_ = *std::move(kernels);
    auto made = DeviceRegion::create(*device_, nullptr, kPages * page());
    ASSERT_TRUE(made.ok());
    region_ = *std::move(made);
    ASSERT_TRUE(region_->map(0, kPages).ok());
    bytes_.resize(kPages * page());
    for (std::uint32_t i = 0; i < kPages; ++i) write(at(i), page(), value(i));
  }
  void TearDown() override {
    region_.reset();
    kernels_.reset();
    staging_.reset();
    device_.reset();
    DeviceTest::TearDown();
  }

  std::size_t page() const { return device_->page_bytes(); }
  CUdeviceptr at(std::uint32_t i) const { return region_->address() + i * page(); }
  static unsigned char value(std::uint32_t i) { return static_cast<unsigned char>(i + 1); }
  DeviceRegion::Bank bank() { return {bytes_.data(), {staging_.get(), kernels_.get()}}; }
  std::size_t all_wrong() const {
    std::size_t count = 0;
    for (std::uint32_t i = 0; i < kPages; ++i) {
      if (region_->page(i) == DevicePage::kMapped) count += wrong(at(i), page(), value(i));
    }
    return count;
  }

  Owned<DevicePool> device_;
  Owned<cuda::Staging> staging_;
  Owned<cuda::Kernels> kernels_;  // null where the parameter says without, or there are none
  Owned<DeviceRegion> region_;
  std::vector<unsigned char> bytes_;
};
INSTANTIATE_TEST_SUITE_P(WithKernels, Store, testing::Bool());

TEST_P(Store, GivesTheDevicesMemoryBackAndReturnsEveryByte) {
  ASSERT_TRUE(region_->store(0, kPages, bank()).ok());
  EXPECT_EQ(region_->stored_pages(), kPages);
  EXPECT_EQ(region_->mapped_pages(), 0U);
  EXPECT_EQ(device_->trim(SIZE_MAX), kPages + 0U);
  EXPECT_EQ(live(SOFTGPU_HANDLES), 0U);
  reset_calls();
  ASSERT_TRUE(region_->restore(0, kPages, bank()).ok());
  EXPECT_EQ(region_->stored_pages(), 0U);
  EXPECT_EQ(region_->mapped_pages(), kPages);
  EXPECT_EQ(calls("cuMemSetAccess"), kPages + 3U);  // at home, and one for each batch's run
  EXPECT_EQ(all_wrong(), 0U);
}

TEST_P(Store, ARangeAndWhatIsNotThereAreLeftAlone) {
  region_->leave(10, 5);
  ASSERT_TRUE(region_->settle().ok());
  ASSERT_TRUE(region_->store(5, 20, bank()).ok());
  EXPECT_EQ(region_->stored_pages(), 15U);
  EXPECT_EQ(region_->page(4), DevicePage::kMapped);
  EXPECT_EQ(region_->page(5), DevicePage::kStored);
  EXPECT_EQ(region_->page(12), DevicePage::kAbsent);
  ASSERT_TRUE(region_->restore(7, 1, bank()).ok());
  EXPECT_EQ(region_->page(7), DevicePage::kMapped);
  EXPECT_EQ(region_->stored_pages(), 14U);
  ASSERT_TRUE(region_->restore(0, kPages, bank()).ok());
  EXPECT_EQ(region_->page(12), DevicePage::kAbsent);
  EXPECT_EQ(all_wrong(), 0U);
}

TEST_P(Store, WithoutRoomPagesStayStored) {
  ASSERT_TRUE(region_->store(0, kPages, bank()).ok());
  device_->set_bytes_max(70 * page());
  EXPECT_EQ(region_->restore(0, kPages, bank()).code(), Code::kNoMemory);
  EXPECT_EQ(region_->mapped_pages(), KVMEM_BATCH_PAGES);
  EXPECT_EQ(region_->stored_pages(), kPages - KVMEM_BATCH_PAGES);
  EXPECT_EQ(all_wrong(), 0U);
  device_->set_bytes_max(SIZE_MAX);
  ASSERT_TRUE(region_->restore(0, kPages, bank()).ok());
  EXPECT_EQ(region_->mapped_pages(), kPages);
  EXPECT_EQ(all_wrong(), 0U);
}

// Every call on the way fails once, out and back: no page is lost and none is wrong.
TEST_P(Store, AnErrorOfTheDriverKeepsEveryByte) {
  for (const char* call :
       {"cuMemMap", "cuMemUnmap", "cuMemSetAccess", "cuMemcpyDtoHAsync", "cuMemcpyHtoDAsync",
        "cuStreamSynchronize", "cuLaunchKernel", "cuCtxPushCurrent"}) {
    for (std::uint64_t nth : {1, 2, 66}) {
      for (const bool on_return : {false, true}) {
        if (!on_return) fail(call, nth, CUDA_ERROR_OUT_OF_MEMORY);
        (void)region_->store(0, kPages, bank());
        if (on_return) fail(call, nth, CUDA_ERROR_OUT_OF_MEMORY);
        (void)region_->restore(0, kPages, bank());
        fail_nothing(call);
        ASSERT_EQ(region_->mapped_pages() + region_->stored_pages(), kPages) << call << nth;
        ASSERT_TRUE(region_->restore(0, kPages, bank()).ok()) << call << nth;
        ASSERT_EQ(region_->mapped_pages(), kPages);
        ASSERT_EQ(all_wrong(), 0U) << call << nth << on_return;
      }
    }
  }
}

// A page that is not what was stored is nobody's: its neighbours come back.
TEST_P(Store, ChangedBytesAreNotHandedOut) {
  ASSERT_TRUE(region_->store(0, kPages, bank()).ok());
  bytes_[3 * page() + 77] ^= 1;
  bytes_[64 * page()] ^= 128;
  EXPECT_EQ(region_->restore(0, kPages, bank()).code(), Code::kCorrupt);
  EXPECT_EQ(region_->page(3), DevicePage::kAbsent);
  EXPECT_EQ(region_->page(64), DevicePage::kAbsent);
  EXPECT_EQ(region_->mapped_pages(), kPages - 2);
  EXPECT_EQ(region_->stored_pages(), 0U);
  EXPECT_EQ(all_wrong(), 0U);
}

}  // namespace
}  // namespace kvmem
