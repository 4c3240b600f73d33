// 6: what the link carries, each way and both ways at once: to and from pinned memory, host pages
// mapped for the device (by its copy engines, and by a kernel), and pageable memory.
//
// usage: gpu_facts copies {pinned|mapped|kernel|pageable}
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "gpu.h"

namespace gpu {
namespace {

// One direction: a stream, and memory at both ends.
class Lane {
 public:
  Lane(const Device& device, const std::string& how, bool to_device, std::size_t bytes)
      : device_(device), how_(how), to_device_(to_device), bytes_(bytes) {
    CU(cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING));
    CU(cuMemAlloc(&near_, bytes));
    if (how == "pinned") {
      void* at = nullptr;
      CU(cuMemHostAlloc(&at, bytes, 0));
      far_ = reinterpret_cast<CUdeviceptr>(at);
    } else if (how == "pageable") {
      void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (at == MAP_FAILED) die("mmap", CUDA_ERROR_OUT_OF_MEMORY);
      std::memset(at, 1, bytes);
      far_ = reinterpret_cast<CUdeviceptr>(at);
    } else {
      const CUmemAllocationProp& prop = device.properties(Place::kHost);
      CUmemGenericAllocationHandle memory = 0;
      CU(cuMemCreate(&memory, bytes, &prop, 0));
      CU(cuMemAddressReserve(&far_, bytes, 0, 0, 0));
      CU(cuMemMap(far_, bytes, 0, memory, 0));
      CU(cuMemRelease(memory));
      device.give_access(far_, bytes, Place::kHost);
    }
  }

  // All of it, in copies of `piece` bytes.
  void run(std::size_t piece) const {
    for (std::size_t done = 0; done < bytes_; done += piece) start(done, piece);
    CU(cuStreamSynchronize(stream_));
  }

 private:
  void start(std::size_t offset, std::size_t bytes) const {
    const CUdeviceptr near = near_ + offset;
    const CUdeviceptr far = far_ + offset;
    void* const host = reinterpret_cast<void*>(far);
    if (how_ == "kernel") {
      device_.copy(to_device_ ? near : far, to_device_ ? far : near, bytes / 4, stream_);
    } else if (how_ == "mapped") {
      CU(cuMemcpyDtoDAsync(to_device_ ? near : far, to_device_ ? far : near, bytes, stream_));
    } else if (to_device_) {
      CU(cuMemcpyHtoDAsync(near, host, bytes, stream_));
    } else {
      CU(cuMemcpyDtoHAsync(host, near, bytes, stream_));
    }
  }

  const Device& device_;
  const std::string how_;
  const bool to_device_;
  const std::size_t bytes_;
  CUstream stream_ = nullptr;
  CUdeviceptr near_ = 0, far_ = 0;
};

// Runs the second lane when it is told to, on a thread of its own: pageable copies hold theirs.
class Partner {
 public:
  Partner(const Device& device, const Lane& lane, std::size_t piece)
      : thread_([this, &device, &lane, piece] {
          CU(cuCtxSetCurrent(device.context()));
          for (unsigned seen = 0;;) {
            while (asked_ == seen) std::this_thread::yield();
            if (stop_) return;
            lane.run(piece);
            done_ = ++seen;
          }
        }) {}
  ~Partner() {
    stop_ = true;
    ++asked_;
    thread_.join();
  }
  Partner(const Partner&) = delete;
  Partner& operator=(const Partner&) = delete;
  void start() { ++asked_; }
  void finish() const {
    while (done_ != asked_) std::this_thread::yield();
  }

 private:
  std::atomic<unsigned> asked_{0}, done_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

template <class Body>
std::vector<double> times_ns(const Options& options, Body body) {
  constexpr std::size_t kSamplesMin = 5;
  constexpr std::size_t kSamplesMax = 200;
  std::vector<double> times;
  body();  // not counted
  const Until until(options.quick ? 0 : 0.6);
  const std::size_t least = options.quick ? 1 : kSamplesMin;
  while (times.size() < least || (until.goes_on() && times.size() < kSamplesMax)) {
    const double begin = now_ns();
    body();
    times.push_back(now_ns() - begin);
  }
  return times;
}

}  // namespace

void fact_copies(const Options& options) {
  const std::string how = options.words.empty() ? "" : options.words[0];
  if (how != "pinned" && how != "mapped" && how != "kernel" && how != "pageable") {
    usage("copies {pinned|mapped|kernel|pageable}");
  }
  const Device device;
  const std::size_t bytes = (options.quick ? 64 : 256) * kMiB;
  const Lane out(device, how, false, bytes);
  const Lane in(device, how, true, bytes);
  for (const std::size_t mib : {2, 64}) {
    const std::size_t piece = mib * kMiB;
    const std::string column = text_of(piece);
    figure_rate(how + ", to the device", column, bytes, times_ns(options, [&] { in.run(piece); }));
    figure_rate(how + ", to the host", column, bytes, times_ns(options, [&] { out.run(piece); }));
    Partner partner(device, out, piece);
    figure_rate(how + ", both at once, together", column, 2 * bytes, times_ns(options, [&] {
                  partner.start();
                  in.run(piece);
                  partner.finish();
                }));
  }
}

}  // namespace gpu
