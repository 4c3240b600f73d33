// DevicePool: physical pages of one place (a GPU, or a NUMA node seen by it), made ahead and used
// again. cuMemCreate takes 30 to 200 us for 2 MiB (kvcached's bench_vmm, vAttention), mapping 40
// us, so a page is never created where somebody waits for it unless there is no other way, and one
// that is no longer mapped goes back here and not to the driver.
//
// Each page has a home: an address of its own where it is mapped for as long as it exists, wherever
// else it is mapped too. There kvmem copies into it before anybody sees it; and no kernel of the
// engine knows it, so that it is mapped and unmapped at any time.
//
// What was in a page is still in it: pages of one process only, as with cudaMalloc.
//
// A thread of its own refills the pool; it sleeps while there is nothing to do. Any thread may
// call.
#pragma once

#include <cuda.h>
#include <pthread.h>

#include <cstddef>
#include <cstdint>

#include "base/heap.h"
#include "base/status.h"
#include "client/lock.h"

namespace kvmem {

class DevicePool {
 public:
  struct Page {
    CUmemGenericAllocationHandle handle;
    CUdeviceptr home;
    bool operator==(const Page&) const = default;
  };

  struct Options {
    CUcontext context = nullptr;  // retained by the caller for as long as the pool lives
    CUdevice device = 0;
    CUmemLocation location{CU_MEM_LOCATION_TYPE_DEVICE, 0};
    // Of all pages in existence: idle, mapped or on their way. Beyond it take() fails.
    std::uint64_t bytes_max = UINT64_MAX;
    std::uint32_t idle_low = 8;    // below it the thread creates,
    std::uint32_t idle_high = 32;  // up to this many
  };
  struct Stats {
    std::uint64_t idle = 0;
    std::uint64_t in_existence = 0;
    std::uint64_t taken = 0;          // since the start
    std::uint64_t created_ahead = 0;  // by the thread
    std::uint64_t created_late = 0;   // by take(), while its caller waited
    std::uint64_t create_failures = 0;
  };

  // kUnsupported: the device has no virtual memory management, or the location none for it.
  static Result<Owned<DevicePool>> create(const Options& options);
  // REQUIRES: every page was given back.
  ~DevicePool();
  DevicePool(const DevicePool&) = delete;
  DevicePool& operator=(const DevicePool&) = delete;

  std::size_t page_bytes() const { return page_bytes_; }
  const CUmemLocation& location() const { return options_.location; }
  CUcontext context() const { return options_.context; }
  CUdevice device() const { return options_.device; }

  // `count` pages, or none of them and kNoMemory: the budget or the device is exhausted.
  Status take(std::size_t count, Page* out);
  // To the driver instead, where there are more than there may be by now. REQUIRES: mapped nowhere
  // but at home.
  void give_back(const Page* pages, std::size_t count);
  // To the driver: others may still write to them. REQUIRES: as give_back().
  void discard(const Page* pages, std::size_t count);
  // So many pages are going to be taken soon: the thread makes them.
  void expect(std::uint64_t count);
  // Idle pages go back to the driver, at most `count`; how many went. The thread makes no new ones
  // until one is taken.
  std::size_t trim(std::size_t count);
  void set_bytes_max(std::uint64_t bytes);
  // From now on no more than there is; how much that is, in bytes.
  std::uint64_t stop_growing();
  // The pages one after the other at `at`, read and written by the device; all of them or none.
  // REQUIRES: the context is current, and nothing is mapped there.
  Status map(CUdeviceptr at, const Page* pages, std::size_t count) const;
  // How many there may be, and how many take() could have had just now.
  std::uint64_t pages_max() const;
  std::uint64_t available() const;
  Stats stats() const;
  // Returns when the thread has nothing to do: for tests.
  void wait_until_quiet() const;

 private:
  DevicePool(const Options& options, std::size_t page_bytes, const CUmemAllocationProp& prop);
  Status create_page(Page* out) const;
  Status give_home(Page* page) const;
  Status give_access(CUdeviceptr at, std::size_t size_bytes) const;
  void release(const Page* pages, std::size_t count) const;
  static void* thread_main(void* self);
  void refill();
  bool wants_more() const REQUIRES(lock_);
  void wake();

  const Options options_;
  const std::size_t page_bytes_;
  const CUmemAllocationProp prop_;

  mutable Lock lock_;
  Array<Page> idle_ GUARDED_BY(lock_);
  Stats stats_ GUARDED_BY(lock_);
  std::uint64_t pages_max_ GUARDED_BY(lock_);
  std::uint64_t expected_ GUARDED_BY(lock_) = 0;  // pages, that have not been taken yet
  bool rests_ GUARDED_BY(lock_) = false;          // trimmed, or the device is full: no page ahead
  bool busy_ GUARDED_BY(lock_) = false;           // the thread is filling up
  bool creating_ GUARDED_BY(lock_) = false;       // and is in the middle of a page
  bool stop_ GUARDED_BY(lock_) = false;

  mutable sys::FutexWord changed_{0};  // counted up whenever the thread should look again
  mutable sys::FutexWord quiet_{0};    // counted up whenever it has gone to sleep
  sys::FutexWord created_{0};          // counted up whenever a page of its is done
  pthread_t thread_{};
  bool has_thread_ = false;
};

}  // namespace kvmem
