#include "region/device_pool.h"

#include <algorithm>

#include "cuda/handles.h"

namespace kvmem {
namespace {

bool attribute(CUdevice device, CUdevice_attribute which) {
  int value = 0;
  return cuda::driver().device_get_attribute(&value, which, device) == CUDA_SUCCESS && value != 0;
}

// Memory without these cannot be shared by IPC, registered by UCX or reached by a NIC, and none of
// it can be added later.
CUmemAllocationProp properties(const DevicePool::Options& options) {
  CUmemAllocationProp prop{};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop.location = options.location;
  const bool on_device = options.location.type == CU_MEM_LOCATION_TYPE_DEVICE;
  unsigned types = 0;
  if (attribute(options.device, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED)) {
    types |= CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  }
  if (on_device && attribute(options.device, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED)) {
    types |= CU_MEM_HANDLE_TYPE_FABRIC;
  }
  prop.requestedHandleTypes = static_cast<CUmemAllocationHandleType>(types);
  if (on_device &&
      attribute(options.device, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED)) {
    prop.allocFlags.gpuDirectRDMACapable = 1;
  }
  return prop;
}

}  // namespace

Result<Owned<DevicePool>> DevicePool::create(const Options& options) {
  const cuda::Driver& driver = cuda::driver();
  if (!attribute(options.device, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)) {
    return Status(Code::kUnsupported, "the device has no virtual memory management");
  }
  const cuda::ContextScope current(options.context);
  if (!current.status().ok()) return current.status();
  const cuda::OutsideCapture outside;
  CUmemAllocationProp prop = properties(options);
  // Fabric handles need a service that may not run; a page without them is better than none.
  for (int attempt = 0;; ++attempt) {
    std::size_t granularity = 0;
    KV_TRY(cuda::status_of(
        driver.allocation_granularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
        "cuMemGetAllocationGranularity"));
    // The first page tells whether the place gives any.
    void* room = heap_room<DevicePool>();
    if (room == nullptr) return Status(Code::kNoMemory, "a pool of device pages");
    Owned<DevicePool> pool(::new (room) DevicePool(options, granularity, prop));
    Page first{};
    const Status made = pool->create_page(&first);
    if (made.ok()) {
      {
        const LockGuard guard(pool->lock_);
        pool->stats_.in_existence = pool->stats_.created_ahead = 1;
      }
      pool->give_back(&first, 1);
      pool->has_thread_ = ::pthread_create(&pool->thread_, nullptr, thread_main, pool.get()) == 0;
      return pool;
    }
    const unsigned fabric = prop.requestedHandleTypes & CU_MEM_HANDLE_TYPE_FABRIC;
    if (attempt > 0 || fabric == 0) return made;
    prop.requestedHandleTypes =
        static_cast<CUmemAllocationHandleType>(prop.requestedHandleTypes ^ fabric);
  }
}

DevicePool::DevicePool(const Options& options, std::size_t page_bytes,
                       const CUmemAllocationProp& prop)
    : options_(options),
      page_bytes_(page_bytes),
      prop_(prop),
      pages_max_(options.bytes_max / page_bytes) {}

DevicePool::~DevicePool() {
  {
    const LockGuard guard(lock_);
    stop_ = true;
  }
  wake();
  if (has_thread_) ::pthread_join(thread_, nullptr);
  release(idle_.data(), idle_.size());
}

Status DevicePool::create_page(Page* out) const {
  const cuda::ContextScope current(options_.context);
  KV_TRY(current.status());
  const cuda::OutsideCapture outside;
  KV_TRY(
      cuda::status_of(cuda::driver().create(&out->handle, page_bytes_, &prop_, 0), "cuMemCreate"));
  cuda::Physical memory(out->handle);
  KV_TRY(give_home(out));
  (void)memory.release();
  return {};
}

Status DevicePool::give_home(Page* page) const {
  const cuda::Driver& driver = cuda::driver();
  KV_TRY(cuda::status_of(driver.address_reserve(&page->home, page_bytes_, 0, 0, 0),
                         "cuMemAddressReserve"));
  cuda::Reservation home({page->home, page_bytes_});
  KV_TRY(map(page->home, page, 1));
  (void)home.release();
  return {};
}

Status DevicePool::map(CUdeviceptr at, const Page* pages, std::size_t count) const {
  const cuda::Driver& driver = cuda::driver();
  Status status;
  std::size_t mapped = 0;
  for (; mapped < count && status.ok(); mapped += status.ok()) {
    status = cuda::status_of(
        driver.map(at + mapped * page_bytes_, page_bytes_, 0, pages[mapped].handle, 0), "cuMemMap");
  }
  if (status.ok()) status = give_access(at, count * page_bytes_);
  if (!status.ok() && mapped > 0) (void)driver.unmap(at, mapped * page_bytes_);
  return status;
}

Status DevicePool::give_access(CUdeviceptr at, std::size_t size_bytes) const {
  CUmemAccessDesc access[2]{};
  access[0].location = {CU_MEM_LOCATION_TYPE_DEVICE, options_.device};
  access[0].flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  // Host memory is the processor's too, or an engine that follows the pointer crashes.
  access[1].location = options_.location;
  access[1].flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  const std::size_t count = options_.location.type == CU_MEM_LOCATION_TYPE_DEVICE ? 1 : 2;
  return cuda::status_of(cuda::driver().set_access(at, size_bytes, access, count),
                         "cuMemSetAccess");
}

void DevicePool::wake() {
  changed_.fetch_add(1, std::memory_order_release);
  sys::futex_wake(changed_, 1);
}

bool DevicePool::wants_more() const {
  const std::uint64_t wanted = busy_ ? options_.idle_high : options_.idle_low;
  return !rests_ && stats_.in_existence < pages_max_ && idle_.size() < std::max(wanted, expected_);
}

Status DevicePool::take(std::size_t count, Page* out) {
  std::size_t missing = 0;
  for (;;) {
    const std::uint32_t seen = created_.load(std::memory_order_acquire);
    {
      const LockGuard guard(lock_);
      const std::size_t ready = std::min(count, idle_.size());
      missing = count - ready;
      if (missing <= pages_max_ - std::min(pages_max_, stats_.in_existence)) {
        std::copy(idle_.end() - ready, idle_.end(), out);
        idle_.shrink(idle_.size() - ready);
        stats_.in_existence += missing;  // of the budget, from now on
        rests_ = false;
        break;
      }
      if (!creating_) return {Code::kNoMemory, "the budget of device pages is used up"};
    }
    sys::futex_wait(created_, seen);  // the page on its way may be the one that is missing
  }
  for (std::size_t i = count - missing; i < count; ++i) {
    if (const Status made = create_page(&out[i]); !made.ok()) {
      give_back(out, i);
      const LockGuard guard(lock_);
      stats_.in_existence -= count - i;
      ++stats_.create_failures;
      rests_ = true;
      return made;
    }
  }
  bool more = false;
  {
    const LockGuard guard(lock_);
    stats_.taken += count;
    expected_ -= std::min<std::uint64_t>(expected_, count);
    stats_.created_late += missing;
    more = wants_more();
  }
  if (more) wake();
  return {};
}

void DevicePool::give_back(const Page* pages, std::size_t count) {
  std::size_t kept = 0;
  {
    const LockGuard guard(lock_);
    const std::uint64_t over = stats_.in_existence - std::min(stats_.in_existence, pages_max_);
    const std::size_t before = idle_.size();
    kept = count - std::min<std::uint64_t>(count, over);
    if (!idle_.resize(before + kept)) kept = 0;
    std::copy(pages, pages + kept, idle_.data() + before);
    stats_.in_existence -= count - kept;
  }
  release(pages + kept, count - kept);
}

void DevicePool::discard(const Page* pages, std::size_t count) {
  {
    const LockGuard guard(lock_);
    stats_.in_existence -= count;
  }
  release(pages, count);
}

void DevicePool::release(const Page* pages, std::size_t count) const {
  if (count == 0) return;
  const cuda::ContextScope current(options_.context);
  const cuda::OutsideCapture outside;
  for (std::size_t i = 0; i < count; ++i) {
    (void)cuda::driver().unmap(pages[i].home, page_bytes_);
    (void)cuda::driver().address_free(pages[i].home, page_bytes_);
    (void)cuda::driver().release(pages[i].handle);
  }
}

void DevicePool::expect(std::uint64_t count) {
  {
    const LockGuard guard(lock_);
    expected_ = count;
    rests_ = false;
  }
  wake();
}

std::size_t DevicePool::trim(std::size_t count) {
  std::size_t gone = 0;
  for (; gone < count; ++gone) {
    Page last{};
    {
      const LockGuard guard(lock_);
      rests_ = true;
      expected_ = 0;
      if (idle_.empty()) break;
      last = idle_[idle_.size() - 1];
      idle_.shrink(idle_.size() - 1);
      --stats_.in_existence;
    }
    release(&last, 1);
  }
  return gone;
}

void DevicePool::set_bytes_max(std::uint64_t bytes) {
  std::uint64_t over = 0;
  {
    const LockGuard guard(lock_);
    pages_max_ = bytes / page_bytes_;
    over = stats_.in_existence - std::min(stats_.in_existence, pages_max_);
  }
  (void)trim(over);
  wake();
}

std::uint64_t DevicePool::stop_growing() {
  const LockGuard guard(lock_);
  pages_max_ = std::min(pages_max_, stats_.in_existence);
  return stats_.in_existence * page_bytes_;
}

std::uint64_t DevicePool::pages_max() const {
  const LockGuard guard(lock_);
  return pages_max_;
}

std::uint64_t DevicePool::available() const {
  const LockGuard guard(lock_);
  return idle_.size() + pages_max_ - std::min(pages_max_, stats_.in_existence);
}

DevicePool::Stats DevicePool::stats() const {
  const LockGuard guard(lock_);
  Stats stats = stats_;
  stats.idle = idle_.size();
  return stats;
}

void DevicePool::wait_until_quiet() const {
  for (;;) {
    const std::uint32_t seen = quiet_.load(std::memory_order_acquire);
    {
      const LockGuard guard(lock_);
      if (!has_thread_ || (!busy_ && !wants_more())) return;
    }
    sys::futex_wait(quiet_, seen);
  }
}

void* DevicePool::thread_main(void* self) {
  (void)sys::block_signals();  // the engine's handlers run on the engine's threads
  static_cast<DevicePool*>(self)->refill();
  return nullptr;
}

void DevicePool::refill() {
  for (;;) {
    const std::uint32_t seen = changed_.load(std::memory_order_acquire);
    bool work = false;
    {
      const LockGuard guard(lock_);
      if (stop_) return;
      work = busy_ = creating_ = wants_more();
      if (work) ++stats_.in_existence;
    }
    if (!work) {
      quiet_.fetch_add(1, std::memory_order_release);
      sys::futex_wake(quiet_, INT32_MAX);
      sys::futex_wait(changed_, seen);
      continue;
    }
    Page page{};
    const Status made = create_page(&page);
    if (made.ok()) give_back(&page, 1);
    {
      const LockGuard guard(lock_);
      creating_ = false;
      if (made.ok()) {
        ++stats_.created_ahead;
      } else {
        --stats_.in_existence;
        ++stats_.create_failures;
        rests_ = true;
        busy_ = false;
      }
    }
    created_.fetch_add(1, std::memory_order_release);
    sys::futex_wake(created_, INT32_MAX);
  }
}

}  // namespace kvmem
