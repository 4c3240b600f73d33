// The C API, on top of the region layer.
#include <errno.h>
#include <string.h>

#include <algorithm>
#include <cstdint>

#include "client/agent.h"
#include "client/settings.h"
#include "kvmem.h"
#include "region/host.h"
#include "region/table.h"
#include "region/tag.h"
#ifdef KVMEM_WITH_CUDA
#include "region/device_heap.h"
#include "region/device_keeper.h"
#endif

#define KVMEM_EXPORTED extern "C" __attribute__((visibility("default")))

using kvmem::g_agent_lock;
using kvmem::g_settings;
using kvmem::LockGuard;
using kvmem::run_on_agent;
using kvmem::table::Op;

static_assert(KVMEM_HOT == static_cast<int>(kvmem::wire::Advice::kHot) &&
              KVMEM_PREFETCH == static_cast<int>(kvmem::wire::Advice::kPrefetch));
static_assert(KVMEM_LOST == static_cast<int>(kvmem::wire::PageState::kLost));

namespace {

int ask(Op& op) {
  const int saved = errno;
  LockGuard guard(g_agent_lock);
  const int result = run_on_agent(kvmem::table::serve, &op);
  errno = saved;
  return result;
}

// The 2 MiB pages that a range touches, or false when some of it is outside the arena.
bool set_pages(Op& op, const void* address, std::size_t size_bytes) {
  const std::uint64_t begin = reinterpret_cast<std::uintptr_t>(address);
  if (size_bytes == 0 || begin + size_bytes < begin || !kvmem::in_arena(begin) ||
      !kvmem::in_arena(begin + size_bytes - 1)) {
    return false;
  }
  op.address = kvmem::align_down(begin, kvmem::kPageBytes);
  op.size_bytes = kvmem::align_up(begin + size_bytes, kvmem::kPageBytes) - op.address;
  return true;
}

#ifdef KVMEM_WITH_CUDA
// Whether the range begins in a device region; then `*error` is the answer.
bool is_device_advice(const void* address, std::size_t size_bytes, kvmem_advice advice,
                      int* error) {
  using kvmem::DevicePlace;
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  kvmem::device::Found found;
  if (kvmem::in_arena(address) || !kvmem::device::is_on() || !kvmem::device::find(at, &found))
    return false;
  if (size_bytes == 0 || size_bytes > found.size_bytes - (at - found.begin)) {
    *error = -ENOMEM;
    return true;
  }
  if (advice == KVMEM_NORMAL || advice == KVMEM_SEQUENTIAL || advice == KVMEM_UNPIN) return true;
  const auto place = advice == KVMEM_COLD ? DevicePlace::kHost : DevicePlace::kDevice;
  std::uint32_t moved = 0;
  const kvmem::Status status = kvmem::device::move(at, size_bytes, place, &moved);
  // Only a pin is more than a hint.
  if (!status.ok() && advice == KVMEM_PIN) {
    *error = status.code() == kvmem::Code::kBusy ? -EAGAIN : -ENOMEM;
  }
  return true;
}
#endif

}  // namespace

KVMEM_EXPORTED uint32_t kvmem_version(void) noexcept { return KVMEM_VERSION; }

KVMEM_EXPORTED const char* kvmem_strerror(int error) noexcept {
  switch (error) {
    case 0:
      return "no error";
    case -EINVAL:
      return "an argument is wrong: no such region, sequence or length, say";
    case -ENOMEM:
      return "no memory, address space or quota, or part of the range is no region";
    case -ENOTSUP:
      return "kvmem is switched off (KVMEM=off), or manages no such memory here";
    case -ENOTCONN:
      return "no kvmemd can be reached (start it, or set KVMEM_SOCKET)";
    case -EAGAIN:
      return "no thread could be started";
    case -ENOSPC:
      return "all of the pool's sequences are open, or the cache does not keep the block";
    case -EBUSY:
      return "the sequence is pinned, or the GPU's work cannot be waited for now";
    case -ENODEV:
      return "no such GPU, or no CUDA driver is loaded and initialised";
    case -EIO:
      return "a driver or the kernel refused, or what was stored has changed";
    case -EPERM:
      return "RLIMIT_AS (ulimit -v) leaves no room for addresses";
    default:
      return "the kernel or kvmemd refused; the number is an errno value";
  }
}

KVMEM_EXPORTED int kvmem_region_create(size_t size_bytes, const kvmem_region_options* options,
                                       void** address) noexcept {
  if (address == nullptr || size_bytes == 0 || size_bytes > PTRDIFF_MAX ||
      (options != nullptr && options->size < sizeof *options)) {
    return -EINVAL;
  }
  const char* tag = options != nullptr && options->tag != nullptr ? options->tag : kvmem::tag();
  const int saved = errno;
  const int error = kvmem::host::create(size_bytes, 0, tag, address);
  errno = saved;
  return error;
}

KVMEM_EXPORTED int kvmem_region_destroy(void* address) noexcept {
  if (!kvmem::in_arena(address)) return -EINVAL;
  const int saved = errno;
  const bool is_region = kvmem::host::release(address);
  errno = saved;
  return is_region ? 0 : -EINVAL;
}

KVMEM_EXPORTED void kvmem_set_tag(const char* tag) noexcept { kvmem::set_tag(tag); }

KVMEM_EXPORTED int kvmem_park([[maybe_unused]] const char* tag) noexcept {
#ifdef KVMEM_WITH_CUDA
  const int saved = errno;
  const int error = kvmem::device::is_on() ? kvmem::device::park_and_wait(tag) : -ENOTSUP;
  errno = saved;
  return error;
#else
  return -ENOTSUP;
#endif
}

KVMEM_EXPORTED int kvmem_advise(const void* address, size_t size_bytes,
                                kvmem_advice advice) noexcept {
  Op op{};
  op.kind = Op::Kind::kAdviseDaemon;
  op.value = advice;
  if (advice < KVMEM_NORMAL || advice > KVMEM_PREFETCH) return -EINVAL;
#ifdef KVMEM_WITH_CUDA
  if (int error = 0; is_device_advice(address, size_bytes, advice, &error)) return error;
#endif
  if (!set_pages(op, address, size_bytes)) return -ENOMEM;
  return ask(op);
}

KVMEM_EXPORTED int kvmem_residency(const void* address, size_t size_bytes,
                                   unsigned char* states) noexcept {
  Op op{};
  op.kind = Op::Kind::kResidency;
  op.output = states;
  if (states == nullptr) return -EINVAL;
#ifdef KVMEM_WITH_CUDA
  if (!kvmem::in_arena(address) && kvmem::device::is_on() &&
      kvmem::device::residency(reinterpret_cast<std::uintptr_t>(address), size_bytes,
                               {KVMEM_RESIDENT, KVMEM_HOST, KVMEM_STORED, KVMEM_LOST}, states)
          .ok()) {
    return 0;
  }
#endif
  if (!set_pages(op, address, size_bytes)) return -ENOMEM;
  return ask(op);
}

KVMEM_EXPORTED int kvmem_stats(struct kvmem_statistics* stats) noexcept {
  if (stats == nullptr || stats->size < sizeof stats->size) return -EINVAL;
  kvmem::table::Counts counts{};
  if (kvmem::g_arena.size_bytes.load(std::memory_order_acquire) != 0) {
    Op op{};
    op.kind = Op::Kind::kStats;
    op.output = &counts;
    if (const int error = ask(op); error != 0) return error;
  }
  using kvmem::wire::PageState;
  const auto bytes_in = [&](PageState s) {
    return counts.pages[static_cast<unsigned>(s)] << kvmem::kPageShift;
  };
  struct kvmem_statistics full {};
  full.regions = counts.regions;
  full.managed_bytes = counts.managed_bytes;
  full.plain_bytes = counts.plain_bytes;
  full.fresh_bytes = bytes_in(PageState::kFresh);
  full.resident_bytes = bytes_in(PageState::kResident) + bytes_in(PageState::kWriting);
  full.stored_bytes = bytes_in(PageState::kStored);
  full.origin_bytes = bytes_in(PageState::kOrigin);
  full.filling_bytes = bytes_in(PageState::kFilling);
  full.lost_bytes = bytes_in(PageState::kLost);
  full.is_connected = counts.is_connected ? 1 : 0;
  // A caller built against an older header has a shorter struct.
  full.size = std::min(stats->size, sizeof full);
  memcpy(stats, &full, full.size);
  return 0;
}
