// The C API of KV pools.
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include <algorithm>
#include <utility>

#include "client/notice.h"
#include "client/settings.h"
#include "kvmem.h"
#include "pool/host_backing.h"
#include "pool/pool.h"
#include "region/tag.h"
#ifdef KVMEM_WITH_CUDA
#include "pool/device_backing.h"
#include "region/device_heap.h"
#include "region/device_park.h"
#endif

#define KVMEM_EXPORTED extern "C" __attribute__((visibility("default")))

using kvmem::Code;
using kvmem::Owned;
using kvmem::Status;
using kvmem::pool::Backing;
using kvmem::pool::Geometry;
using kvmem::pool::KvPool;
using kvmem::pool::Layout;

static_assert(KVMEM_PACKED == static_cast<int>(Layout::kPacked) &&
              KVMEM_PER_LAYER == static_cast<int>(Layout::kPerLayer));

struct kvmem_pool {
  Owned<KvPool> pool;
  std::uint32_t generation;  // of the process that created it
};

namespace {

// Counted up in every child of fork(), which has no pool.
std::uint32_t g_generation = 0;

bool is_here(const kvmem_pool* pool) { return pool != nullptr && pool->generation == g_generation; }

class ErrnoGuard {
 public:
  ErrnoGuard() : saved_(errno) {}
  ~ErrnoGuard() { errno = saved_; }
  ErrnoGuard(const ErrnoGuard&) = delete;
  ErrnoGuard& operator=(const ErrnoGuard&) = delete;

 private:
  const int saved_;
};

int error_of(const Status& status) {
  switch (status.code()) {
    case Code::kOk:
      return 0;
    case Code::kInvalid:
      return -EINVAL;
    case Code::kNoMemory:
      return -ENOMEM;
    case Code::kNoSpace:
      return -ENOSPC;
    case Code::kBusy:
      return -EBUSY;
    case Code::kNotFound:
      return -ENODEV;
    case Code::kUnsupported:
      return -ENOTSUP;
    case Code::kPeerGone:
      return -ENOTCONN;
    case Code::kCancelled:
      return -EAGAIN;
    default:
      return -EIO;
  }
}

// As error_of; says what it was.
int answer(const Status& status) {
  if (!status.ok()) kvmem::detail("a KV pool: ", status.what());
  return error_of(status);
}

#ifdef KVMEM_WITH_CUDA
using kvmem::pool::DeviceBacking;

Status pause(CUcontext context) {
  if (!kvmem::device::is_on()) return DeviceBacking::synchronize(context);
  return kvmem::device::g_gate.close(
      [](void* in) { return DeviceBacking::synchronize(static_cast<CUcontext>(in)); }, context);
}
void go_on() {
  if (kvmem::device::is_on()) kvmem::device::g_gate.open();
}

kvmem::Result<Owned<Backing>> on_device(const kvmem_pool_options& options, Geometry& geometry,
                                        const char* tag) {
  if (const auto loaded = kvmem::cuda::load(); !loaded.ok()) return loaded.status();
  const kvmem::cuda::Driver& driver = kvmem::cuda::driver();
  kvmem::DevicePool::Options pool;
  pool.device = options.device;
  pool.location = {CU_MEM_LOCATION_TYPE_DEVICE, options.device};
  if (options.bytes_max != 0) pool.bytes_max = options.bytes_max;
  int major = 0;
  if (driver.device_get_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                                  options.device) != CUDA_SUCCESS) {
    return Status(Code::kNotFound, "no such device, or cuInit has not been called");
  }
  // Older ones fault when page tables change while kernels run, whatever pages those use.
  constexpr int kMajorMin = 8;
  if (major < kMajorMin) return Status(Code::kUnsupported, "the device is older than a pool needs");
  kvmem::cuda::PrimaryContext context(options.device);
  KV_TRY(context.status());
  pool.context = context.get();
  KV_ASSIGN_OR_RETURN(auto frames, kvmem::DevicePool::create(pool));
  geometry.page_bytes = frames->page_bytes();
  if (const char* fault = geometry.fault()) return Status(Code::kInvalid, fault);
  KV_ASSIGN_OR_RETURN(
      auto backing,
      DeviceBacking::create(
          std::move(context), std::move(frames), geometry.pool_bytes() / geometry.page_bytes,
          {pause, go_on, kvmem::device::make_bank, kvmem::device::give_up_bank}, tag));
  return Owned<Backing>(std::move(backing));
}
#else
kvmem::Result<Owned<Backing>> on_device(const kvmem_pool_options&, Geometry&, const char*) {
  return Status(Code::kUnsupported, "built without the device path");
}
#endif

// Calls function(pool) with errno kept.
template <class Function>
int call(kvmem_pool* pool, Function function) {
  if (!is_here(pool)) return -EINVAL;
  const ErrnoGuard errno_stays;
  return answer(function(*pool->pool));
}

}  // namespace

KVMEM_EXPORTED int kvmem_pool_create(const kvmem_pool_options* options,
                                     kvmem_pool** pool) noexcept {
  if (options == nullptr || pool == nullptr || options->size < sizeof *options ||
      options->device < KVMEM_ON_HOST) {
    return -EINVAL;
  }
  if (kvmem::g_settings.off) return -ENOTSUP;
  const ErrnoGuard errno_stays;
  static const int watched = pthread_atfork(nullptr, nullptr, [] { ++g_generation; });
  if (watched != 0) return -watched;
  Geometry geometry;
  geometry.layers = options->layers;
  geometry.kv_heads = options->kv_heads;
  geometry.head_dim = options->head_dim;
  geometry.element_bytes = options->element_bytes;
  geometry.tokens_max = options->tokens_max;
  geometry.sequences_max = options->sequences_max;
  geometry.layout = static_cast<Layout>(options->layout);
  if (const char* fault = geometry.fault()) return answer({Code::kInvalid, fault});
  const char* tag = options->tag != nullptr ? options->tag : kvmem::tag();
  Owned<Backing> backing;
  if (options->device == KVMEM_ON_HOST) {
    Owned<kvmem::pool::HostBacking> made;
    const std::uint64_t pages = geometry.pool_bytes() / geometry.page_bytes;
    const std::uint64_t most = options->bytes_max / geometry.page_bytes;
    const int error = kvmem::pool::HostBacking::create(
        pages, options->bytes_max == 0 ? pages : std::clamp<std::uint64_t>(most, 1, pages), tag,
        &made);
    if (error != 0) return error;
    backing = std::move(made);
  } else {
    auto made = on_device(*options, geometry, tag);
    if (!made.ok()) return answer(made.status());
    backing = *std::move(made);
  }
  void* room = kvmem::heap_room<kvmem_pool>();
  if (room == nullptr) return -ENOMEM;
  Owned<kvmem_pool> made(::new (room) kvmem_pool{nullptr, g_generation});
  auto created = KvPool::create(geometry, std::move(backing));
  if (!created.ok()) return answer(created.status());
  made->pool = *std::move(created);
  *pool = made.release();
  return 0;
}

KVMEM_EXPORTED void kvmem_pool_destroy(kvmem_pool* pool) noexcept {
  if (!is_here(pool)) return;
  const ErrnoGuard errno_stays;
  const Owned<kvmem_pool> gone(pool);
}

KVMEM_EXPORTED int kvmem_pool_view(kvmem_pool* pool, uint32_t layer, int is_value,
                                   struct kvmem_view* view) noexcept {
  if (!is_here(pool) || view == nullptr || view->size < sizeof *view) return -EINVAL;
  const Geometry& geometry = pool->pool->geometry();
  if (layer >= geometry.layers) return -EINVAL;
  const kvmem::pool::View found = kvmem::pool::view_of(geometry, layer, is_value != 0);
  view->size = sizeof *view;
  view->address = pool->pool->address() + found.offset;
  view->sequence_stride = found.sequence_stride;
  view->token_stride = found.token_stride;
  view->head_stride = found.head_stride;
  return 0;
}

KVMEM_EXPORTED int kvmem_seq_open(kvmem_pool* pool, uint32_t* sequence) noexcept {
  if (sequence == nullptr) return -EINVAL;
  return call(pool, [&](KvPool& p) { return p.open(sequence); });
}

KVMEM_EXPORTED int kvmem_seq_close(kvmem_pool* pool, uint32_t sequence) noexcept {
  return call(pool, [&](KvPool& p) { return p.close(sequence); });
}

KVMEM_EXPORTED int kvmem_seq_extend(kvmem_pool* pool, uint32_t sequence, uint64_t tokens) noexcept {
  return call(pool, [&](KvPool& p) { return p.extend(sequence, tokens); });
}

KVMEM_EXPORTED int kvmem_seq_truncate(kvmem_pool* pool, uint32_t sequence,
                                      uint64_t tokens) noexcept {
  return call(pool, [&](KvPool& p) { return p.truncate(sequence, tokens); });
}

KVMEM_EXPORTED int kvmem_seq_fork(kvmem_pool* pool, uint32_t sequence, uint64_t tokens,
                                  void* stream, uint32_t* child) noexcept {
  if (child == nullptr) return -EINVAL;
  return call(pool, [&](KvPool& p) { return p.fork(sequence, tokens, stream, child); });
}

KVMEM_EXPORTED int kvmem_pool_step(kvmem_pool* pool, const uint32_t* sequences,
                                   const uint64_t* tokens, size_t count) noexcept {
  if (sequences == nullptr && count != 0) return -EINVAL;
  return call(pool, [&](KvPool& p) { return p.step(sequences, tokens, count); });
}

KVMEM_EXPORTED int kvmem_seq_park(kvmem_pool* pool, uint32_t sequence) noexcept {
  return call(pool, [&](KvPool& p) { return p.park(sequence); });
}

KVMEM_EXPORTED int kvmem_seq_resume(kvmem_pool* pool, uint32_t sequence) noexcept {
  return call(pool, [&](KvPool& p) { return p.resume(sequence); });
}

KVMEM_EXPORTED int kvmem_seq_prefetch(kvmem_pool* pool, uint32_t sequence) noexcept {
  return call(pool, [&](KvPool& p) { return p.prefetch(sequence); });
}

KVMEM_EXPORTED int kvmem_seq_pin(kvmem_pool* pool, uint32_t sequence, int is_pinned) noexcept {
  return call(pool, [&](KvPool& p) { return p.pin(sequence, is_pinned != 0); });
}

KVMEM_EXPORTED int kvmem_pool_fits(kvmem_pool* pool, uint64_t tokens, uint64_t count) noexcept {
  if (!is_here(pool)) return -EINVAL;
  const ErrnoGuard errno_stays;
  return pool->pool->fits(tokens, count) ? 1 : 0;
}

KVMEM_EXPORTED int kvmem_pool_predict(kvmem_pool* pool, uint64_t tokens) noexcept {
  return call(pool, [&](KvPool& p) {
    p.predict(tokens);
    return Status();
  });
}

KVMEM_EXPORTED int kvmem_pool_stats(kvmem_pool* pool,
                                    struct kvmem_pool_statistics* stats) noexcept {
  if (!is_here(pool) || stats == nullptr || stats->size < sizeof stats->size) return -EINVAL;
  const ErrnoGuard errno_stays;
  const Geometry& geometry = pool->pool->geometry();
  const KvPool::Stats now = pool->pool->stats();
  struct kvmem_pool_statistics full {};
  full.page_bytes = geometry.page_bytes;
  full.growth_bytes = geometry.growth_bytes();
  full.open = now.open;
  full.parked = now.parked;
  full.bytes = now.frames * geometry.page_bytes;
  full.shared_bytes = now.shared_frames * geometry.page_bytes;
  full.spare_bytes = now.spare_frames * geometry.page_bytes;
  full.steps = now.steps;
  full.grown_pages = now.grown_pages;
  full.late_pages = now.late_pages;
  full.late_creates = now.late_creates;
  full.reclaimed_pages = now.reclaimed_pages;
  full.parked_pages = now.parked_pages;
  full.resumed_pages = now.resumed_pages;
  // A caller built against an older header has a shorter struct.
  full.size = std::min(stats->size, sizeof full);
  memcpy(stats, &full, full.size);
  return 0;
}
