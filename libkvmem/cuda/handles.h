// What the CUDA driver gives, owned: addresses and physical memory. And two things a thread needs
// while it edits page tables: the device's context, and leave to do so while a stream is captured.
//
// REQUIRES: cuda::load() has succeeded. A destructor needs a current context as the calls do.
#pragma once

#include <cstddef>
#include <utility>

#include "base/unique_handle.h"
#include "cuda/driver.h"

namespace kvmem::cuda {

struct Range {
  CUdeviceptr at = 0;
  std::size_t size_bytes = 0;
  bool operator==(const Range&) const = default;
};
struct ReservationTraits {
  using Value = Range;
  static constexpr Range kNone{};
  static void close(Range range) noexcept {
    (void)driver().address_free(range.at, range.size_bytes);
  }
};
// Addresses; free of mappings when it goes.
using Reservation = UniqueHandle<ReservationTraits>;

struct PhysicalTraits {
  using Value = CUmemGenericAllocationHandle;
  static constexpr Value kNone = 0;
  static void close(Value handle) noexcept { (void)driver().release(handle); }
};
// A reference to physical memory; a mapping is another one.
using Physical = UniqueHandle<PhysicalTraits>;

struct StreamTraits {
  using Value = CUstream;
  static constexpr Value kNone = nullptr;
  static void close(CUstream stream) noexcept { (void)driver().stream_destroy(stream); }
};
// A stream of kvmem's own: of the engine's work it waits for nothing.
using Stream = UniqueHandle<StreamTraits>;
inline Result<Stream> make_stream() {
  CUstream stream = nullptr;
  KV_TRY(status_of(driver().stream_create(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate"));
  return Stream(stream);
}

struct PinnedTraits {
  using Value = void*;
  static constexpr Value kNone = nullptr;
  static void close(void* memory) noexcept { (void)driver().host_free(memory); }
};
// Page-locked host memory, which the device reaches at the same address.
using Pinned = UniqueHandle<PinnedTraits>;
inline Result<Pinned> make_pinned(std::size_t size_bytes) {
  void* memory = nullptr;
  KV_TRY(status_of(driver().host_allocate(&memory, size_bytes,
                                          CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP),
                   "cuMemHostAlloc"));
  return Pinned(memory);
}

// A device's primary context, which the runtime uses, kept alive.
class PrimaryContext {
 public:
  explicit PrimaryContext(CUdevice device)
      : device_(device),
        status_(status_of(driver().primary_retain(&context_, device), "cuDevicePrimaryCtxRetain")) {
    if (!status_.ok()) context_ = nullptr;
  }
  ~PrimaryContext() {
    if (context_ != nullptr) (void)driver().primary_release(device_);
  }
  PrimaryContext(PrimaryContext&& o) noexcept
      : device_(o.device_), context_(std::exchange(o.context_, nullptr)), status_(o.status_) {}
  PrimaryContext& operator=(PrimaryContext&&) = delete;
  PrimaryContext(const PrimaryContext&) = delete;
  PrimaryContext& operator=(const PrimaryContext&) = delete;
  const Status& status() const { return status_; }
  CUcontext get() const { return context_; }

 private:
  CUdevice device_;
  CUcontext context_ = nullptr;
  Status status_;
};

// Makes `context` current on this thread, and what was before current again.
class ContextScope {
 public:
  explicit ContextScope(CUcontext context)
      : status_(status_of(driver().context_push(context), "cuCtxPushCurrent")) {}
  ~ContextScope() {
    CUcontext popped = nullptr;
    if (status_.ok()) (void)driver().context_pop(&popped);
  }
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;
  const Status& status() const { return status_; }

 private:
  Status status_;
};

// The engine may be capturing a graph: what kvmem does on this thread is no part of it.
class OutsideCapture {
 public:
  OutsideCapture() { (void)driver().exchange_capture_mode(&mode_); }
  ~OutsideCapture() { (void)driver().exchange_capture_mode(&mode_); }
  OutsideCapture(const OutsideCapture&) = delete;
  OutsideCapture& operator=(const OutsideCapture&) = delete;

 private:
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

}  // namespace kvmem::cuda
