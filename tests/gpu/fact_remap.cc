// 2: pages get other memory at the same addresses, while kernels run that have nothing to do with
// them, and when nothing runs. kvmem does the latter only.
//
// usage: gpu_facts remap drained | beside {allocation|reservation}
#include <atomic>
#include <random>
#include <thread>

#include "gpu.h"

namespace gpu {
namespace {

constexpr std::uint32_t kSeed = 0x5eed;

std::string counts(std::uint64_t moves, std::uint64_t kernels, std::uint64_t wrong) {
  return std::to_string(moves) + " moves, " + std::to_string(kernels) + " kernels, " +
         std::to_string(wrong) + " words wrong";
}

// A run of the first `pages`, to the place that its first page is not in.
void move_some(Range& range, std::size_t pages, std::mt19937& random) {
  const std::size_t first = random() % pages;
  const std::size_t count = 1 + random() % (pages - first);
  range.move(first, count, other(range.place(first)));
}

void drained(const Device& device, const Options& options) {
  Range range(device, options.quick ? 8 : 64, {Place::kDevice, Place::kHost});
  std::mt19937 random(1);
  std::uint32_t kernels = 0;
  std::uint64_t moves = 0;
  device.fill(range.at(), range.words(), kSeed);
  ask(Kind::kCheck, "pages that kernels use, moved while the device is drained");
  for (const Until until(options.quick ? 0.5 : 6); until.goes_on(); ++moves) {
    for (int i = 0; i < 4; ++i, ++kernels) device.add(range.at(), range.words(), 1);
    CU(cuCtxSynchronize());
    move_some(range, range.pages(), random);
  }
  const std::uint64_t wrong = device.wrong(range.at(), range.words(), kSeed, kernels);
  settle(wrong == 0, counts(moves, kernels, wrong));
}

// Kernels all the time, on a thread and a stream of their own: two batches are on their way.
class Work {
 public:
  Work(const Device& device, CUdeviceptr at, std::uint64_t words)
      : thread_([this, &device, at, words] { run(device, at, words); }) {
    while (!running_) std::this_thread::yield();
  }
  // How many there were.
  std::uint32_t finish() {
    stop_ = true;
    thread_.join();
    return kernels_;
  }

 private:
  void run(const Device& device, CUdeviceptr at, std::uint64_t words) {
    constexpr int kBatch = 16;
    CUstream stream = nullptr;
    CUevent done[2] = {};
    CU(cuCtxSetCurrent(device.context()));
    CU(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (CUevent& event : done) CU(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    for (unsigned batch = 0; !stop_; ++batch) {
      for (int i = 0; i < kBatch; ++i, ++kernels_) device.add(at, words, 1, stream);
      CU(cuEventRecord(done[batch % 2], stream));
      if (batch > 0) CU(cuEventSynchronize(done[(batch + 1) % 2]));
      running_ = true;
    }
    CU(cuStreamSynchronize(stream));
  }

  std::atomic<bool> stop_{false}, running_{false};
  std::uint32_t kernels_ = 0;
  std::thread thread_;
};

void beside(const Device& device, const Options& options) {
  const bool same = options.is(1, "reservation");
  const std::size_t moving = options.quick ? 8 : 64;
  const std::size_t used = options.quick ? 2 : 32;
  Range range(device, moving + used, {Place::kDevice});
  const std::uint64_t words = used * range.page_words();
  CUdeviceptr at = range.at(moving);
  if (!same) CU(cuMemAlloc(&at, words * 4));
  device.fill(range.at(), moving * range.page_words(), kSeed);
  device.fill(at, words, kSeed);
  CU(cuCtxSynchronize());

  ask(Kind::kAnswer, std::string("pages moved while kernels use ") +
                         (same ? "others of the same reservation" : "another allocation"));
  Work work(device, at, words);
  std::mt19937 random(2);
  std::uint64_t moves = 0;
  for (const Until until(options.quick ? 0.5 : 6); until.goes_on(); ++moves) {
    move_some(range, moving, random);
  }
  const std::uint32_t kernels = work.finish();
  const std::uint64_t wrong = device.wrong(range.at(), moving * range.page_words(), kSeed) +
                              device.wrong(at, words, kSeed, kernels);
  settle(wrong == 0, counts(moves, kernels, wrong));
}

}  // namespace

void fact_remap(const Options& options) {
  const Device device;
  if (options.is(0, "drained")) {
    drained(device, options);
  } else if (options.is(0, "beside")) {
    beside(device, options);
  } else {
    usage("remap drained | beside {allocation|reservation}");
  }
}

}  // namespace gpu
