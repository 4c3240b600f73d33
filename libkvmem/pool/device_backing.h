// DeviceBacking: a KV pool's pages in a GPU's memory, from a DevicePool of its own.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>

#include "base/heap.h"
#include "base/status.h"
#include "client/lock.h"
#include "cuda/carry.h"
#include "cuda/handles.h"
#include "pool/backing.h"
#include "region/device_pool.h"

namespace kvmem::pool {

class DeviceBacking final : public Backing {
 public:
  // What the process around it does for it.
  struct Hooks {
    // Backing's pause() and go_on().
    Status (*pause)(CUcontext context);
    void (*go_on)();
    // Memory for what is parked, null: none; and back.
    unsigned char* (*make_bank)(std::size_t size_bytes, const char* tag);
    void (*give_up_bank)(unsigned char* bank, std::size_t size_bytes);
  };
  // All work is waited for, and nothing held back.
  static Status synchronize(CUcontext context);

  // `pages` of addresses, in the context of the frames; `tag` names what is parked.
  static Result<Owned<DeviceBacking>> create(cuda::PrimaryContext context, Owned<DevicePool> frames,
                                             std::uint64_t pages, const Hooks& hooks,
                                             const char* tag);
  ~DeviceBacking() override;
  DeviceBacking(const DeviceBacking&) = delete;
  DeviceBacking& operator=(const DeviceBacking&) = delete;

  std::uint64_t address() const override { return addresses_.get().at; }
  std::size_t page_bytes() const override { return frames_->page_bytes(); }
  std::uint64_t frames_max() const override { return frames_->pages_max(); }
  std::uint64_t available() const override { return frames_->available(); }
  std::uint64_t created_late() const override { return frames_->stats().created_late; }
  void expect(std::uint64_t frames) override { frames_->expect(frames); }

  Status take(std::uint64_t page, std::size_t count, Frame* out) override;
  void give_back(const Frame* frames, std::size_t count) override;
  Status map(std::uint64_t page, const Frame* frames, std::size_t count) override;
  Status copy(std::uint64_t from, std::uint64_t to, std::size_t size_bytes, void* stream) override;
  Status pause() override { return hooks_.pause(frames_->context()); }
  void go_on() override { hooks_.go_on(); }
  Status unmap(std::uint64_t page, std::size_t count) override;
  Status replace(std::uint64_t page, const Frame& before, const Frame& copy) override;
  bool is_paged() const override { return false; }
  Status store(const Frame* frames, std::size_t count, Parcel* out) override;
  Status restore(const Parcel& parcel, std::size_t first, const Frame* frames,
                 std::size_t count) override;
  void drop(Parcel& parcel) override;

 private:
  DeviceBacking(cuda::PrimaryContext context, Owned<DevicePool> frames, cuda::Reservation addresses,
                const Hooks& hooks, const char* tag);
  CUdeviceptr at(std::uint64_t page) const { return address() + page * page_bytes(); }
  Result<cuda::Carriage> carriage() REQUIRES(carrying_);

  const cuda::PrimaryContext context_;
  const Owned<DevicePool> frames_;
  cuda::Reservation addresses_;
  const Hooks hooks_;
  char tag_[64] = {};

  Lock carrying_;
  Owned<cuda::Staging> staging_ GUARDED_BY(carrying_);
  Owned<cuda::Kernels> kernels_ GUARDED_BY(carrying_);
  bool no_kernels_ GUARDED_BY(carrying_) = false;
};

}  // namespace kvmem::pool
