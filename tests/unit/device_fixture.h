// A GPU for unit tests: the software driver, linked, so that libcuda.so.1 is found loaded.
#pragma once

#include <cuda.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/driver.h"
#include "region/device_pool.h"
#include "tests/softgpu/softgpu.h"

namespace kvmem::test {

class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(cuda::load().ok());
    ASSERT_EQ(cuInit(0), CUDA_SUCCESS);
    ASSERT_EQ(cuDevicePrimaryCtxRetain(&context_, 0), CUDA_SUCCESS);
    ASSERT_EQ(cuCtxSetCurrent(context_), CUDA_SUCCESS);
    softgpu_reset_calls();
  }
  void TearDown() override { EXPECT_EQ(cuDevicePrimaryCtxRelease(0), CUDA_SUCCESS); }

  CUcontext context() const { return context_; }
  static std::size_t page() { return std::size_t{2} << 20; }

  Owned<DevicePool> pool(DevicePool::Options options) {
    options.context = context_;
    auto made = DevicePool::create(options);
    EXPECT_TRUE(made.ok()) << made.status().what();
    return made.ok() ? *std::move(made) : nullptr;
  }

  static void write(CUdeviceptr at, std::size_t bytes, unsigned char value) {
    EXPECT_EQ(cuMemsetD8(at, value, bytes), CUDA_SUCCESS);
    EXPECT_EQ(cuCtxSynchronize(), CUDA_SUCCESS);
  }
  static std::size_t wrong(CUdeviceptr at, std::size_t bytes, unsigned char value) {
    std::vector<unsigned char> host(bytes);
    EXPECT_EQ(cuMemcpyDtoH(host.data(), at, bytes), CUDA_SUCCESS);
    if (std::memcmp(host.data(), std::vector<unsigned char>(bytes, value).data(), bytes) == 0) {
      return 0;
    }
    std::size_t count = 0;
    for (const unsigned char byte : host) count += byte != value;
    return count;
  }

  static std::uint64_t calls(const char* entry) { return softgpu_calls(entry); }
  static void reset_calls() { softgpu_reset_calls(); }
  static std::uint64_t live(softgpu_kind kind) { return softgpu_live(kind); }
  static void fail(const char* entry, std::uint64_t nth, int result) {
    softgpu_fail(entry, nth, result);
  }
  static void fail_nothing(const char* entry) { softgpu_fail(entry, 0, 0); }

 private:
  CUcontext context_ = nullptr;
};

}  // namespace kvmem::test
