// Device regions on the software driver: what is behind the addresses, and how many calls it cost.

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <vector>

#include "region/device.h"
#include "tests/unit/device_fixture.h"

namespace kvmem {
namespace {

using test::DeviceTest;

class Device : public DeviceTest {
 protected:
  // Besides the one that each page has at home.
  static std::uint64_t mappings() { return live(SOFTGPU_MAPPINGS) - live(SOFTGPU_HANDLES); }
};

TEST_F(Device, PagesAreAbsentUntilTheyAreMapped) {
  auto pool = this->pool({.idle_low = 0, .idle_high = 0});
  auto region = DeviceRegion::create(*pool, nullptr, 16 * page());
  ASSERT_TRUE(region.ok());
  EXPECT_EQ((*region)->page_count(), 16U);
  EXPECT_EQ(mappings(), 0U);
  ASSERT_TRUE((*region)->map(3, 2).ok());
  EXPECT_EQ((*region)->page(2), DevicePage::kAbsent);
  EXPECT_EQ((*region)->page(3), DevicePage::kMapped);
  EXPECT_EQ(mappings(), 2U);
  write((*region)->address() + 3 * page(), 2 * page(), 5);
  EXPECT_EQ(wrong((*region)->address() + 3 * page(), 2 * page(), 5), 0U);
}

TEST_F(Device, SizesAreRoundedUpToPages) {
  auto pool = this->pool({});
  auto region = DeviceRegion::create(*pool, nullptr, page() + 1);
  ASSERT_TRUE(region.ok());
  EXPECT_EQ((*region)->page_count(), 2U);
  EXPECT_EQ(DeviceRegion::create(*pool, nullptr, 0).status().code(), Code::kInvalid);
}

TEST_F(Device, APageThatIsWantedAgainBeforeItWentCostsNothing) {
  auto pool = this->pool({});
  auto region = DeviceRegion::create(*pool, nullptr, 8 * page());
  ASSERT_TRUE(region.ok());
  ASSERT_TRUE((*region)->map(0, 8).ok());
  write((*region)->address(), 8 * page(), 3);
  (*region)->leave(2, 4);
  pool->wait_until_quiet();
  reset_calls();
  ASSERT_TRUE((*region)->map(0, 8).ok());
  ASSERT_TRUE((*region)->settle().ok());
  for (const char* call : {"cuMemMap", "cuMemUnmap", "cuMemSetAccess", "cuMemCreate"}) {
    EXPECT_EQ(calls(call), 0U) << call;
  }
  EXPECT_EQ(wrong((*region)->address(), 8 * page(), 3), 0U);
}

TEST_F(Device, PagesThatOthersMayHaveAreNotUsedAgain) {
  auto pool = this->pool({.bytes_max = 4 * page(), .idle_low = 0, .idle_high = 0});
  auto region = DeviceRegion::create(*pool, nullptr, 4 * page());
  ASSERT_TRUE(region.ok());
  ASSERT_TRUE((*region)->map(0, 4).ok());
  (*region)->set_shared();
  (*region)->leave(0, 3);
  ASSERT_TRUE((*region)->settle().ok());
  EXPECT_EQ(pool->stats().idle, 0U);
  EXPECT_EQ(pool->stats().in_existence, 1U);
  EXPECT_EQ(live(SOFTGPU_HANDLES), 1U);
  EXPECT_EQ(pool->available(), 3U);
}

// As a server grows its sequences: one page each, round after round.
TEST_F(Device, Growing64SequencesCreatesNothingWhileTheyWait) {
  constexpr std::uint32_t kSequences = 64;
  constexpr std::uint32_t kRounds = 4;
  auto pool = this->pool({.idle_low = kSequences, .idle_high = 2 * kSequences});
  std::vector<Owned<DeviceRegion>> sequences;
  for (std::uint32_t s = 0; s < kSequences; ++s) {
    auto region = DeviceRegion::create(*pool, nullptr, kRounds * page());
    ASSERT_TRUE(region.ok());
    sequences.push_back(*std::move(region));
  }
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    pool->wait_until_quiet();
    reset_calls();
    for (auto& sequence : sequences) ASSERT_TRUE(sequence->map(round, 1).ok());
    pool->wait_until_quiet();
    // One run in each; and new pages come home behind the scenes.
    EXPECT_EQ(calls("cuMemMap"), kSequences + calls("cuMemCreate"));
    EXPECT_EQ(calls("cuMemSetAccess"), kSequences + calls("cuMemCreate"));
  }
  EXPECT_EQ(pool->stats().created_late, 0U);
}

TEST_F(Device, AccessIsGivenOnceForEachRun) {
  auto pool = this->pool({.idle_low = 1, .idle_high = 64});
  auto region = DeviceRegion::create(*pool, nullptr, 64 * page());
  ASSERT_TRUE(region.ok());
  ASSERT_TRUE((*region)->map(10, 2).ok());
  ASSERT_TRUE((*region)->map(30, 1).ok());
  pool->wait_until_quiet();
  reset_calls();
  ASSERT_TRUE((*region)->map(0, 64).ok());  // around two islands: three runs
  EXPECT_EQ(calls("cuMemMap"), 61U);
  EXPECT_EQ(calls("cuMemSetAccess"), 3U);
}

TEST_F(Device, SwappingPagesUsesThemAgain) {
  constexpr std::uint32_t kPages = 32;
  auto pool = this->pool({.bytes_max = kPages * page(), .idle_low = 0, .idle_high = 0});
  auto one = DeviceRegion::create(*pool, nullptr, kPages * page());
  auto two = DeviceRegion::create(*pool, nullptr, kPages * page());
  ASSERT_TRUE(one.ok() && two.ok());
  ASSERT_TRUE((*one)->map(0, kPages).ok());
  DeviceRegion* in = one->get();
  DeviceRegion* out = two->get();
  for (int round = 0; round < 6; ++round) {
    reset_calls();
    // Two runs leave, as many pages arrive in one.
    in->leave(0, 5);
    in->leave(20, 3);
    ASSERT_TRUE(in->settle().ok());
    ASSERT_TRUE(out->map(0, 8).ok());
    EXPECT_EQ(calls("cuMemCreate"), 0U);
    EXPECT_EQ(calls("cuMemRelease"), 0U);
    EXPECT_EQ(calls("cuMemMap"), 8U);
    EXPECT_EQ(calls("cuMemUnmap"), 2U);
    EXPECT_EQ(calls("cuMemSetAccess"), 1U);
    out->leave(0, 8);
    ASSERT_TRUE(out->settle().ok());
    ASSERT_TRUE(in->map(0, kPages).ok());
  }
  EXPECT_EQ(live(SOFTGPU_HANDLES), kPages);
}

TEST_F(Device, TheBudgetIsKeptAndAFailedMapChangesNothing) {
  auto pool = this->pool({.bytes_max = 4 * page()});
  auto region = DeviceRegion::create(*pool, nullptr, 8 * page());
  ASSERT_TRUE(region.ok());
  ASSERT_TRUE((*region)->map(0, 2).ok());
  EXPECT_EQ((*region)->map(0, 5).code(), Code::kNoMemory);
  EXPECT_EQ((*region)->mapped_pages(), 2U);
  EXPECT_EQ((*region)->page(2), DevicePage::kAbsent);
  ASSERT_TRUE((*region)->map(0, 4).ok());
  EXPECT_LE(live(SOFTGPU_HANDLES), 4U);
}

TEST_F(Device, ABudgetThatShrinksIsMetAsPagesComeBack) {
  auto pool = this->pool({.bytes_max = 8 * page()});
  auto region = DeviceRegion::create(*pool, nullptr, 8 * page());
  ASSERT_TRUE(region.ok());
  ASSERT_TRUE((*region)->map(0, 6).ok());
  pool->wait_until_quiet();
  EXPECT_EQ(live(SOFTGPU_HANDLES), 8U);
  pool->set_bytes_max(3 * page());
  EXPECT_EQ(live(SOFTGPU_HANDLES), 6U);  // the idle ones went at once
  (*region)->leave(0, 5);
  ASSERT_TRUE((*region)->settle().ok());
  EXPECT_EQ(live(SOFTGPU_HANDLES), 3U);
  EXPECT_EQ((*region)->map(0, 6).code(), Code::kNoMemory);
  ASSERT_TRUE((*region)->map(0, 2).ok());
}

// From the very first page, whatever the thread does meanwhile.
TEST_F(Device, APoolNeverHoldsMoreThanItMay) {
  for (int i = 0; i < 50; ++i) {
    auto pool = this->pool({.bytes_max = 2 * page()});
    EXPECT_LE(live(SOFTGPU_HANDLES), 2U);
    pool->wait_until_quiet();
    EXPECT_EQ(live(SOFTGPU_HANDLES), 2U);
  }
}

// Every call on the way fails once; what was there stays, what was not is not, nothing leaks.
TEST_F(Device, AnErrorOfTheDriverLeavesThingsAsTheyWere) {
  auto pool = this->pool({.bytes_max = 12 * page(), .idle_low = 0, .idle_high = 0});
  auto region = DeviceRegion::create(*pool, nullptr, 12 * page());
  ASSERT_TRUE(region.ok());
  ASSERT_TRUE((*region)->map(4, 2).ok());
  write((*region)->address() + 4 * page(), 2 * page(), 8);
  for (const char* call : {"cuMemCreate", "cuMemMap", "cuMemSetAccess"}) {
    for (std::uint64_t nth = 1;; ++nth) {
      fail(call, nth, CUDA_ERROR_OUT_OF_MEMORY);
      const Status mapped = (*region)->map(0, 12);
      if (mapped.ok()) {
        fail_nothing(call);
        (*region)->leave(0, 4);
        (*region)->leave(6, 6);
        ASSERT_TRUE((*region)->settle().ok());
        (void)pool->trim(12);
        ASSERT_GT(nth, 1U) << call;
        break;
      }
      EXPECT_EQ(mapped.code(), Code::kNoMemory) << call << nth;
      EXPECT_STREQ(cuda::error_name(mapped), "CUDA_ERROR_OUT_OF_MEMORY");
      EXPECT_EQ((*region)->mapped_pages(), 2U) << call << nth;
      EXPECT_EQ(mappings(), 2U) << call << nth;
      (void)pool->trim(12);
      EXPECT_EQ(live(SOFTGPU_HANDLES), 2U) << call << nth;
    }
  }
  EXPECT_EQ(wrong((*region)->address() + 4 * page(), 2 * page(), 8), 0U);
}

TEST_F(Device, ARefusedUnmapKeepsLeaving) {
  auto pool = this->pool({});
  auto region = DeviceRegion::create(*pool, nullptr, 4 * page());
  ASSERT_TRUE(region.ok());
  ASSERT_TRUE((*region)->map(0, 4).ok());
  (*region)->leave(1, 2);
  fail("cuMemUnmap", 1, CUDA_ERROR_UNKNOWN);
  EXPECT_FALSE((*region)->settle().ok());
  EXPECT_EQ((*region)->page(1), DevicePage::kLeaving);
  EXPECT_EQ((*region)->mapped_pages(), 4U);
  ASSERT_TRUE((*region)->settle().ok());
  EXPECT_EQ((*region)->page(1), DevicePage::kAbsent);
  EXPECT_EQ((*region)->mapped_pages(), 2U);
}

TEST_F(Device, PagesAreMappedWhileTheEngineCapturesAGraph) {
  auto pool = this->pool({});
  CUstream stream = nullptr;
  CUgraph graph = nullptr;
  ASSERT_EQ(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
  ASSERT_EQ(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
  auto region = DeviceRegion::create(*pool, nullptr, 64 * page());
  ASSERT_TRUE(region.ok());
  EXPECT_TRUE((*region)->map(0, 64).ok());
  EXPECT_EQ(cuStreamEndCapture(stream, &graph), CUDA_SUCCESS);
  EXPECT_EQ(cuGraphDestroy(graph), CUDA_SUCCESS);
  EXPECT_EQ(cuStreamDestroy(stream), CUDA_SUCCESS);
}

TEST_F(Device, HostPagesStandAtDeviceAddresses) {
  DevicePool::Options options;
  options.location = {CU_MEM_LOCATION_TYPE_HOST_NUMA, 0};
  auto pool = this->pool({.idle_low = 0, .idle_high = 0});
  auto host = this->pool(options);
  auto region = DeviceRegion::create(*pool, host.get(), 4 * page());
  ASSERT_TRUE(region.ok());
  ASSERT_TRUE((*region)->map(0, 1).ok());
  ASSERT_TRUE((*region)->map(0, 4, DevicePlace::kHost).ok());  // what is mapped stays
  EXPECT_EQ((*region)->place(0), DevicePlace::kDevice);
  EXPECT_EQ((*region)->place(1), DevicePlace::kHost);
  write((*region)->address(), page(), 6);
  write((*region)->address() + page(), 3 * page(), 6);
  EXPECT_EQ(*reinterpret_cast<unsigned char*>((*region)->address() + page()), 6);
  EXPECT_EQ(live(SOFTGPU_DEVICE_BYTES), page());
  (*region)->leave(0, 4);
  reset_calls();
  ASSERT_TRUE((*region)->settle().ok());
  EXPECT_EQ(calls("cuMemUnmap"), 1U);  // a run is a run, wherever its pages are
  EXPECT_GE(host->stats().idle, 3U);
}

TEST_F(Device, ANodeThatRefusesIsAnErrorAtOnce) {
  DevicePool::Options options;
  options.context = context();
  options.location = {CU_MEM_LOCATION_TYPE_HOST_NUMA, 63};
  const auto pool = DevicePool::create(options);
  EXPECT_FALSE(pool.ok());
}

TEST_F(Device, EverythingGoesBack) {
  {
    auto pool = this->pool({});
    auto region = DeviceRegion::create(*pool, nullptr, 32 * page());
    ASSERT_TRUE(region.ok());
    ASSERT_TRUE((*region)->map(0, 32).ok());
    (*region)->leave(8, 8);
  }
  for (const softgpu_kind kind : {SOFTGPU_RESERVATIONS, SOFTGPU_HANDLES, SOFTGPU_MAPPINGS}) {
    EXPECT_EQ(live(kind), 0U) << kind;
  }
}

}  // namespace
}  // namespace kvmem
