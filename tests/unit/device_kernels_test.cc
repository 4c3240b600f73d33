// The page kernels, called as the library calls them, against arithmetic of the test's own; on the
// software device they are the twins.

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/kernels.h"
#include "kernels/kernels.h"
#include "tests/unit/device_fixture.h"

namespace kvmem {
namespace {

constexpr std::size_t kBytes = 65536;
constexpr std::size_t kWords = kBytes / 8;
using Page = std::vector<std::uint64_t>;

Page random_page(unsigned seed) {
  std::mt19937_64 random(seed);
  Page page(kWords);
  std::generate(page.begin(), page.end(), random);
  return page;
}

// From its definition in kernels.h.
std::uint64_t expected_hash(const Page& page) {
  std::uint64_t sum = 0;
  for (std::size_t i = page.size(); i-- > 0;) {
    std::uint64_t x = page[i] + (i + 1) * 0x9e3779b97f4a7c15;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93;
    x ^= x >> 29;
    x *= 0xff51afd7ed558ccd;
    sum += x ^ x >> 32;
  }
  return sum;
}

class KernelsTest : public test::DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    ASSERT_EQ(cuMemAlloc(&memory_, 2 * KVMEM_BATCH_PAGES * kBytes), CUDA_SUCCESS);
    ASSERT_EQ(cuMemsetD8(memory_, 0, 2 * KVMEM_BATCH_PAGES * kBytes), CUDA_SUCCESS);
    auto made = cuda::Kernels::create();
    if (!made.ok()) GTEST_SKIP() << made.status().what();
    kernels_ = *std::move(made);
    batch_.page_bytes = kBytes;
    batch_.count = KVMEM_BATCH_PAGES;
    for (unsigned i = 0; i < KVMEM_BATCH_PAGES; ++i) {
      batch_.from[i] = memory_ + i * kBytes;
      batch_.to[i] = memory_ + (2 * KVMEM_BATCH_PAGES - 1 - i) * kBytes;
      EXPECT_EQ(cuMemcpyHtoD(batch_.from[i], random_page(i).data(), kBytes), CUDA_SUCCESS);
    }
  }
  void TearDown() override {
    kernels_.reset();
    EXPECT_EQ(cuMemFree(memory_), CUDA_SUCCESS);
    DeviceTest::TearDown();
  }
  static Page read(CUdeviceptr at) {
    Page page(kWords);
    EXPECT_EQ(cuMemcpyDtoH(page.data(), at, kBytes), CUDA_SUCCESS);
    return page;
  }

  CUdeviceptr memory_ = 0;
  Owned<cuda::Kernels> kernels_;
  kvmem_batch batch_{};
};

TEST_F(KernelsTest, HashIsWhatItIsDefinedToBe) {
  std::uint64_t hashes[KVMEM_BATCH_PAGES] = {};
  ASSERT_TRUE(kernels_->hash(batch_, hashes).ok());
  for (unsigned i = 0; i < KVMEM_BATCH_PAGES; ++i) {
    EXPECT_EQ(hashes[i], expected_hash(random_page(i))) << i;
    EXPECT_EQ(hashes[i], kvmem_twin_hash(random_page(i).data(), kBytes)) << i;
  }
  ASSERT_TRUE(kernels_->hash(batch_, hashes).ok());  // and not added to what was there
  EXPECT_EQ(hashes[0], expected_hash(random_page(0)));
}

TEST_F(KernelsTest, CopyHashCopiesAndHashes) {
  std::uint64_t hashes[KVMEM_BATCH_PAGES] = {};
  ASSERT_TRUE(kernels_->copy_hash(batch_, hashes).ok());
  for (unsigned i = 0; i < KVMEM_BATCH_PAGES; ++i) {
    EXPECT_EQ(read(batch_.to[i]), random_page(i)) << i;
    EXPECT_EQ(read(batch_.from[i]), random_page(i)) << i;
    EXPECT_EQ(hashes[i], expected_hash(random_page(i))) << i;
  }
}

TEST_F(KernelsTest, CopyAndFill) {
  CUmodule module = nullptr;
  CUfunction copy = nullptr;
  CUfunction fill = nullptr;
  ASSERT_EQ(cuModuleLoadData(&module, kvmem_kernels_image), CUDA_SUCCESS);
  ASSERT_EQ(cuModuleGetFunction(&copy, module, "kvmem_copy"), CUDA_SUCCESS);
  ASSERT_EQ(cuModuleGetFunction(&fill, module, "kvmem_fill"), CUDA_SUCCESS);
  batch_.count = 3;
  std::uint64_t value = 0x0123456789abcdef;
  void* params[] = {&batch_, &value};
  ASSERT_EQ(cuLaunchKernel(copy, 4, 3, 1, 256, 1, 1, 0, nullptr, params, nullptr), CUDA_SUCCESS);
  EXPECT_EQ(read(batch_.to[2]), random_page(2));
  ASSERT_EQ(cuLaunchKernel(fill, 4, 3, 1, 256, 1, 1, 0, nullptr, params, nullptr), CUDA_SUCCESS);
  EXPECT_EQ(read(batch_.to[2]), Page(kWords, value));
  EXPECT_EQ(read(batch_.to[3]), Page(kWords, 0));  // beyond the count
  EXPECT_EQ(read(batch_.from[2]), random_page(2));
  EXPECT_EQ(cuModuleUnload(module), CUDA_SUCCESS);
}

// mix is one-to-one: a change of one word is always seen.
TEST(Hash, ChangesWithEveryWordAndPlace) {
  const Page page = random_page(1);
  const std::uint64_t hash = kvmem_twin_hash(page.data(), kBytes);
  std::mt19937_64 random(2);
  for (int n = 0; n < 1000; ++n) {
    Page other = page;
    other[random() % kWords] ^= std::uint64_t{1} << (random() % 64);
    EXPECT_NE(kvmem_twin_hash(other.data(), kBytes), hash);
    other = page;
    std::swap(other[random() % kWords], other[random() % kWords]);
    EXPECT_EQ(kvmem_twin_hash(other.data(), kBytes) == hash, other == page);
  }
  const Page zeroes(kWords, 0);
  EXPECT_NE(kvmem_twin_hash(zeroes.data(), kBytes), kvmem_twin_hash(zeroes.data(), kBytes / 2));
}

}  // namespace
}  // namespace kvmem
