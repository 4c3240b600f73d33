// What kvmem expects of a CUDA driver, said once and asked of both: the software driver, and the
// real one on a machine with a GPU (run with its libcuda.so.1 in LD_LIBRARY_PATH). What only the
// software driver promises (counts, injected failures, lateness) is asked of it alone.

#include <cuda.h>
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "tests/softgpu/softgpu.h"

// The kernels, for a GPU and for the software driver.
constexpr char kPtx[] = R"(
.version 7.0
.target sm_70
.address_size 64
.visible .entry conform_fill(.param .u64 at, .param .u32 count, .param .u32 value) {
  .reg .pred %p; .reg .b32 %r<6>; .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [at]; ld.param.u32 %r1, [count]; ld.param.u32 %r2, [value];
  cvta.to.global.u64 %rd1, %rd1;
  mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ntid.x; mov.u32 %r5, %tid.x;
  mad.lo.u32 %r3, %r3, %r4, %r5;
  setp.ge.u32 %p, %r3, %r1;
  @%p bra DONE;
  mul.wide.u32 %rd2, %r3, 4; add.u64 %rd1, %rd1, %rd2; st.global.u32 [%rd1], %r2;
DONE: ret;
}
.visible .entry conform_add(.param .u64 to, .param .u64 from, .param .u32 count) {
  .reg .pred %p; .reg .b32 %r<7>; .reg .b64 %rd<5>;
  ld.param.u64 %rd1, [to]; ld.param.u64 %rd2, [from]; ld.param.u32 %r1, [count];
  cvta.to.global.u64 %rd1, %rd1; cvta.to.global.u64 %rd2, %rd2;
  mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ntid.x; mov.u32 %r5, %tid.x;
  mad.lo.u32 %r3, %r3, %r4, %r5;
  setp.ge.u32 %p, %r3, %r1;
  @%p bra DONE;
  mul.wide.u32 %rd3, %r3, 4; add.u64 %rd1, %rd1, %rd3; add.u64 %rd2, %rd2, %rd3;
  ld.global.u32 %r4, [%rd1]; ld.global.u32 %r5, [%rd2]; add.u32 %r6, %r4, %r5;
  st.global.u32 [%rd1], %r6;
DONE: ret;
}
)";

extern "C" {
extern const softgpu_kernel conform_fill_softgpu, conform_add_softgpu;
static void conform_fill_body(const softgpu_launch*, void** params) {
  auto* at = *static_cast<volatile std::uint32_t**>(params[0]);
  const auto count = *static_cast<std::uint32_t*>(params[1]);
  const auto value = *static_cast<std::uint32_t*>(params[2]);
  for (std::uint32_t i = 0; i < count; ++i) at[i] = value;
}
const softgpu_kernel conform_fill_softgpu = {conform_fill_body, 3, {8, 4, 4}};
static void conform_add_body(const softgpu_launch*, void** params) {
  auto* to = *static_cast<volatile std::uint32_t**>(params[0]);
  const auto* from = *static_cast<const volatile std::uint32_t**>(params[1]);
  const auto count = *static_cast<std::uint32_t*>(params[2]);
  for (std::uint32_t i = 0; i < count; ++i) to[i] = to[i] + from[i];
}
const softgpu_kernel conform_add_softgpu = {conform_add_body, 3, {8, 8, 4}};
}

namespace {

struct Soft {
  decltype(&softgpu_calls) calls;
  decltype(&softgpu_reset_calls) reset;
  decltype(&softgpu_fail) fail;
  decltype(&softgpu_live) live;
};
// Null with a real driver.
const Soft* soft() {
  static const Soft kSoft = {
      reinterpret_cast<decltype(&softgpu_calls)>(::dlsym(RTLD_DEFAULT, "softgpu_calls")),
      reinterpret_cast<decltype(&softgpu_reset_calls)>(
          ::dlsym(RTLD_DEFAULT, "softgpu_reset_calls")),
      reinterpret_cast<decltype(&softgpu_fail)>(::dlsym(RTLD_DEFAULT, "softgpu_fail")),
      reinterpret_cast<decltype(&softgpu_live)>(::dlsym(RTLD_DEFAULT, "softgpu_live"))};
  return kSoft.calls != nullptr ? &kSoft : nullptr;
}

#define OK(call) ASSERT_EQ((call), CUDA_SUCCESS)

// In a process of its own, where nobody hears gtest: it ends with 0 where all was as it should be.
#define IN_CHILD(...)  \
  EXPECT_EXIT(         \
      {                \
        __VA_ARGS__;   \
        std::_Exit(0); \
      },               \
      testing::ExitedWithCode(0), "")
#define MUST(call, wanted) must((call), (wanted), #call)
void must(CUresult got, CUresult wanted, const char* what) {
  if (got == wanted) return;
  std::fprintf(stderr, "%s: %d, not %d\n", what, got, wanted);
  std::_Exit(1);
}
#define MUST_BE(condition) \
  must((condition) ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN, CUDA_SUCCESS, #condition)

// What the software driver reads when it begins, for processes that begin while this lives.
class Setting {
 public:
  explicit Setting(const char* value) {
    // NOLINTNEXTLINE(concurrency-mt-unsafe): one thread
    if (const char* before = std::getenv("SOFTGPU"); before != nullptr) before_ = before;
    ::setenv("SOFTGPU", value, 1);
  }
  ~Setting() {
    if (before_) {
      ::setenv("SOFTGPU", before_->c_str(), 1);
    } else {
      ::unsetenv("SOFTGPU");
    }
  }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  std::optional<std::string> before_;
};

// This program again, as another process that is given something (peer()). True: it saw what it
// should.
bool peer_agrees(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"conformance", "--peer"});
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t child = 0;
  int status = 0;
  return ::posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, argv.data(), environ) == 0 &&
         ::waitpid(child, &status, 0) == child && status == 0;
}

class Driver : public testing::Test {
 protected:
  void SetUp() override {
    OK(cuDeviceGet(&device_, 0));
    OK(cuDevicePrimaryCtxRetain(&context_, device_));
    OK(cuCtxSetCurrent(context_));
    prop_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop_.location = {CU_MEM_LOCATION_TYPE_DEVICE, device_};
    OK(cuMemGetAllocationGranularity(&page_, &prop_, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    read_write_.location = prop_.location;
    read_write_.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    OK(cuModuleLoadData(&module_, kPtx));
    OK(cuModuleGetFunction(&fill_, module_, "conform_fill"));
    OK(cuModuleGetFunction(&add_, module_, "conform_add"));
  }
  void TearDown() override {
    if (module_ != nullptr) (void)cuModuleUnload(module_);
    if (context_ != nullptr) (void)cuDevicePrimaryCtxRelease(device_);
  }

  CUresult fill(CUdeviceptr at, std::uint32_t words, std::uint32_t value,
                CUstream stream = nullptr) {
    void* params[] = {&at, &words, &value};
    return cuLaunchKernel(fill_, (words + 255) / 256, 1, 1, 256, 1, 1, 0, stream, params, nullptr);
  }
  CUresult add(CUdeviceptr to, CUdeviceptr from, std::uint32_t words, CUstream stream = nullptr) {
    void* params[] = {&to, &from, &words};
    return cuLaunchKernel(add_, (words + 255) / 256, 1, 1, 256, 1, 1, 0, stream, params, nullptr);
  }
  // Each of the words there is `value`.
  bool holds(CUdeviceptr at, std::size_t words, std::uint32_t value) {
    std::vector<std::uint32_t> host(words);
    if (cuMemcpyDtoH(host.data(), at, words * 4) != CUDA_SUCCESS) return false;
    for (const std::uint32_t word : host) {
      if (word != value) return false;
    }
    return true;
  }
  CUresult create(CUmemGenericAllocationHandle* out, std::size_t pages = 1) {
    return cuMemCreate(out, pages * page_, &prop_, 0);
  }

  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  CUmemAllocationProp prop_{};
  CUmemAccessDesc read_write_{};
  std::size_t page_ = 0;
  CUmodule module_ = nullptr;
  CUfunction fill_ = nullptr, add_ = nullptr;
};

class Vmm : public Driver {
 protected:
  static constexpr std::size_t kPages = 8;
  void SetUp() override {
    Driver::SetUp();
    OK(cuMemAddressReserve(&at_, kPages * page_, 0, 0, 0));
  }
  void TearDown() override {
    if (at_ != 0) {
      EXPECT_EQ(cuMemAddressFree(at_, kPages * page_), CUDA_SUCCESS);
    }
    Driver::TearDown();
  }
  // Maps fresh memory, with access; the handle is released, so unmapping frees it.
  void map(std::size_t first, std::size_t pages = 1) {
    for (std::size_t i = first; i < first + pages; ++i) {
      CUmemGenericAllocationHandle handle = 0;
      OK(create(&handle));
      OK(cuMemMap(at_ + i * page_, page_, 0, handle, 0));
      OK(cuMemRelease(handle));
    }
    OK(cuMemSetAccess(at_ + first * page_, pages * page_, &read_write_, 1));
  }
  CUdeviceptr at_ = 0;
};

TEST_F(Vmm, GranularityIsAPowerOfTwoOfAtMost2MiB) {
  EXPECT_EQ(page_ & (page_ - 1), 0U);
  EXPECT_LE(page_, std::size_t{2} << 20);
  EXPECT_GE(page_, 4096U);
}

TEST_F(Vmm, MappedPagesAreReadAndWritten) {
  map(0, 4);
  const auto words = static_cast<std::uint32_t>(4 * page_ / 4);
  OK(fill(at_, words, 0x12345678));
  EXPECT_TRUE(holds(at_, words, 0x12345678));
  OK(cuMemUnmap(at_, 4 * page_));  // several whole mappings at once
}

TEST_F(Vmm, AHandleMayBeMappedAtSeveralPlaces) {
  CUmemGenericAllocationHandle handle = 0;
  OK(create(&handle));
  OK(cuMemMap(at_, page_, 0, handle, 0));
  OK(cuMemMap(at_ + 2 * page_, page_, 0, handle, 0));
  OK(cuMemSetAccess(at_, page_, &read_write_, 1));
  OK(cuMemSetAccess(at_ + 2 * page_, page_, &read_write_, 1));
  OK(fill(at_, 1024, 7));
  EXPECT_TRUE(holds(at_ + 2 * page_, 1024, 7));
  OK(cuMemUnmap(at_, page_));
  OK(cuMemUnmap(at_ + 2 * page_, page_));
  OK(cuMemRelease(handle));
}

TEST_F(Vmm, AMappingOutlivesItsHandleAndMemoryGoesWithTheLastUnmap) {
  std::size_t before = 0;
  std::size_t during = 0;
  std::size_t after = 0;
  std::size_t total = 0;
  OK(cuMemGetInfo(&before, &total));
  map(0, 2);
  OK(cuMemGetInfo(&during, &total));
  OK(fill(at_, 1024, 9));
  EXPECT_TRUE(holds(at_, 1024, 9));
  OK(cuMemUnmap(at_, 2 * page_));
  OK(cuMemGetInfo(&after, &total));
  EXPECT_LE(during + 2 * page_, before);
  EXPECT_GE(after, during + 2 * page_);
}

TEST_F(Vmm, MemoryGoesWithTheLastOfItsMappings) {
  std::size_t before = 0;
  std::size_t during = 0;
  std::size_t after = 0;
  std::size_t total = 0;
  OK(cuMemGetInfo(&before, &total));
  CUmemGenericAllocationHandle handle = 0;
  OK(create(&handle));
  OK(cuMemMap(at_, page_, 0, handle, 0));
  OK(cuMemMap(at_ + 2 * page_, page_, 0, handle, 0));
  OK(cuMemSetAccess(at_ + 2 * page_, page_, &read_write_, 1));
  OK(cuMemRelease(handle));
  OK(cuMemUnmap(at_, page_));
  OK(cuMemGetInfo(&during, &total));
  EXPECT_LE(during + page_, before);
  OK(fill(at_ + 2 * page_, 1024, 8));
  EXPECT_TRUE(holds(at_ + 2 * page_, 1024, 8));
  OK(cuMemUnmap(at_ + 2 * page_, page_));
  OK(cuMemGetInfo(&after, &total));
  EXPECT_GE(after, during + page_);
}

TEST_F(Vmm, MovingAHandleKeepsItsBytes) {
  CUmemGenericAllocationHandle handle = 0;
  OK(create(&handle));
  OK(cuMemMap(at_, page_, 0, handle, 0));
  OK(cuMemSetAccess(at_, page_, &read_write_, 1));
  OK(fill(at_, 1024, 11));
  OK(cuCtxSynchronize());
  OK(cuMemUnmap(at_, page_));
  OK(cuMemMap(at_ + 3 * page_, page_, 0, handle, 0));
  OK(cuMemSetAccess(at_ + 3 * page_, page_, &read_write_, 1));
  EXPECT_TRUE(holds(at_ + 3 * page_, 1024, 11));
  OK(cuMemUnmap(at_ + 3 * page_, page_));
  OK(cuMemRelease(handle));
}

TEST_F(Vmm, RefusesWhatIsNotWholePages) {
  CUmemGenericAllocationHandle handle = 0;
  CUdeviceptr other = 0;
  EXPECT_EQ(cuMemCreate(&handle, page_ + 1, &prop_, 0), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cuMemAddressReserve(&other, page_ + 4096, 0, 0, 0), CUDA_ERROR_INVALID_VALUE);
  OK(create(&handle, 2));
  EXPECT_EQ(cuMemMap(at_ + 4096, page_, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cuMemMap(at_, page_ + 4096, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cuMemMap(at_, 3 * page_, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cuMemMap(at_, page_, page_, handle, 0), CUDA_ERROR_INVALID_VALUE);  // no offsets
  OK(cuMemRelease(handle));
}

TEST_F(Vmm, ThereAreNoFlags) {
  prop_.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  CUmemGenericAllocationHandle handle = 0;
  CUdeviceptr other = 0;
  int fd = -1;
  EXPECT_EQ(cuMemCreate(&handle, page_, &prop_, 1), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cuMemAddressReserve(&other, page_, 0, 0, 1), CUDA_ERROR_INVALID_VALUE);
  OK(create(&handle));
  EXPECT_EQ(cuMemMap(at_, page_, 0, handle, 1), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 1),
            CUDA_ERROR_INVALID_VALUE);
  OK(cuMemRelease(handle));
}

TEST_F(Vmm, RefusesToMapTwice) {
  CUmemGenericAllocationHandle handle = 0;
  OK(create(&handle, 2));
  OK(cuMemMap(at_ + 2 * page_, 2 * page_, 0, handle, 0));
  for (const std::size_t page : {1U, 2U, 3U}) {  // with its end, all of it, with its beginning
    EXPECT_EQ(cuMemMap(at_ + page * page_, 2 * page_, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
  }
  OK(cuMemUnmap(at_ + 2 * page_, 2 * page_));
  OK(cuMemRelease(handle));
}

TEST_F(Vmm, RefusesToMapOutsideAReservation) {
  CUmemGenericAllocationHandle handle = 0;
  CUdeviceptr allocation = 0;
  OK(create(&handle, 2));
  OK(cuMemAlloc(&allocation, 4 * page_));
  EXPECT_EQ(cuMemMap(page_, 2 * page_, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cuMemMap(at_ + (kPages - 1) * page_, 2 * page_, 0, handle, 0),
            CUDA_ERROR_INVALID_VALUE);
  const CUdeviceptr inside = (allocation + page_ - 1) / page_ * page_;
  EXPECT_EQ(cuMemMap(inside, 2 * page_, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
  OK(cuMemFree(allocation));
  OK(cuMemRelease(handle));
}

TEST_F(Vmm, UnmapsWholeMappingsOnly) {
  CUmemGenericAllocationHandle handle = 0;
  OK(create(&handle, 2));
  OK(cuMemMap(at_, 2 * page_, 0, handle, 0));
  OK(cuMemRelease(handle));
  EXPECT_EQ(cuMemUnmap(at_, page_), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cuMemUnmap(at_ + page_, page_), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cuMemUnmap(at_ + 4 * page_, page_), CUDA_ERROR_INVALID_VALUE);
  map(2);
  map(4);
  EXPECT_EQ(cuMemUnmap(at_ + page_, 2 * page_), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cuMemUnmap(at_, 5 * page_), CUDA_ERROR_INVALID_VALUE);  // over a hole
  EXPECT_EQ(cuMemUnmap(at_ + 4 * page_, 2 * page_), CUDA_ERROR_INVALID_VALUE);
  OK(cuMemUnmap(at_, 3 * page_));
  OK(cuMemUnmap(at_ + 4 * page_, page_));
}

TEST_F(Vmm, AccessIsGivenToWhatIsMapped) {
  EXPECT_EQ(cuMemSetAccess(at_, page_, &read_write_, 1), CUDA_ERROR_INVALID_VALUE);
  map(0, 2);
  EXPECT_EQ(cuMemSetAccess(at_, 3 * page_, &read_write_, 1), CUDA_ERROR_INVALID_VALUE);
  unsigned long long flags = 0;
  OK(cuMemGetAccess(&flags, &read_write_.location, at_ + page_));
  EXPECT_EQ(flags, static_cast<unsigned long long>(CU_MEM_ACCESS_FLAGS_PROT_READWRITE));
  // Not the processor's: that is for host memory alone.
  CUmemAccessDesc host = read_write_;
  host.location = {CU_MEM_LOCATION_TYPE_HOST_NUMA, 0};
  EXPECT_NE(cuMemSetAccess(at_, page_, &host, 1), CUDA_SUCCESS);
  OK(cuMemUnmap(at_, 2 * page_));
}

TEST_F(Vmm, EveryMappingBeginsWithoutAccess) {
  CUmemGenericAllocationHandle handle = 0;
  unsigned long long flags = 1;
  OK(create(&handle));
  OK(cuMemMap(at_, page_, 0, handle, 0));
  OK(cuMemSetAccess(at_, page_, &read_write_, 1));
  OK(cuMemUnmap(at_, page_));
  OK(cuMemMap(at_, page_, 0, handle, 0));
  OK(cuMemGetAccess(&flags, &read_write_.location, at_));
  EXPECT_EQ(flags, static_cast<unsigned long long>(CU_MEM_ACCESS_FLAGS_PROT_NONE));
  OK(cuMemUnmap(at_, page_));
  OK(cuMemRelease(handle));
}

TEST_F(Vmm, AReservationIsFreedWholeAndEmpty) {
  map(1);
  EXPECT_NE(cuMemAddressFree(at_, kPages * page_), CUDA_SUCCESS);
  OK(cuMemUnmap(at_ + page_, page_));
  EXPECT_NE(cuMemAddressFree(at_, page_), CUDA_SUCCESS);
  EXPECT_NE(cuMemAddressFree(at_ + page_, kPages * page_), CUDA_SUCCESS);
}

TEST_F(Vmm, RetainCountsAndAReleaseTooManyIsRefused) {
  CUmemGenericAllocationHandle handle = 0;
  CUmemGenericAllocationHandle again = 0;
  OK(create(&handle));
  OK(cuMemMap(at_, page_, 0, handle, 0));
  OK(cuMemRetainAllocationHandle(&again, reinterpret_cast<void*>(at_)));
  OK(cuMemRelease(handle));
  OK(cuMemRelease(again));
  OK(cuMemUnmap(at_, page_));
  EXPECT_NE(cuMemRelease(again), CUDA_SUCCESS);
}

TEST_F(Vmm, OnlyWhatIsMappedIsRetained) {
  CUmemGenericAllocationHandle handle = 0;
  map(0);
  EXPECT_EQ(cuMemRetainAllocationHandle(&handle, reinterpret_cast<void*>(at_ + page_)),
            CUDA_ERROR_INVALID_VALUE);
  OK(cuMemRetainAllocationHandle(&handle, reinterpret_cast<void*>(at_ + page_ / 2)));
  OK(cuMemUnmap(at_, page_));
  OK(cuMemMap(at_ + page_, page_, 0, handle, 0));
  OK(cuMemUnmap(at_ + page_, page_));
  OK(cuMemRelease(handle));
}

TEST_F(Vmm, AnExportedDescriptorOutlivesTheHandle) {
  prop_.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  CUmemGenericAllocationHandle handle = 0;
  CUmemGenericAllocationHandle imported = 0;
  OK(create(&handle));
  OK(cuMemMap(at_, page_, 0, handle, 0));
  OK(cuMemSetAccess(at_, page_, &read_write_, 1));
  OK(fill(at_, 1024, 21));
  OK(cuCtxSynchronize());
  int fd = -1;
  OK(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
  OK(cuMemUnmap(at_, page_));
  OK(cuMemRelease(handle));
  OK(cuMemImportFromShareableHandle(&imported, reinterpret_cast<void*>(static_cast<intptr_t>(fd)),
                                    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
  ::close(fd);
  OK(cuMemMap(at_ + page_, page_, 0, imported, 0));
  OK(cuMemSetAccess(at_ + page_, page_, &read_write_, 1));
  EXPECT_TRUE(holds(at_ + page_, 1024, 21));
  unsigned type = 0;
  OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at_ + page_));
  EXPECT_EQ(type, static_cast<unsigned>(CU_MEMORYTYPE_DEVICE));
  OK(cuMemUnmap(at_ + page_, page_));
  OK(cuMemRelease(imported));
}

TEST_F(Vmm, AnImportIsAReferenceOfItsOwn) {
  prop_.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  CUmemGenericAllocationHandle handle = 0;
  CUmemGenericAllocationHandle imported = 0;
  std::size_t during = 0;
  std::size_t after = 0;
  std::size_t total = 0;
  int fd = -1;
  OK(create(&handle));
  OK(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
  OK(cuMemImportFromShareableHandle(&imported, reinterpret_cast<void*>(static_cast<intptr_t>(fd)),
                                    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
  ::close(fd);
  OK(cuMemRelease(handle));
  OK(cuMemGetInfo(&during, &total));
  OK(cuMemMap(at_, page_, 0, imported, 0));
  OK(cuMemSetAccess(at_, page_, &read_write_, 1));
  OK(fill(at_, 1024, 22));
  EXPECT_TRUE(holds(at_, 1024, 22));
  OK(cuMemUnmap(at_, page_));
  OK(cuMemRelease(imported));
  OK(cuMemGetInfo(&after, &total));
  EXPECT_GE(after, during + page_);
  EXPECT_NE(cuMemRelease(imported), CUDA_SUCCESS);
}

TEST_F(Vmm, AnotherProcessImportsTheSameMemory) {
  prop_.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  map(0);
  CUmemGenericAllocationHandle handle = 0;
  int fd = -1;
  OK(cuMemRetainAllocationHandle(&handle, reinterpret_cast<void*>(at_)));
  OK(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
  const int inherited = ::dup(fd);  // without close-on-exec
  OK(fill(at_, 1024, 23));
  OK(cuCtxSynchronize());
  EXPECT_TRUE(peer_agrees({"import", std::to_string(inherited), "23"}));
  EXPECT_TRUE(holds(at_, 1024, 24));
  ::close(inherited);
  ::close(fd);
  OK(cuMemRelease(handle));
  OK(cuMemUnmap(at_, page_));
}

TEST_F(Vmm, OnlyWhatWasMadeForItIsExported) {
  CUmemGenericAllocationHandle handle = 0;
  OK(create(&handle));
  int fd = -1;
  EXPECT_NE(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
            CUDA_SUCCESS);
  OK(cuMemRelease(handle));
}

TEST_F(Vmm, PointersTellTheReservationWherePagesAreMissing) {
  map(0);
  for (const std::size_t page : {0U, 5U}) {
    CUdeviceptr start = 0;
    std::size_t size = 0;
    OK(cuPointerGetAttribute(&start, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
                             at_ + page * page_ + 8));
    OK(cuPointerGetAttribute(&size, CU_POINTER_ATTRIBUTE_RANGE_SIZE, at_ + page * page_ + 8));
    EXPECT_EQ(start, at_);
    EXPECT_EQ(size, kPages * page_);
  }
  unsigned type = 0;
  OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at_));
  EXPECT_EQ(type, static_cast<unsigned>(CU_MEMORYTYPE_DEVICE));
  CUdeviceptr base = 0;
  std::size_t bytes = 0;
  OK(cuMemGetAddressRange(&base, &bytes, at_ + 16));
  EXPECT_EQ(base, at_);
  EXPECT_EQ(bytes, page_);  // one mapping
  OK(cuMemUnmap(at_, page_));
}

TEST_F(Vmm, HostMemoryStandsAtADeviceAddress) {
  CUmemAllocationProp host = prop_;
  host.location = {CU_MEM_LOCATION_TYPE_HOST_NUMA, 0};
  CUmemGenericAllocationHandle handle = 0;
  const CUresult made = cuMemCreate(&handle, page_, &host, 0);
  if (made != CUDA_SUCCESS) GTEST_SKIP() << "HOST_NUMA is refused on node 0: " << made;
  map(0);  // its neighbour stays on the device
  OK(cuMemMap(at_ + page_, page_, 0, handle, 0));
  CUmemAccessDesc both[2] = {read_write_, read_write_};
  both[1].location = host.location;
  OK(cuMemSetAccess(at_ + page_, page_, both, 2));
  OK(fill(at_, static_cast<std::uint32_t>(2 * page_ / 4), 31));
  OK(cuCtxSynchronize());
  EXPECT_EQ(*reinterpret_cast<std::uint32_t*>(at_ + page_ + 64), 31U);  // the processor's view
  EXPECT_TRUE(holds(at_, page_ / 4, 31));
  EXPECT_TRUE(holds(at_ + page_, page_ / 4, 31));
  unsigned type = 0;
  OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at_ + page_));
  EXPECT_EQ(type, static_cast<unsigned>(CU_MEMORYTYPE_HOST));
  OK(cuMemUnmap(at_, 2 * page_));
  OK(cuMemRelease(handle));
}

TEST_F(Vmm, HostLocationsHaveTheirRules) {
  CUmemGenericAllocationHandle handle = 0;
  CUmemAllocationProp host = prop_;
  host.location = {CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT, 0};
  EXPECT_EQ(cuMemCreate(&handle, page_, &host, 0), CUDA_ERROR_INVALID_VALUE);
  host.location = {CU_MEM_LOCATION_TYPE_HOST_NUMA, 1 << 20};
  EXPECT_NE(cuMemCreate(&handle, page_, &host, 0), CUDA_SUCCESS);  // no such node
  host.location = {CU_MEM_LOCATION_TYPE_HOST, 0};
  host.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  EXPECT_EQ(cuMemCreate(&handle, page_, &host, 0), CUDA_ERROR_INVALID_VALUE);
}

TEST_F(Vmm, HostMemoryOfNoNodeTakesAnyNumber) {
  CUmemAllocationProp host = prop_;
  host.location = {CU_MEM_LOCATION_TYPE_HOST, 1 << 20};
  CUmemGenericAllocationHandle handle = 0;
  OK(cuMemCreate(&handle, page_, &host, 0));
  OK(cuMemMap(at_, page_, 0, handle, 0));
  CUmemAccessDesc both[2] = {read_write_, read_write_};
  both[1].location = {CU_MEM_LOCATION_TYPE_HOST_NUMA, 0};
  EXPECT_NE(cuMemSetAccess(at_, page_, both, 2), CUDA_SUCCESS);  // it is no node's
  both[1].location = host.location;
  OK(cuMemSetAccess(at_, page_, both, 2));
  OK(fill(at_, 1024, 33));
  OK(cuCtxSynchronize());
  EXPECT_EQ(*reinterpret_cast<std::uint32_t*>(at_ + 64), 33U);
  OK(cuMemUnmap(at_, page_));
  OK(cuMemRelease(handle));
}

// What ends a context ends the process's use of the device: each in a process of its own.
class VmmDeath : public Vmm {
 protected:
  void SetUp() override {
    Vmm::SetUp();
    OK(cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event_, CU_EVENT_DISABLE_TIMING));
    OK(cuMemAlloc(&memory_, 4096));
  }
  void TearDown() override {
    EXPECT_EQ(cuMemFree(memory_), CUDA_SUCCESS);
    EXPECT_EQ(cuEventDestroy(event_), CUDA_SUCCESS);
    EXPECT_EQ(cuStreamDestroy(stream_), CUDA_SUCCESS);
    Vmm::TearDown();
  }

  // Ends well where `code` is what comes of it, at the next synchronise and in every later call.
  [[noreturn]] void exit_with(CUresult code) {
    MUST(cuCtxSynchronize(), code);
    MUST(cuCtxSynchronize(), code);
    MUST(cuStreamSynchronize(stream_), code);
    MUST(cuStreamQuery(stream_), code);
    MUST(cuEventRecord(event_, stream_), code);
    MUST(cuEventQuery(event_), code);
    MUST(cuEventSynchronize(event_), code);
    MUST(cuStreamWaitEvent(stream_, event_, 0), code);
    CUstream stream = nullptr;
    MUST(cuStreamCreate(&stream, CU_STREAM_DEFAULT), code);
    CUevent event = nullptr;
    MUST(cuEventCreate(&event, CU_EVENT_DEFAULT), code);
    CUdeviceptr at = 0;
    MUST(cuMemAlloc(&at, 4096), code);
    MUST(cuMemFree(memory_), code);
    void* host = nullptr;
    MUST(cuMemAllocHost(&host, 4096), code);
    std::uint32_t word = 0;
    MUST(cuMemcpyHtoD(memory_, &word, 4), code);
    MUST(cuMemcpyDtoHAsync(&word, memory_, 4, stream_), code);
    MUST(cuMemsetD32Async(memory_, 1, 16, stream_), code);
    MUST(fill(memory_, 16, 1, stream_), code);
    CUmodule module = nullptr;
    MUST(cuModuleLoadData(&module, kPtx), code);
    std::size_t free = 0;
    std::size_t total = 0;
    MUST(cuMemGetInfo(&free, &total), code);
    if (soft() != nullptr) {  // not known of a real driver
      CUmemGenericAllocationHandle handle = 0;
      MUST(create(&handle), code);
      MUST(cuMemRelease(handle), code);
      MUST(cuMemMap(at_ + 7 * page_, page_, 0, handle, 0), code);
      MUST(cuMemUnmap(at_, page_), code);
      MUST(cuMemSetAccess(at_, page_, &read_write_, 1), code);
      MUST(cuMemRetainAllocationHandle(&handle, reinterpret_cast<void*>(at_)), code);
      unsigned long long flags = 0;
      MUST(cuMemGetAccess(&flags, &read_write_.location, at_), code);
      MUST(cuMemAddressReserve(&at, page_, 0, 0, 0), code);
      MUST(cuMemGetAddressRange(&at, &total, memory_), code);
      MUST(cuPointerGetAttribute(&at, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, memory_), code);
      CUgraph graph = nullptr;
      MUST(cuGraphCreate(&graph, 0), code);
    }
    std::_Exit(0);
  }

  CUstream stream_ = nullptr;
  CUevent event_ = nullptr;
  CUdeviceptr memory_ = 0;
};

TEST_F(VmmDeath, AnAccessBeforeItIsGivenIsFatal) {
  EXPECT_EXIT(
      {
        CUmemGenericAllocationHandle handle = 0;
        (void)create(&handle);
        (void)cuMemMap(at_, page_, 0, handle, 0);
        (void)fill(at_, 16, 1);
        exit_with(CUDA_ERROR_ILLEGAL_ADDRESS);
      },
      testing::ExitedWithCode(0), "");
}

TEST_F(VmmDeath, AReadBeforeItIsGivenIsFatal) {
  EXPECT_EXIT(
      {
        CUmemGenericAllocationHandle handle = 0;
        (void)create(&handle);
        (void)cuMemMap(at_, page_, 0, handle, 0);
        (void)add(memory_, at_, 16);
        exit_with(CUDA_ERROR_ILLEGAL_ADDRESS);
      },
      testing::ExitedWithCode(0), "");
}

TEST_F(VmmDeath, AnAccessAfterUnmapIsFatal) {
  EXPECT_EXIT(
      {
        map(0);
        (void)fill(at_, 16, 1);
        (void)cuCtxSynchronize();
        (void)cuMemUnmap(at_, page_);
        (void)fill(at_, 16, 2);
        exit_with(CUDA_ERROR_ILLEGAL_ADDRESS);
      },
      testing::ExitedWithCode(0), "");
}

TEST_F(VmmDeath, AWriteWhereOnlyReadingIsAllowedIsFatal) {
  EXPECT_EXIT(
      {
        map(0);
        CUmemAccessDesc read = read_write_;
        read.flags = CU_MEM_ACCESS_FLAGS_PROT_READ;
        (void)cuMemSetAccess(at_, page_, &read, 1);
        (void)fill(at_, 16, 1);
        exit_with(CUDA_ERROR_ILLEGAL_ADDRESS);
      },
      testing::ExitedWithCode(0), "");
}

// The work is held up until after the unmap, so that it comes too late for certain: on hardware it
// may go well by chance.
std::atomic<bool> is_unmapped{false};

TEST_F(VmmDeath, SoftAnUnmapThatDoesNotWaitIsFatal) {
  if (soft() == nullptr) GTEST_SKIP() << "not defined on a real device";
  const CUhostFn hold_up = [](void*) {
    while (!is_unmapped.load()) std::this_thread::yield();
  };
  EXPECT_EXIT(
      {
        map(0);
        (void)cuLaunchHostFunc(nullptr, hold_up, nullptr);
        for (int i = 0; i < 50; ++i) (void)fill(at_, 16, 1);
        (void)cuMemUnmap(at_, page_);
        is_unmapped = true;
        exit_with(CUDA_ERROR_ILLEGAL_ADDRESS);
      },
      testing::ExitedWithCode(0), "");
}

// The same by lateness alone.
TEST_F(VmmDeath, SoftAnUnmapWaitsForNothing) {
  if (soft() == nullptr) GTEST_SKIP() << "not defined on a real device";
  const Setting setting("late_us=200000");
  EXPECT_EXIT(
      {
        map(0);
        for (int i = 0; i < 5; ++i) (void)fill(at_, 16, 1);
        (void)cuMemUnmap(at_, page_);
        exit_with(CUDA_ERROR_ILLEGAL_ADDRESS);
      },
      testing::ExitedWithCode(0), "");
}

// What a copy across device and host memory does is documented nowhere. The software driver
// refuses it, so that nobody relies on it.
class SoftPlaces : public VmmDeath {
 protected:
  // Page 1 in host memory, between pages of the device's.
  void SetUp() override {
    VmmDeath::SetUp();
    if (soft() == nullptr) GTEST_SKIP() << "not defined on a real device";
    map(0, 2);
    OK(cuMemsetD32(at_, 0, 2 * page_ / 4));
    OK(cuCtxSynchronize());
  }
  void TearDown() override {
    if (soft() != nullptr) {
      EXPECT_EQ(cuMemUnmap(at_, 2 * page_), CUDA_SUCCESS);
    }
    VmmDeath::TearDown();
  }
  CUresult second_to_host() {
    CUmemAllocationProp host = prop_;
    host.location = {CU_MEM_LOCATION_TYPE_HOST, 0};
    CUmemGenericAllocationHandle handle = 0;
    CUmemAccessDesc both[2] = {read_write_, read_write_};
    both[1].location = host.location;
    for (const CUresult result :
         {cuMemUnmap(at_ + page_, page_), cuMemCreate(&handle, page_, &host, 0),
          cuMemMap(at_ + page_, page_, 0, handle, 0), cuMemRelease(handle),
          cuMemSetAccess(at_ + page_, page_, both, 2)}) {
      if (result != CUDA_SUCCESS) return result;
    }
    return CUDA_SUCCESS;
  }
  CUDA_MEMCPY2D rows(CUdeviceptr to, CUdeviceptr from) const {
    CUDA_MEMCPY2D c{};
    c.srcMemoryType = c.dstMemoryType = CU_MEMORYTYPE_DEVICE;
    c.srcDevice = from;
    c.dstDevice = to;
    c.srcPitch = c.dstPitch = c.WidthInBytes = 4096;
    c.Height = 2;
    return c;
  }
  // `record` on a stream, as a graph that is launched when the page has moved.
  template <class Record>
  [[noreturn]] void exit_after_launch(Record record) {
    CUgraph graph = nullptr;
    CUgraphExec executable = nullptr;
    MUST(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_RELAXED), CUDA_SUCCESS);
    MUST(record(), CUDA_SUCCESS);
    MUST(cuStreamEndCapture(stream_, &graph), CUDA_SUCCESS);
    MUST(cuGraphInstantiate(&executable, graph, 0), CUDA_SUCCESS);
    MUST(second_to_host(), CUDA_SUCCESS);
    MUST(cuGraphLaunch(executable, stream_), CUDA_SUCCESS);
    exit_with(CUDA_ERROR_ILLEGAL_ADDRESS);
  }
  CUdeviceptr across() const { return at_ + page_ - 4096; }
};

TEST_F(SoftPlaces, ACopyAcrossTwoIsRefused) {
  OK(second_to_host());
  EXPECT_EQ(cuMemcpyDtoD(at_, across(), 8192), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cuMemcpyDtoDAsync(across(), at_, 8192, stream_), CUDA_ERROR_INVALID_VALUE);
  std::vector<unsigned char> host(8192);
  EXPECT_EQ(cuMemcpyDtoH(host.data(), across(), 8192), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cuMemcpyHtoDAsync(across(), host.data(), 8192, stream_), CUDA_ERROR_INVALID_VALUE);
  const CUDA_MEMCPY2D shape = rows(across(), at_);
  EXPECT_EQ(cuMemcpy2D(&shape), CUDA_ERROR_INVALID_VALUE);
  OK(cuMemcpyDtoD(at_, across(), 4096));
  OK(cuMemcpyDtoD(at_ + page_, at_, 4096));  // each in one place
  OK(cuCtxSynchronize());
}

TEST_F(SoftPlaces, AFillAcrossTwoIsRefused) {
  OK(second_to_host());
  EXPECT_EQ(cuMemsetD32(across(), 1, 2048), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cuMemsetD2D32(across(), 4096, 1, 1024, 2), CUDA_ERROR_INVALID_VALUE);
  OK(cuMemsetD32(across(), 1, 1024));
  OK(cuCtxSynchronize());
}

TEST_F(SoftPlaces, AGraphsCopyIsOfThePlacesWhenItRuns) {
  EXPECT_EXIT(exit_after_launch([this] { return cuMemcpyDtoDAsync(at_, across(), 8192, stream_); }),
              testing::ExitedWithCode(0), "");
}

TEST_F(SoftPlaces, AGraphsCopyOfRowsIsOfThePlacesWhenItRuns) {
  EXPECT_EXIT(exit_after_launch([this] {
                const CUDA_MEMCPY2D shape = rows(at_, across());
                return cuMemcpy2DAsync(&shape, stream_);
              }),
              testing::ExitedWithCode(0), "");
}

TEST_F(SoftPlaces, AGraphsFillIsOfThePlacesWhenItRuns) {
  EXPECT_EXIT(exit_after_launch([this] { return cuMemsetD32Async(across(), 1, 2048, stream_); }),
              testing::ExitedWithCode(0), "");
}

// Memory shared with others.

std::string hexadecimal(const CUipcMemHandle& handle) {
  std::string text;
  for (const char byte : handle.reserved) {
    const auto value = static_cast<unsigned char>(byte);
    text += {"0123456789abcdef"[value / 16], "0123456789abcdef"[value % 16]};
  }
  return text;
}

TEST_F(Driver, AnAllocationIsOpenedByAnotherProcess) {
  CUdeviceptr at = 0;
  CUdeviceptr again = 0;
  CUipcMemHandle handle{};
  OK(cuMemAlloc(&at, 1 << 20));
  OK(cuMemsetD32(at, 41, 1 << 18));
  OK(cuCtxSynchronize());
  OK(cuIpcGetMemHandle(&handle, at));
  EXPECT_TRUE(peer_agrees({"open", hexadecimal(handle), "41"}));
  EXPECT_TRUE(holds(at, 1 << 18, 42));
  // Not by its own, and not otherwise than as there is.
  EXPECT_NE(cuIpcOpenMemHandle(&again, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS), CUDA_SUCCESS);
  EXPECT_EQ(cuIpcOpenMemHandle(&again, handle, 0), CUDA_ERROR_INVALID_VALUE);
  EXPECT_NE(cuIpcCloseMemHandle(at), CUDA_SUCCESS);
  int capable = 0;
  OK(cuPointerGetAttribute(&capable, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, at));
  EXPECT_EQ(capable, 1);
  OK(cuMemFree(at));
  EXPECT_TRUE(peer_agrees({"gone", hexadecimal(handle), "0"}));
}

TEST_F(Vmm, HasNoLegacyIpcHandle) {
  prop_.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  map(0);
  CUipcMemHandle handle{};
  EXPECT_EQ(cuIpcGetMemHandle(&handle, at_), CUDA_ERROR_INVALID_VALUE);
  int capable = 1;
  OK(cuPointerGetAttribute(&capable, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, at_));
  EXPECT_EQ(capable, 0);
  OK(cuMemUnmap(at_, page_));
}

TEST_F(Vmm, IsNotToldToSynchronise) {
  const unsigned on = 1;
  unsigned is_on = 0;
  CUdeviceptr allocation = 0;
  OK(cuMemAlloc(&allocation, page_));
  OK(cuPointerSetAttribute(&on, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, allocation + 64));
  OK(cuPointerGetAttribute(&is_on, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, allocation));
  EXPECT_EQ(is_on, 1U);
  map(0);
  EXPECT_EQ(cuPointerSetAttribute(&on, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, at_),
            CUDA_ERROR_NOT_SUPPORTED);
  OK(cuMemUnmap(at_, page_));
  OK(cuMemFree(allocation));
}

class DmaBuf : public Vmm {
 protected:
  void SetUp() override {
    Vmm::SetUp();
    int supported = 0;
    OK(cuDeviceGetAttribute(&supported, CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED, device_));
    if (supported == 0) GTEST_SKIP() << "the driver exports no dma-buf";
  }
  CUresult dma_buf(CUdeviceptr at, std::size_t bytes) {
    int fd = -1;
    const CUresult result =
        cuMemGetHandleForAddressRange(&fd, at, bytes, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD, 0);
    if (result == CUDA_SUCCESS) ::close(fd);
    return result;
  }
};

TEST_F(DmaBuf, IsOfAnAllocationAndOfMappedMemoryMadeForIt) {
  CUdeviceptr allocation = 0;
  OK(cuMemAlloc(&allocation, page_));
  OK(dma_buf(allocation, page_));
  OK(cuMemFree(allocation));
  prop_.allocFlags.gpuDirectRDMACapable = 1;
  map(0, 2);
  prop_.allocFlags.gpuDirectRDMACapable = 0;
  map(3);
  OK(dma_buf(at_, 2 * page_));
  EXPECT_NE(dma_buf(at_ + 3 * page_, page_), CUDA_SUCCESS);  // not made for it
  EXPECT_NE(dma_buf(at_, 3 * page_), CUDA_SUCCESS);          // not all mapped
  EXPECT_NE(dma_buf(at_ + 512, page_), CUDA_SUCCESS);        // no whole pages of the host's
  EXPECT_NE(dma_buf(at_, 512), CUDA_SUCCESS);
  OK(cuMemUnmap(at_, 2 * page_));
  OK(cuMemUnmap(at_ + 3 * page_, page_));
}

TEST_F(DmaBuf, IsNotOfHostMemoryAtADeviceAddress) {
  CUmemAllocationProp host = prop_;
  host.location = {CU_MEM_LOCATION_TYPE_HOST, 0};
  host.allocFlags.gpuDirectRDMACapable = 1;
  CUmemGenericAllocationHandle handle = 0;
  if (cuMemCreate(&handle, page_, &host, 0) != CUDA_SUCCESS) {
    GTEST_SKIP() << "there is no host memory that says it is made for it";
  }
  OK(cuMemMap(at_, page_, 0, handle, 0));
  OK(cuMemSetAccess(at_, page_, &read_write_, 1));
  EXPECT_NE(dma_buf(at_, page_), CUDA_SUCCESS);
  OK(cuMemUnmap(at_, page_));
  OK(cuMemRelease(handle));
}

TEST_F(Driver, IsNoPeerOfItself) {
  int can = 1;
  OK(cuDeviceCanAccessPeer(&can, device_, device_));
  EXPECT_EQ(can, 0);
  EXPECT_EQ(cuCtxEnablePeerAccess(context_, 0), CUDA_ERROR_INVALID_CONTEXT);
  EXPECT_EQ(cuCtxEnablePeerAccess(context_, 1), CUDA_ERROR_INVALID_VALUE);
  EXPECT_NE(cuCtxDisablePeerAccess(context_), CUDA_SUCCESS);
}

class Streams : public Driver {
 protected:
  static constexpr std::uint32_t kWords = 4096;
  void SetUp() override {
    Driver::SetUp();
    OK(cuMemAlloc(&one_, kWords * 4));
    OK(cuMemAlloc(&two_, kWords * 4));
    OK(cuMemsetD32(one_, 0, kWords));
    OK(cuMemsetD32(two_, 0, kWords));
    OK(cuCtxSynchronize());
  }
  void TearDown() override {
    EXPECT_EQ(cuMemFree(one_), CUDA_SUCCESS);
    EXPECT_EQ(cuMemFree(two_), CUDA_SUCCESS);
    Driver::TearDown();
  }
  CUdeviceptr one_ = 0, two_ = 0;
};

TEST_F(Streams, AStreamKeepsItsOrder) {
  CUstream stream = nullptr;
  OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  for (std::uint32_t round = 1; round <= 20; ++round) {
    OK(fill(one_, kWords, round, stream));
    OK(cuMemcpyDtoDAsync(two_, one_, kWords * 4, stream));
    OK(add(one_, two_, kWords, stream));
    OK(cuStreamSynchronize(stream));
    EXPECT_TRUE(holds(one_, kWords, 2 * round));
  }
  OK(cuStreamDestroy(stream));
}

TEST_F(Streams, EventsOrderStreams) {
  CUstream first = nullptr;
  CUstream second = nullptr;
  CUevent event = nullptr;
  OK(cuStreamCreate(&first, CU_STREAM_NON_BLOCKING));
  OK(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
  OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
  for (std::uint32_t round = 1; round <= 20; ++round) {
    OK(fill(one_, kWords, round, first));
    OK(cuEventRecord(event, first));
    OK(cuStreamWaitEvent(second, event, 0));
    OK(cuMemcpyDtoDAsync(two_, one_, kWords * 4, second));
    OK(cuStreamSynchronize(second));
    EXPECT_EQ(cuEventQuery(event), CUDA_SUCCESS);
    EXPECT_TRUE(holds(two_, kWords, round));
  }
  OK(cuEventDestroy(event));
  OK(cuStreamDestroy(first));
  OK(cuStreamDestroy(second));
}

TEST_F(Streams, TheLegacyStreamJoinsThoseThatDoNotStandAside) {
  CUstream stream = nullptr;
  OK(cuStreamCreate(&stream, CU_STREAM_DEFAULT));
  for (std::uint32_t round = 1; round <= 20; ++round) {
    OK(fill(one_, kWords, round, stream));
    OK(cuMemcpyDtoDAsync(two_, one_, kWords * 4, CU_STREAM_LEGACY));
    OK(fill(one_, kWords, 0, stream));
    OK(cuCtxSynchronize());
    EXPECT_TRUE(holds(two_, kWords, round));
  }
  OK(cuStreamDestroy(stream));
}

TEST_F(Streams, AThreadsOwnStreamJoinsTheLegacyOne) {
  for (std::uint32_t round = 1; round <= 20; ++round) {
    OK(fill(one_, kWords, round, CU_STREAM_PER_THREAD));
    OK(cuMemcpyDtoDAsync(two_, one_, kWords * 4, CU_STREAM_LEGACY));
    OK(fill(one_, kWords, 0, CU_STREAM_PER_THREAD));
    OK(cuCtxSynchronize());
    EXPECT_TRUE(holds(two_, kWords, round));
  }
}

TEST_F(Streams, ZeroIsTheThreadsOwnStreamWhereThatIsAskedFor) {
  using GetId = CUresult (*)(CUstream, unsigned long long*);
  void* legacy_form = nullptr;
  void* own_form = nullptr;
  OK(cuGetProcAddress("cuStreamGetId", &legacy_form, 12000, CU_GET_PROC_ADDRESS_LEGACY_STREAM,
                      nullptr));
  OK(cuGetProcAddress("cuStreamGetId", &own_form, 12000,
                      CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, nullptr));
  const auto id = [](void* form, CUstream stream) {
    unsigned long long out = 0;
    return reinterpret_cast<GetId>(form)(stream, &out) == CUDA_SUCCESS ? out : 0;
  };
  const unsigned long long own = id(own_form, nullptr);
  EXPECT_NE(own, 0U);
  EXPECT_EQ(id(legacy_form, nullptr), id(own_form, CU_STREAM_LEGACY));
  EXPECT_EQ(own, id(legacy_form, CU_STREAM_PER_THREAD));
  EXPECT_NE(own, id(legacy_form, nullptr));
  unsigned long long others = 0;
  std::thread([&] {
    if (cuCtxSetCurrent(context_) == CUDA_SUCCESS) others = id(own_form, nullptr);
  }).join();
  EXPECT_NE(others, 0U);
  EXPECT_NE(others, own);
}

TEST_F(Streams, ABatchIsNotForTheLegacyStream) {
  CUdeviceptr to[] = {two_};
  CUdeviceptr from[] = {one_};
  std::size_t bytes[] = {kWords * 4};
  std::size_t first[] = {0};
  CUmemcpyAttributes attributes{};
  attributes.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
  const auto batch = [&](CUstream stream) {
    return cuMemcpyBatchAsync(to, from, bytes, 1, &attributes, first, 1, stream);
  };
  OK(cuMemsetD32(one_, 6, kWords));
  EXPECT_NE(batch(nullptr), CUDA_SUCCESS);
  EXPECT_NE(batch(CU_STREAM_LEGACY), CUDA_SUCCESS);
  OK(batch(CU_STREAM_PER_THREAD));
  OK(cuCtxSynchronize());
  EXPECT_TRUE(holds(two_, kWords, 6));
}

// Which of two streams' host functions came first, in a hundred rounds.
TEST_F(Streams, SoftWhatNothingOrdersRunsInAnyOrder) {
  if (soft() == nullptr) GTEST_SKIP() << "a real device has habits";
  CUstream first = nullptr;
  CUstream second = nullptr;
  OK(cuStreamCreate(&first, CU_STREAM_NON_BLOCKING));
  OK(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
  struct Order {
    std::atomic<int> next{0};
    int first = 0, second = 0;
  };
  for (const CUstream other : {second, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD}) {
    int firsts = 0;
    for (int round = 0; round < 100; ++round) {
      Order order;
      OK(cuLaunchHostFunc(
          first, [](void* o) { static_cast<Order*>(o)->first = ++static_cast<Order*>(o)->next; },
          &order));
      OK(cuLaunchHostFunc(
          other, [](void* o) { static_cast<Order*>(o)->second = ++static_cast<Order*>(o)->next; },
          &order));
      OK(cuCtxSynchronize());
      firsts += order.first < order.second;
    }
    EXPECT_GT(firsts, 10);
    EXPECT_LT(firsts, 90);
  }
  OK(cuStreamDestroy(first));
  OK(cuStreamDestroy(second));
}

TEST_F(Streams, SoftWorkIsLate) {
  if (soft() == nullptr) GTEST_SKIP() << "a real device is as fast as it is";
  const Setting setting("late_us=200000");
  IN_CHILD({
    int late = 0;
    for (int i = 0; i < 20; ++i) {
      CUstream stream = nullptr;
      MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
      MUST(fill(one_, 16, 1, stream), CUDA_SUCCESS);
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
      late += cuStreamQuery(stream) == CUDA_ERROR_NOT_READY;
    }
    MUST_BE(late >= 10);
  });
}

TEST_F(Streams, EachThreadHasAStreamOfItsOwn) {
  std::atomic<int> wrong{0};
  const auto body = [&](CUdeviceptr at, std::uint32_t value) {
    wrong += cuCtxSetCurrent(context_) != CUDA_SUCCESS;
    for (std::uint32_t i = 0; i < 10; ++i) {
      wrong += fill(at, kWords, value + i, CU_STREAM_PER_THREAD) != CUDA_SUCCESS;
      wrong += cuStreamSynchronize(CU_STREAM_PER_THREAD) != CUDA_SUCCESS;
      wrong += !holds(at, kWords, value + i);
    }
  };
  std::thread first(body, one_, 100);
  std::thread second(body, two_, 200);
  first.join();
  second.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST_F(Streams, HostFunctionsRunInOrder) {
  CUstream stream = nullptr;
  OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  std::atomic<int> ran{0};
  OK(fill(one_, kWords, 5, stream));
  OK(cuLaunchHostFunc(
      stream, [](void* counter) { ++*static_cast<std::atomic<int>*>(counter); }, &ran));
  OK(cuStreamSynchronize(stream));
  EXPECT_EQ(ran.load(), 1);
  OK(cuStreamDestroy(stream));
}

TEST_F(Streams, BothFormsOfParametersArriveAndAreTold) {
  struct {
    CUdeviceptr at;
    std::uint32_t words, value;
  } buffer = {one_, kWords, 77};
  std::size_t bytes = sizeof buffer;
  void* extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &buffer, CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes,
                   CU_LAUNCH_PARAM_END};
  OK(cuLaunchKernel(fill_, kWords / 256, 1, 1, 256, 1, 1, 0, nullptr, nullptr, extra));
  EXPECT_TRUE(holds(one_, kWords, 77));
  std::size_t offset = 0;
  std::size_t size = 0;
  OK(cuFuncGetParamInfo(add_, 1, &offset, &size));
  EXPECT_EQ(offset, 8U);
  EXPECT_EQ(size, 8U);
  EXPECT_EQ(cuFuncGetParamInfo(add_, 3, &offset, &size), CUDA_ERROR_INVALID_VALUE);
}

class Capture : public Streams {
 protected:
  void SetUp() override {
    Streams::SetUp();
    OK(cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING));
  }
  void TearDown() override {
    EXPECT_EQ(cuStreamDestroy(stream_), CUDA_SUCCESS);
    Streams::TearDown();
  }
  CUstream stream_ = nullptr;
};

TEST_F(Capture, WhatIsCapturedRunsWhenItIsLaunched) {
  OK(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  OK(fill(one_, kWords, 3, stream_));
  OK(add(two_, one_, kWords, stream_));
  CUstreamCaptureStatus status{};
  OK(cuStreamIsCapturing(stream_, &status));
  EXPECT_EQ(status, CU_STREAM_CAPTURE_STATUS_ACTIVE);
  CUgraph graph = nullptr;
  OK(cuStreamEndCapture(stream_, &graph));
  EXPECT_TRUE(holds(two_, kWords, 0));
  std::size_t nodes = 0;
  OK(cuGraphGetNodes(graph, nullptr, &nodes));
  EXPECT_EQ(nodes, 2U);
  CUgraphExec exec = nullptr;
  OK(cuGraphInstantiate(&exec, graph, 0));
  OK(cuGraphDestroy(graph));
  for (std::uint32_t i = 1; i <= 5; ++i) {
    OK(cuGraphLaunch(exec, stream_));
    OK(cuStreamSynchronize(stream_));
    EXPECT_TRUE(holds(two_, kWords, 3 * i));
  }
  OK(cuGraphExecDestroy(exec));
}

TEST_F(Capture, AnotherStreamJoinsByAnEvent) {
  CUstream other = nullptr;
  CUevent fork = nullptr;
  CUevent join = nullptr;
  OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
  OK(cuEventCreate(&fork, CU_EVENT_DISABLE_TIMING));
  OK(cuEventCreate(&join, CU_EVENT_DISABLE_TIMING));
  OK(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  OK(fill(one_, kWords, 4, stream_));
  OK(cuEventRecord(fork, stream_));
  OK(cuStreamWaitEvent(other, fork, 0));
  OK(add(two_, one_, kWords, other));
  OK(cuEventRecord(join, other));
  OK(cuStreamWaitEvent(stream_, join, 0));
  OK(fill(one_, kWords, 0, stream_));
  CUgraph graph = nullptr;
  OK(cuStreamEndCapture(stream_, &graph));
  CUgraphExec exec = nullptr;
  OK(cuGraphInstantiate(&exec, graph, 0));
  for (std::uint32_t i = 1; i <= 5; ++i) {
    OK(cuGraphLaunch(exec, stream_));
    OK(cuStreamSynchronize(stream_));
    EXPECT_TRUE(holds(two_, kWords, 4 * i));
    EXPECT_TRUE(holds(one_, kWords, 0));
  }
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  OK(cuEventDestroy(fork));
  OK(cuEventDestroy(join));
  OK(cuStreamDestroy(other));
}

TEST_F(Capture, AllocatingSpoilsItUnlessTheThreadSaysOtherwise) {
  CUdeviceptr at = 0;
  CUgraph graph = nullptr;
  OK(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_GLOBAL));
  EXPECT_EQ(cuMemAlloc(&at, 4096), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  EXPECT_EQ(cuStreamEndCapture(stream_, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  EXPECT_EQ(graph, nullptr);
  OK(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_GLOBAL));
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  OK(cuThreadExchangeStreamCaptureMode(&mode));
  OK(cuMemAlloc(&at, 4096));
  OK(cuThreadExchangeStreamCaptureMode(&mode));
  OK(cuStreamEndCapture(stream_, &graph));
  OK(cuGraphDestroy(graph));
  OK(cuMemFree(at));
}

// Each call spoils a capture of its own.
TEST_F(Capture, ForbidsToAllocateMapAndWait) {
  prop_.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  std::vector<unsigned char> buffer(8192);
  std::vector<unsigned char> registered(8192);
  void* host = nullptr;
  CUdeviceptr at = 0;
  CUdeviceptr other = 0;
  CUmemGenericAllocationHandle handle = 0;
  CUmemGenericAllocationHandle made = 0;
  OK(cuMemHostRegister(registered.data(), registered.size(), 0));
  OK(cuMemAddressReserve(&at, 2 * page_, 0, 0, 0));
  OK(create(&handle));
  OK(cuMemMap(at, page_, 0, handle, 0));
  const auto spoils = [&](const char* what, const auto& call) {
    CUgraph graph = nullptr;
    CUstreamCaptureStatus status{};
    EXPECT_EQ(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
    EXPECT_EQ(call(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED) << what;
    EXPECT_EQ(cuStreamIsCapturing(stream_, &status), CUDA_SUCCESS);
    EXPECT_EQ(status, CU_STREAM_CAPTURE_STATUS_INVALIDATED) << what;
    EXPECT_EQ(fill(one_, 16, 1, stream_), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED) << what;
    EXPECT_EQ(cuStreamEndCapture(stream_, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED) << what;
    EXPECT_EQ(graph, nullptr) << what;
  };
#define SPOILS(call) spoils(#call, [&] { return call; })
  SPOILS(cuMemAlloc(&other, 4096));
  SPOILS(cuMemFree(one_));
  SPOILS(cuMemAllocHost(&host, 4096));
  SPOILS(cuMemHostRegister(buffer.data(), buffer.size(), 0));
  SPOILS(cuMemHostUnregister(registered.data()));
  SPOILS(cuMemAddressReserve(&other, page_, 0, 0, 0));
  SPOILS(create(&made));
  SPOILS(cuMemMap(at + page_, page_, 0, handle, 0));
  SPOILS(cuMemSetAccess(at, page_, &read_write_, 1));
  SPOILS(cuMemUnmap(at, page_));
  SPOILS(cuMemRelease(handle));
  SPOILS(cuMemAddressFree(at, 2 * page_));
  SPOILS(cuMemcpyDtoH(buffer.data(), one_, 4096));
  SPOILS(cuCtxSynchronize());
  SPOILS(cuStreamSynchronize(stream_));
  SPOILS(cuStreamQuery(stream_));
#undef SPOILS
  OK(cuMemUnmap(at, page_));
  OK(cuMemRelease(handle));
  OK(cuMemAddressFree(at, 2 * page_));
  OK(cuMemHostUnregister(registered.data()));
}

TEST_F(Capture, ItsModeSaysToWhomThatIsForbidden) {
  const auto allocate = [](CUstreamCaptureMode mode) {
    CUdeviceptr at = 0;
    (void)cuThreadExchangeStreamCaptureMode(&mode);
    const CUresult result = cuMemAlloc(&at, 4096);
    if (result == CUDA_SUCCESS) (void)cuMemFree(at);
    (void)cuThreadExchangeStreamCaptureMode(&mode);
    return result;
  };
  const auto elsewhere = [&](CUstreamCaptureMode mode) {
    CUresult result = CUDA_ERROR_UNKNOWN;
    std::thread([&] {
      if (cuCtxSetCurrent(context_) == CUDA_SUCCESS) result = allocate(mode);
    }).join();
    return result;
  };
  const auto end = [this] {
    CUgraph graph = nullptr;
    (void)cuStreamEndCapture(stream_, &graph);
    if (graph != nullptr) (void)cuGraphDestroy(graph);
  };
  constexpr auto kGlobal = CU_STREAM_CAPTURE_MODE_GLOBAL;
  constexpr auto kLocal = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
  constexpr auto kRelaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
  OK(cuStreamBeginCapture(stream_, kGlobal));
  EXPECT_EQ(elsewhere(kRelaxed), CUDA_SUCCESS);
  EXPECT_EQ(elsewhere(kLocal), CUDA_SUCCESS);
  EXPECT_EQ(allocate(kRelaxed), CUDA_SUCCESS);
  EXPECT_EQ(elsewhere(kGlobal), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  end();
  OK(cuStreamBeginCapture(stream_, kLocal));
  EXPECT_EQ(elsewhere(kGlobal), CUDA_SUCCESS);
  EXPECT_EQ(allocate(kLocal), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  end();
  OK(cuStreamBeginCapture(stream_, kRelaxed));
  EXPECT_EQ(elsewhere(kGlobal), CUDA_SUCCESS);
  EXPECT_EQ(allocate(kGlobal), CUDA_SUCCESS);
  end();
}

TEST_F(Capture, TheLegacyStreamCannotBeCaptured) {
  EXPECT_EQ(cuStreamBeginCapture(CU_STREAM_LEGACY, CU_STREAM_CAPTURE_MODE_RELAXED),
            CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
}

TEST_F(Capture, TheLegacyStreamCannotJoinIt) {
  CUstream blocking = nullptr;
  CUgraph graph = nullptr;
  OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
  OK(cuStreamBeginCapture(blocking, CU_STREAM_CAPTURE_MODE_RELAXED));
  EXPECT_EQ(fill(one_, 16, 1, CU_STREAM_LEGACY), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
  EXPECT_EQ(cuStreamEndCapture(blocking, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  OK(cuStreamDestroy(blocking));
  // One that stands aside is none of its business.
  OK(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_RELAXED));
  EXPECT_EQ(fill(one_, 16, 1, CU_STREAM_LEGACY), CUDA_SUCCESS);
  OK(cuStreamEndCapture(stream_, &graph));
  OK(cuGraphDestroy(graph));
}

TEST_F(Capture, ZeroIsTheThreadsOwnStreamForCopiesAndLaunchesToo) {
  using Copy = CUresult (*)(CUdeviceptr, CUdeviceptr, std::size_t, CUstream);
  using Fill = CUresult (*)(CUdeviceptr, unsigned, std::size_t, CUstream);
  void* copy = nullptr;
  void* set = nullptr;
  void* launch = nullptr;
  constexpr auto kOwn = CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
  OK(cuGetProcAddress("cuMemcpyDtoDAsync", &copy, 12000, kOwn, nullptr));
  OK(cuGetProcAddress("cuMemsetD32Async", &set, 12000, kOwn, nullptr));
  OK(cuGetProcAddress("cuLaunchKernel", &launch, 12000, kOwn, nullptr));
  CUdeviceptr at = one_;
  std::uint32_t words = 16;
  std::uint32_t value = 1;
  void* params[] = {&at, &words, &value};
  CUgraph graph = nullptr;
  std::size_t nodes = 0;
  OK(cuStreamBeginCapture(CU_STREAM_PER_THREAD, CU_STREAM_CAPTURE_MODE_RELAXED));
  EXPECT_EQ(reinterpret_cast<Copy>(copy)(two_, one_, 64, nullptr), CUDA_SUCCESS);
  EXPECT_EQ(reinterpret_cast<Fill>(set)(one_, 1, 16, nullptr), CUDA_SUCCESS);
  EXPECT_EQ(reinterpret_cast<decltype(&cuLaunchKernel)>(launch)(fill_, 1, 1, 1, 256, 1, 1, 0,
                                                                nullptr, params, nullptr),
            CUDA_SUCCESS);
  OK(cuStreamEndCapture(CU_STREAM_PER_THREAD, &graph));
  OK(cuGraphGetNodes(graph, nullptr, &nodes));
  EXPECT_EQ(nodes, 3U);
  OK(cuGraphDestroy(graph));
}

TEST_F(Capture, IsEndedByTheThreadThatBeganIt) {
  CUgraph graph = nullptr;
  CUresult elsewhere = CUDA_SUCCESS;
  OK(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  std::thread([&] {
    if (cuCtxSetCurrent(context_) == CUDA_SUCCESS) elsewhere = cuStreamEndCapture(stream_, &graph);
  }).join();
  EXPECT_EQ(elsewhere, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
  (void)cuStreamEndCapture(stream_, &graph);
  if (graph != nullptr) (void)cuGraphDestroy(graph);
}

class CaptureOfTwo : public Capture {
 protected:
  void SetUp() override {
    Capture::SetUp();
    OK(cuStreamCreate(&other_, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&fork_, CU_EVENT_DISABLE_TIMING));
    OK(cuEventCreate(&join_, CU_EVENT_DISABLE_TIMING));
  }
  void TearDown() override {
    if (graph_ != nullptr) {
      EXPECT_EQ(cuGraphDestroy(graph_), CUDA_SUCCESS);
    }
    EXPECT_EQ(cuEventDestroy(fork_), CUDA_SUCCESS);
    EXPECT_EQ(cuEventDestroy(join_), CUDA_SUCCESS);
    EXPECT_EQ(cuStreamDestroy(other_), CUDA_SUCCESS);
    Capture::TearDown();
  }
  // The other stream is part of it, with work of its own.
  void begin() {
    OK(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(fill(one_, 16, 4, stream_));
    OK(cuEventRecord(fork_, stream_));
    OK(cuStreamWaitEvent(other_, fork_, 0));
    OK(fill(two_, 16, 4, other_));
  }
  CUstream other_ = nullptr;
  CUevent fork_ = nullptr, join_ = nullptr;
  CUgraph graph_ = nullptr;
};

TEST_F(CaptureOfTwo, WhatForkedMustJoin) {
  begin();
  EXPECT_EQ(cuStreamEndCapture(stream_, &graph_), CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
  EXPECT_EQ(graph_, nullptr);
}

TEST_F(CaptureOfTwo, EndsWhereItBegan) {
  begin();
  EXPECT_EQ(cuStreamEndCapture(other_, &graph_), CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
  (void)cuStreamEndCapture(stream_, &graph_);
}

TEST_F(CaptureOfTwo, AwaitsNothingOfOutside) {
  OK(cuEventRecord(join_, other_));
  OK(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_RELAXED));
  EXPECT_EQ(cuStreamWaitEvent(stream_, join_, 0), CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
  (void)cuStreamEndCapture(stream_, &graph_);
}

TEST_F(CaptureOfTwo, DoesNotBecomeAnother) {
  CUgraph second = nullptr;
  OK(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_RELAXED));
  OK(cuStreamBeginCapture(other_, CU_STREAM_CAPTURE_MODE_RELAXED));
  OK(cuEventRecord(join_, other_));
  EXPECT_EQ(cuStreamWaitEvent(stream_, join_, 0), CUDA_ERROR_STREAM_CAPTURE_MERGE);
  (void)cuStreamEndCapture(stream_, &graph_);
  (void)cuStreamEndCapture(other_, &second);
  if (second != nullptr) (void)cuGraphDestroy(second);
}

TEST_F(CaptureOfTwo, ItsEventsTellNothing) {
  begin();
  OK(cuEventRecord(join_, other_));
  OK(cuStreamWaitEvent(stream_, join_, 0));
  EXPECT_EQ(cuEventQuery(fork_), CUDA_ERROR_CAPTURED_EVENT);
  EXPECT_EQ(cuEventSynchronize(fork_), CUDA_ERROR_CAPTURED_EVENT);
  (void)cuStreamEndCapture(stream_, &graph_);
}

// What the software driver does when it is told to.

TEST_F(Driver, SoftPagesAreAsLargeAsTold) {
  if (soft() == nullptr) GTEST_SKIP() << "a real device's are what they are";
  for (const std::size_t bytes : {std::size_t{65536}, std::size_t{2097152}}) {
    const std::string text = "granularity=" + std::to_string(bytes);
    const Setting setting(text.c_str());
    IN_CHILD({
      CUmemGenericAllocationHandle handle = 0;
      CUdeviceptr at = 0;
      MUST_BE(page_ == bytes);
      MUST(create(&handle), CUDA_SUCCESS);
      MUST(cuMemCreate(&handle, page_ / 2, &prop_, 0), CUDA_ERROR_INVALID_VALUE);
      MUST(cuMemAddressReserve(&at, 4 * page_, 0, 0, 0), CUDA_SUCCESS);
      MUST(cuMemMap(at + page_, page_, 0, handle, 0), CUDA_SUCCESS);
      MUST(cuMemSetAccess(at + page_, page_, &read_write_, 1), CUDA_SUCCESS);
    });
  }
}

TEST_F(Driver, SoftNodesRefuseWhenTold) {
  if (soft() == nullptr) GTEST_SKIP() << "a real driver has its own mind";
  CUmemGenericAllocationHandle handle = 0;
  CUmemAllocationProp host = prop_;
  host.location = {CU_MEM_LOCATION_TYPE_HOST_NUMA, 0};
  for (const auto& [mask, result] : {std::pair{"refuse_numa=1", CUDA_ERROR_NOT_SUPPORTED},
                                     std::pair{"refuse_numa=2", CUDA_SUCCESS}}) {
    const Setting setting(mask);
    const CUresult wanted = result;
    IN_CHILD({
      MUST(cuMemCreate(&handle, page_, &host, 0), wanted);
      MUST(create(&handle), CUDA_SUCCESS);
    });
  }
}

TEST_F(Driver, SoftCallsFailFromTheStartWhenTold) {
  if (soft() == nullptr) GTEST_SKIP() << "only the software driver does";
  const Setting setting("fail=cuMemCreate:2:2,fail=cuMemCreate:4:801");
  IN_CHILD({
    CUmemGenericAllocationHandle handle = 0;
    MUST(create(&handle), CUDA_SUCCESS);
    MUST(create(&handle), CUDA_ERROR_OUT_OF_MEMORY);
    MUST(create(&handle), CUDA_SUCCESS);
    MUST(create(&handle), CUDA_ERROR_NOT_SUPPORTED);
    MUST(create(&handle), CUDA_SUCCESS);
  });
}

TEST_F(Driver, SoftMemoryIsUsedUp) {
  if (soft() == nullptr) GTEST_SKIP() << "a real device has more than one wants to fill";
  const Setting setting("memory=8388608");
  IN_CHILD({
    CUmemGenericAllocationHandle handle = 0;
    CUmemGenericAllocationHandle more = 0;
    CUdeviceptr at = 0;
    MUST(create(&handle, 2), CUDA_SUCCESS);
    MUST(cuMemAlloc(&at, 2 * page_), CUDA_SUCCESS);
    MUST(create(&more), CUDA_ERROR_OUT_OF_MEMORY);
    MUST(cuMemAlloc(&at, 4096), CUDA_ERROR_OUT_OF_MEMORY);
    MUST(cuMemRelease(handle), CUDA_SUCCESS);
    MUST(create(&more, 2), CUDA_SUCCESS);
  });
}

TEST_F(Streams, SoftTheFormsOfACallShareOneCount) {
  if (soft() == nullptr) GTEST_SKIP() << "only the software driver counts";
  using Copy = CUresult (*)(CUdeviceptr, CUdeviceptr, std::size_t, CUstream);
  void* own = nullptr;
  OK(cuGetProcAddress("cuMemcpyDtoDAsync", &own, 12000,
                      CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, nullptr));
  soft()->reset();
  OK(cuMemcpyDtoDAsync(two_, one_, 4096, nullptr));
  OK(reinterpret_cast<Copy>(own)(two_, one_, 4096, nullptr));
  OK(cuCtxSynchronize());
  EXPECT_EQ(soft()->calls("cuMemcpyDtoDAsync"), 2U);
  soft()->reset();
  EXPECT_EQ(soft()->calls("cuMemcpyDtoDAsync"), 0U);
}

TEST_F(Driver, ResolvesNamesByVersionAndStream) {
  void* legacy = nullptr;
  void* own = nullptr;
  CUdriverProcAddressQueryResult status{};
  OK(cuGetProcAddress("cuLaunchKernel", &legacy, 12000, CU_GET_PROC_ADDRESS_LEGACY_STREAM,
                      &status));
  EXPECT_EQ(status, CU_GET_PROC_ADDRESS_SUCCESS);
  OK(cuGetProcAddress("cuLaunchKernel", &own, 12000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM,
                      &status));
  EXPECT_EQ(status, CU_GET_PROC_ADDRESS_SUCCESS);
  EXPECT_NE(legacy, own);
  OK(cuGetProcAddress("cuFuncGetParamInfo", &own, 11000, 0, &status));
  EXPECT_EQ(status, CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT);
  OK(cuGetProcAddress("cuNoSuchThing", &own, 12000, 0, &status));
  EXPECT_EQ(status, CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
  EXPECT_EQ(own, nullptr);
}

TEST_F(Driver, SoftCountsCallsAndFailsWhenTold) {
  if (soft() == nullptr) GTEST_SKIP() << "only the software driver counts";
  soft()->reset();
  CUmemGenericAllocationHandle handle = 0;
  soft()->fail("cuMemCreate", 2, CUDA_ERROR_OUT_OF_MEMORY);
  OK(create(&handle));
  OK(cuMemRelease(handle));
  EXPECT_EQ(create(&handle), CUDA_ERROR_OUT_OF_MEMORY);
  OK(create(&handle));
  OK(cuMemRelease(handle));
  EXPECT_EQ(soft()->calls("cuMemCreate"), 3U);
  EXPECT_EQ(soft()->calls("cuMemRelease"), 2U);
}

TEST_F(Driver, SoftLeavesNothingBehind) {
  if (soft() == nullptr) GTEST_SKIP() << "only the software driver counts";
  for (const softgpu_kind kind :
       {SOFTGPU_RESERVATIONS, SOFTGPU_HANDLES, SOFTGPU_MAPPINGS, SOFTGPU_DEVICE_BYTES,
        SOFTGPU_STREAMS, SOFTGPU_EVENTS, SOFTGPU_GRAPHS}) {
    EXPECT_EQ(soft()->live(kind), 0U) << kind;
  }
}

// Memory in the order of streams, and pools.

class Pools : public Streams {
 protected:
  static constexpr std::size_t kBytes = kWords * 4;
  void SetUp() override {
    Streams::SetUp();
    pool_props_.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
    pool_props_.location = {CU_MEM_LOCATION_TYPE_DEVICE, device_};
    OK(cuMemPoolCreate(&pool_, &pool_props_));
    OK(cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING));
  }
  void TearDown() override {
    EXPECT_EQ(cuStreamDestroy(stream_), CUDA_SUCCESS);
    if (pool_ != nullptr) {
      EXPECT_EQ(cuMemPoolDestroy(pool_), CUDA_SUCCESS);
    }
    Streams::TearDown();
  }
  cuuint64_t number(CUmemoryPool pool, CUmemPool_attribute attribute) {
    cuuint64_t value = ~cuuint64_t{0};
    EXPECT_EQ(cuMemPoolGetAttribute(pool, attribute, &value), CUDA_SUCCESS);
    return value;
  }
  CUmemPoolProps pool_props_{};
  CUmemoryPool pool_ = nullptr;
  CUstream stream_ = nullptr;
};

TEST_F(Pools, TheDeviceHasThem) {
  int has = 0;
  OK(cuDeviceGetAttribute(&has, CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, device_));
  EXPECT_EQ(has, 1);
}

TEST_F(Pools, MemoryIsUsedAndFreedInTheOrderOfItsStream) {
  for (std::uint32_t round = 1; round <= 20; ++round) {
    CUdeviceptr at = 0;
    if (round % 2 == 0) {
      OK(cuMemAllocAsync(&at, kBytes, stream_));
    } else {
      OK(cuMemAllocFromPoolAsync(&at, kBytes, pool_, stream_));
    }
    OK(fill(at, kWords, round, stream_));
    OK(add(one_, at, kWords, stream_));
    OK(cuMemFreeAsync(at, stream_));
  }
  OK(cuStreamSynchronize(stream_));
  EXPECT_TRUE(holds(one_, kWords, 20 * 21 / 2));
}

TEST_F(Pools, EachThreadsOwnStreamAllocatesToo) {
  decltype(&cuMemAllocAsync) allocate = nullptr;
  decltype(&cuMemAllocFromPoolAsync) allocate_from = nullptr;
  decltype(&cuMemFreeAsync) free = nullptr;
  const auto find = [](const char* name, auto* out, auto* other) {
    CUdriverProcAddressQueryResult status{};
    void* found = nullptr;
    EXPECT_EQ(cuGetProcAddress(name, &found, 11020, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM,
                               &status),
              CUDA_SUCCESS);
    *out = reinterpret_cast<std::decay_t<decltype(*out)>>(found);
    EXPECT_NE(found, reinterpret_cast<void*>(other)) << name;
  };
  find("cuMemAllocAsync", &allocate, &cuMemAllocAsync);
  find("cuMemAllocFromPoolAsync", &allocate_from, &cuMemAllocFromPoolAsync);
  find("cuMemFreeAsync", &free, &cuMemFreeAsync);
  CUdeviceptr at[2] = {};
  OK(allocate(&at[0], kBytes, nullptr));
  OK(allocate_from(&at[1], kBytes, pool_, nullptr));
  for (const CUdeviceptr each : at) {
    OK(fill(each, kWords, 7, CU_STREAM_PER_THREAD));
    OK(add(one_, each, kWords, CU_STREAM_PER_THREAD));
    OK(free(each, nullptr));
  }
  OK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
  EXPECT_TRUE(holds(one_, kWords, 14));
}

TEST_F(Pools, WhatIsFreedIsNotFreedAgain) {
  CUdeviceptr at = 0;
  OK(cuMemAllocAsync(&at, kBytes, stream_));
  OK(cuMemFreeAsync(at, stream_));
  EXPECT_NE(cuMemFreeAsync(at, stream_), CUDA_SUCCESS);
  OK(cuStreamSynchronize(stream_));
  EXPECT_NE(cuMemFreeAsync(at, stream_), CUDA_SUCCESS);
  EXPECT_NE(cuMemFree(at), CUDA_SUCCESS);
}

TEST_F(Pools, APoolCountsWhatIsUsedOfIt) {
  CUdeviceptr at = 0;
  EXPECT_EQ(number(pool_, CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 0U);
  OK(cuMemAllocFromPoolAsync(&at, kBytes, pool_, stream_));
  EXPECT_GE(number(pool_, CU_MEMPOOL_ATTR_USED_MEM_CURRENT), kBytes);
  EXPECT_GE(number(pool_, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), kBytes);
  OK(cuMemFreeAsync(at, stream_));
  OK(cuStreamSynchronize(stream_));
  EXPECT_EQ(number(pool_, CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 0U);
  EXPECT_GE(number(pool_, CU_MEMPOOL_ATTR_USED_MEM_HIGH), kBytes);
  EXPECT_GE(number(pool_, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH), kBytes);
  cuuint64_t high = 1;
  EXPECT_NE(cuMemPoolSetAttribute(pool_, CU_MEMPOOL_ATTR_USED_MEM_HIGH, &high), CUDA_SUCCESS);
  high = 0;
  OK(cuMemPoolSetAttribute(pool_, CU_MEMPOOL_ATTR_USED_MEM_HIGH, &high));
  EXPECT_EQ(number(pool_, CU_MEMPOOL_ATTR_USED_MEM_HIGH), 0U);
  OK(cuMemPoolTrimTo(pool_, 0));
  EXPECT_EQ(number(pool_, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), 0U);
}

TEST_F(Pools, AttributesKeepTheirValues) {
  cuuint64_t threshold = cuuint64_t{1} << 30;
  int reuse = -1;
  EXPECT_EQ(number(pool_, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD), 0U);
  OK(cuMemPoolSetAttribute(pool_, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
  EXPECT_EQ(number(pool_, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD), threshold);
  OK(cuMemPoolGetAttribute(pool_, CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC, &reuse));
  EXPECT_EQ(reuse, 1);
  reuse = 0;
  OK(cuMemPoolSetAttribute(pool_, CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC, &reuse));
  reuse = -1;
  OK(cuMemPoolGetAttribute(pool_, CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC, &reuse));
  EXPECT_EQ(reuse, 0);
  CUmemAccess_flags flags{};
  CUmemLocation location = pool_props_.location;
  OK(cuMemPoolGetAccess(&flags, pool_, &location));
  EXPECT_EQ(flags, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
  OK(cuMemPoolSetAccess(pool_, &read_write_, 1));
  CUmemAccessDesc none = read_write_;
  none.flags = CU_MEM_ACCESS_FLAGS_PROT_NONE;
  EXPECT_NE(cuMemPoolSetAccess(pool_, &none, 1), CUDA_SUCCESS);  // its own device's
}

TEST_F(Pools, TheDefaultIsCurrentUntilAnotherIs) {
  CUmemoryPool first = nullptr;
  CUmemoryPool now = nullptr;
  OK(cuDeviceGetDefaultMemPool(&first, device_));
  OK(cuDeviceGetMemPool(&now, device_));
  EXPECT_EQ(now, first);
  OK(cuDeviceSetMemPool(device_, pool_));
  OK(cuDeviceGetMemPool(&now, device_));
  EXPECT_EQ(now, pool_);
  CUdeviceptr at = 0;
  OK(cuMemAllocAsync(&at, kBytes, stream_));
  EXPECT_GE(number(pool_, CU_MEMPOOL_ATTR_USED_MEM_CURRENT), kBytes);
  OK(cuMemFreeAsync(at, stream_));
  OK(cuStreamSynchronize(stream_));
  OK(cuMemPoolDestroy(pool_));
  pool_ = nullptr;
  OK(cuDeviceGetMemPool(&now, device_));
  EXPECT_EQ(now, first);
  EXPECT_NE(cuMemPoolDestroy(first), CUDA_SUCCESS);
}

TEST_F(Pools, MemoryOutlivesItsPool) {
  CUdeviceptr at = 0;
  OK(cuMemAllocFromPoolAsync(&at, kBytes, pool_, stream_));
  OK(cuMemPoolDestroy(pool_));
  if (soft() != nullptr) {
    CUdeviceptr more = 0;
    EXPECT_EQ(cuMemAllocFromPoolAsync(&more, kBytes, pool_, stream_), CUDA_ERROR_INVALID_VALUE);
  }
  OK(fill(at, kWords, 9, stream_));
  OK(add(one_, at, kWords, stream_));
  OK(cuMemFreeAsync(at, stream_));
  OK(cuStreamSynchronize(stream_));
  EXPECT_TRUE(holds(one_, kWords, 9));
  pool_ = nullptr;
}

TEST_F(Pools, APoolGivesNoMoreThanItsSize) {
  pool_props_.maxSize = std::size_t{32} << 20;
  CUmemoryPool small = nullptr;
  CUdeviceptr at = 0;
  OK(cuMemPoolCreate(&small, &pool_props_));
  EXPECT_EQ(cuMemAllocFromPoolAsync(&at, std::size_t{64} << 20, small, stream_),
            CUDA_ERROR_OUT_OF_MEMORY);
  OK(cuMemPoolDestroy(small));
}

TEST_F(Pools, WhatACapturedStreamAllocatesIsItsGraphs) {
  const std::uint64_t before = soft() != nullptr ? soft()->live(SOFTGPU_DEVICE_BYTES) : 0;
  CUdeviceptr at = 0;
  CUdeviceptr other = 0;
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
  OK(cuMemAllocAsync(&other, kBytes, stream_));
  OK(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_GLOBAL));
  OK(cuMemAllocAsync(&at, kBytes, stream_));
  OK(fill(at, kWords, 4, stream_));
  OK(add(one_, at, kWords, stream_));
  OK(cuMemFreeAsync(at, stream_));
  OK(cuStreamEndCapture(stream_, &graph));
  OK(cuMemFreeAsync(other, stream_));
  CUgraphNode nodes[8] = {};
  std::size_t count = 8;
  OK(cuGraphGetNodes(graph, nodes, &count));
  ASSERT_EQ(count, 4U);
  CUgraphNodeType type{};
  OK(cuGraphNodeGetType(nodes[0], &type));
  EXPECT_EQ(type, CU_GRAPH_NODE_TYPE_MEM_ALLOC);
  OK(cuGraphNodeGetType(nodes[3], &type));
  EXPECT_EQ(type, CU_GRAPH_NODE_TYPE_MEM_FREE);
  OK(cuGraphInstantiate(&exec, graph, 0));
  OK(cuGraphDestroy(graph));
  OK(cuStreamSynchronize(stream_));
  EXPECT_TRUE(holds(one_, kWords, 0));
  for (std::uint32_t i = 1; i <= 3; ++i) OK(cuGraphLaunch(exec, stream_));
  OK(cuGraphExecDestroy(exec));  // what was launched goes on
  OK(cuStreamSynchronize(stream_));
  EXPECT_TRUE(holds(one_, kWords, 12));
  EXPECT_NE(cuMemFree(at), CUDA_SUCCESS);
  if (soft() != nullptr) {
    EXPECT_EQ(soft()->live(SOFTGPU_DEVICE_BYTES), before);
  }
}

TEST_F(Pools, AGraphFreesWhatAGraphAllocates) {
  CUdeviceptr at = 0;
  CUgraph graph = nullptr;
  OK(cuMemAllocAsync(&at, kBytes, stream_));
  OK(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_GLOBAL));
  EXPECT_NE(cuMemFreeAsync(at, stream_), CUDA_SUCCESS);
  (void)cuStreamEndCapture(stream_, &graph);
  if (graph != nullptr) {
    OK(cuGraphDestroy(graph));
  }
  OK(cuMemFreeAsync(at, stream_));
  OK(cuStreamSynchronize(stream_));
}

// Held up until `at` is freed, or for too long.
std::atomic<bool> is_freed{false};

TEST_F(Pools, SoftFreeingItsMemoryAtOnceWaitsForNothing) {
  if (soft() == nullptr) GTEST_SKIP() << "not defined on a real device";
  const CUhostFn hold_up = [](void*) {
    for (int i = 0; i < 5000 && !is_freed.load(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  EXPECT_EXIT(
      {
        CUdeviceptr at = 0;
        (void)cuMemAllocAsync(&at, kBytes, stream_);
        (void)cuLaunchHostFunc(stream_, hold_up, nullptr);
        (void)fill(at, kWords, 1, stream_);
        (void)cuMemFree(at);
        is_freed = true;
        MUST(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
        std::_Exit(0);
      },
      testing::ExitedWithCode(0), "");
}

// Libraries, and their kernels.

class Libraries : public Streams {
 protected:
  void SetUp() override {
    Streams::SetUp();
    OK(cuLibraryLoadData(&library_, kPtx, nullptr, nullptr, 0, nullptr, nullptr, 0));
    OK(cuLibraryGetKernel(&kernel_, library_, "conform_fill"));
  }
  void TearDown() override {
    EXPECT_EQ(cuLibraryUnload(library_), CUDA_SUCCESS);
    Streams::TearDown();
  }
  CUlibrary library_ = nullptr;
  CUkernel kernel_ = nullptr;
};

TEST_F(Libraries, AKernelIsLaunchedByItselfOrByItsFunction) {
  CUfunction function = nullptr;
  OK(cuKernelGetFunction(&function, kernel_));
  std::uint32_t words = kWords;
  std::uint32_t value = 5;
  void* params[] = {&one_, &words, &value};
  OK(cuLaunchKernel(function, kWords / 256, 1, 1, 256, 1, 1, 0, nullptr, params, nullptr));
  EXPECT_TRUE(holds(one_, kWords, 5));
  value = 6;
  OK(cuLaunchKernel(reinterpret_cast<CUfunction>(kernel_), kWords / 256, 1, 1, 256, 1, 1, 0,
                    nullptr, params, nullptr));
  EXPECT_TRUE(holds(one_, kWords, 6));
}

TEST_F(Libraries, AKernelTellsOfItself) {
  const char* name = nullptr;
  OK(cuKernelGetName(&name, kernel_));
  EXPECT_STREQ(name, "conform_fill");
  std::size_t offset = 0;
  std::size_t bytes = 0;
  OK(cuKernelGetParamInfo(kernel_, 2, &offset, &bytes));
  EXPECT_EQ(offset, 12U);
  EXPECT_EQ(bytes, 4U);
  EXPECT_EQ(cuKernelGetParamInfo(kernel_, 3, &offset, &bytes), CUDA_ERROR_INVALID_VALUE);
  int value = 0;
  OK(cuKernelGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, kernel_, device_));
  EXPECT_GE(value, 256);
  OK(cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 4096, kernel_, device_));
  OK(cuKernelGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel_,
                          device_));
  EXPECT_EQ(value, 4096);
}

TEST_F(Libraries, AnUnknownKernelIsNotFound) {
  CUkernel none = nullptr;
  EXPECT_EQ(cuLibraryGetKernel(&none, library_, "conform_nothing"), CUDA_ERROR_NOT_FOUND);
}

TEST_F(Libraries, NoContextIsNeededButForFunctions) {
  std::thread([this] {
    CUlibrary library = nullptr;
    CUkernel kernel = nullptr;
    CUfunction function = nullptr;
    OK(cuLibraryLoadData(&library, kPtx, nullptr, nullptr, 0, nullptr, nullptr, 0));
    OK(cuLibraryGetKernel(&kernel, library, "conform_add"));
    EXPECT_EQ(cuKernelGetFunction(&function, kernel), CUDA_ERROR_INVALID_CONTEXT);
    OK(cuCtxSetCurrent(context_));
    OK(cuKernelGetFunction(&function, kernel));
    OK(cuLibraryUnload(library));
  }).join();
}

// The other process of a test that shares memory: finds `value` in all of it, leaves `value` + 1.
int peer(const std::string& role, const std::string& what, std::uint32_t value) {
  CUcontext context = nullptr;
  MUST(cuInit(0), CUDA_SUCCESS);
  MUST(cuDevicePrimaryCtxRetain(&context, 0), CUDA_SUCCESS);
  MUST(cuCtxSetCurrent(context), CUDA_SUCCESS);
  CUdeviceptr at = 0;
  std::size_t bytes = 0;
  CUipcMemHandle handle{};
  for (std::size_t i = 0; i < sizeof handle && role != "import"; ++i) {
    handle.reserved[i] = static_cast<char>(std::stoi(what.substr(2 * i, 2), nullptr, 16));
  }
  if (role == "gone") {
    MUST_BE(cuIpcOpenMemHandle(&at, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) != CUDA_SUCCESS);
    return 0;
  }
  if (role == "open") {
    MUST(cuIpcOpenMemHandle(&at, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS), CUDA_SUCCESS);
    MUST(cuMemGetAddressRange(nullptr, &bytes, at), CUDA_SUCCESS);
  } else {
    CUmemGenericAllocationHandle memory = 0;
    CUmemAllocationProp prop{};
    CUmemAccessDesc access{};
    MUST(cuMemImportFromShareableHandle(
             &memory, reinterpret_cast<void*>(static_cast<std::intptr_t>(std::stoi(what))),
             CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
         CUDA_SUCCESS);
    MUST(cuMemGetAllocationPropertiesFromHandle(&prop, memory), CUDA_SUCCESS);
    MUST_BE(prop.location.type == CU_MEM_LOCATION_TYPE_DEVICE);
    MUST(cuMemGetAllocationGranularity(&bytes, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
         CUDA_SUCCESS);
    MUST(cuMemAddressReserve(&at, bytes, 0, 0, 0), CUDA_SUCCESS);
    MUST(cuMemMap(at, bytes, 0, memory, 0), CUDA_SUCCESS);
    access.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    MUST(cuMemSetAccess(at, bytes, &access, 1), CUDA_SUCCESS);
  }
  std::vector<std::uint32_t> host(1024);
  MUST(cuMemcpyDtoH(host.data(), at, 4096), CUDA_SUCCESS);
  for (const std::uint32_t word : host) MUST_BE(word == value);
  MUST(cuMemsetD32(at, value + 1, bytes / 4), CUDA_SUCCESS);
  MUST(cuCtxSynchronize(), CUDA_SUCCESS);
  if (role == "open") {
    // Opened again it is the same, and is closed as often; it is not this process's to free.
    CUdeviceptr again = 0;
    CUipcMemHandle own{};
    MUST(cuIpcOpenMemHandle(&again, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS), CUDA_SUCCESS);
    MUST_BE(again == at);
    MUST_BE(cuMemFree(at) != CUDA_SUCCESS);
    MUST_BE(cuIpcGetMemHandle(&own, at) != CUDA_SUCCESS);
    MUST(cuIpcCloseMemHandle(at), CUDA_SUCCESS);
    MUST(cuMemsetD32(at, value + 1, bytes / 4), CUDA_SUCCESS);
    MUST(cuIpcCloseMemHandle(at), CUDA_SUCCESS);
    MUST_BE(cuIpcCloseMemHandle(at) != CUDA_SUCCESS);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 5 && std::strcmp(argv[1], "--peer") == 0) {
    return peer(argv[2], argv[3], static_cast<std::uint32_t>(std::stoul(argv[4])));
  }
  testing::InitGoogleTest(&argc, argv);
  // A process that is forked has no driver: the case runs again in a new one.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  if (cuInit(0) != CUDA_SUCCESS) {
    std::fprintf(stderr, "no device that can be used\n");
    return 77;
  }
  return RUN_ALL_TESTS();
}
