#include "region/device_keeper.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "client/notice.h"
#include "client/settings.h"
#include "region/device_entries.h"
#include "region/host.h"

namespace kvmem::device {

constinit Lock g_entries_lock;
constinit Device g_devices[kDevicesMax] = {};
constinit Lock g_carrying;
constinit bool g_parked = false;

namespace {

constinit Carrier carriers[kDevicesMax] GUARDED_BY(g_carrying) = {};

// What the keeper has been asked to do; taken all at once.
struct Wanted {
  bool park;
  bool wake;
  bool tell_all;
  bool give_back;
  char tag[64];                     // park: of these alone; empty: all
  wire::AgentCommand::ForGpu back;  // give_back
};
Lock wanted_lock;
Wanted wanted GUARDED_BY(wanted_lock);

// Attempts to park that have ended, in one way or the other; and how the last one did.
sys::FutexWord parkings{0};
std::atomic<int> last_parking{0};  // 0 or -errno

sys::FutexWord asked{0};  // counted up when there is something to do
sys::FutexWord tried{0};  // counted up after each round
pthread_once_t once = PTHREAD_ONCE_INIT;

// A region whose pages are carried; it stays until it has been put down.
struct Load {
  DeviceRegion* region;
  unsigned char* bank;
  char tag[64];
};

Wanted take_wanted() {
  const LockGuard guard(wanted_lock);
  return std::exchange(wanted, {});
}

// --- banks ---

// Memory for what is stored: a host region, or without a daemon the process's own.
unsigned char* make_bank(std::size_t size_bytes, const char* tag) {
  if (void* region = host::allocate(size_bytes, /*is_heap=*/true, tag); region != nullptr) {
    return static_cast<unsigned char*>(region);
  }
  const long plain = sys::mmap(0, size_bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return sys::is_error(plain) ? nullptr : reinterpret_cast<unsigned char*>(plain);
}
void give_up_bank(unsigned char* bank, std::size_t size_bytes) {
  if (bank == nullptr) return;
  if (in_arena(bank)) {
    (void)host::release(bank);
  } else {
    (void)sys::munmap(reinterpret_cast<std::uintptr_t>(bank), size_bytes);
  }
}

// --- burying ---

// REQUIRES: the gate is closed.
void bury_all() {
  for (;;) {
    Entry gone{};
    Gpu gpu{};
    {
      const LockGuard guard(g_entries_lock);
      Array<Entry>& all = entries();
      Entry* entry =
          std::find_if(all.begin(), all.end(), [](const Entry& e) { return e.freed && !e.moving; });
      if (entry == all.end()) return;
      gone = *entry;
      gpu = g_devices[gone.region->device()].gpu;
      if (entry->spills) g_spilled.fetch_sub(1, std::memory_order_relaxed);
      std::copy(entry + 1, all.end(), entry);
      all.shrink(all.size() - 1);
    }
    if (gone.shares != 0) gone.region->set_shared();
    HeapDelete{}(gone.region);
    give_up_bank(gone.bank, gone.reserved_bytes);
    g_freed.fetch_sub(1, std::memory_order_release);  // only now is there room
    RegionReport what{};
    what.address = gone.found.begin;
    (void)report(gpu, what);
  }
}

// Regions that the engine has freed give addresses and memory back. False: not now.
bool bury() {
  if (!any_freed()) return true;
  if (!g_gate.close(drain, nullptr).ok()) return false;
  bury_all();
  g_gate.open();
  return true;
}

// What is shared comes to the device. False: not now.
bool bring_home() {
  for (;;) {
    Found found;
    CUdevice device = 0;
    std::uint32_t pages = 0;
    {
      const LockGuard guard(g_entries_lock);
      Array<Entry>& all = entries();
      const Entry* entry = std::find_if(all.begin(), all.end(), [](const Entry& e) {
        return !e.freed && e.shares != 0 && e.spills && !e.moving && !e.stays_away;
      });
      if (entry == all.end()) return true;
      found = entry->found;
      device = entry->region->device();
      pages = entry->region->page_count();
    }
    const bool others_asked = claim_room(device, pages);
    std::uint32_t moved = 0;
    const Status status = move(found.begin, found.size_bytes, DevicePlace::kDevice, &moved);
    const bool is_room_to_come = status.code() == Code::kNoMemory && (any_freed() || others_asked);
    if (status.code() == Code::kBusy || is_room_to_come) return false;
    if (status.ok()) continue;
    const LockGuard guard(g_entries_lock);
    Array<Entry>& all = entries();
    const std::size_t i = position(found.begin);
    if (i < all.size() && all[i].found.begin == found.begin) all[i].stays_away = true;
  }
}

// --- the ledger ---

// Says of each GPU what is held: no less than that can be taken away.
void claim_held() {
  for (int i = 0; i < kDevicesMax; ++i) {
    DevicePool* pool = nullptr;
    Gpu gpu{};
    {
      const LockGuard guard(g_entries_lock);
      pool = g_devices[i].pool;
      gpu = g_devices[i].gpu;
    }
    if (pool == nullptr) continue;
    const std::uint64_t held = pool->stats().in_existence * pool->page_bytes();
    pool->set_bytes_max(claim(gpu, held, held).bytes);
  }
}

// Regions that have changed since the daemon was told, or all.
void tell(bool all_of_them) {
  for (CUdeviceptr next = 0;;) {
    RegionReport what{};
    Gpu gpu{};
    char tag[64];
    {
      const LockGuard guard(g_entries_lock);
      Array<Entry>& all = entries();
      Entry* entry = std::find_if(all.begin(), all.end(), [&](const Entry& e) {
        return e.found.begin >= next && !e.freed && !e.moving && (e.changed || all_of_them);
      });
      if (entry == all.end()) return;
      const DeviceRegion& region = *entry->region;
      what = {entry->found.begin, entry->reserved_bytes, 0, 0, 0, tag, entry->why};
      for (std::uint32_t page = 0; page < region.page_count(); ++page) {
        const bool is_mapped = region.page(page) == DevicePage::kMapped;
        std::uint64_t& bytes = !is_mapped                                   ? what.stored_bytes
                               : region.place(page) == DevicePlace::kDevice ? what.hbm_bytes
                                                                            : what.host_bytes;
        if (region.page(page) != DevicePage::kAbsent) bytes += region.page_bytes();
      }
      std::memcpy(tag, entry->tag, sizeof tag);
      gpu = g_devices[region.device()].gpu;
      entry->changed = false;
      next = entry->found.begin + 1;
    }
    if (!report(gpu, what)) return;
  }
}

// --- parking ---

// The first region from `*next` on that `wants`; it stays. False: there is none.
template <class Wants>
bool take_up(CUdeviceptr* next, Load* out, Wants wants) {
  const LockGuard guard(g_entries_lock);
  Array<Entry>& all = entries();
  Entry* entry = std::find_if(all.begin(), all.end(), [&](const Entry& e) {
    return e.found.begin >= *next && !e.freed && wants(e);
  });
  if (entry == all.end()) return false;
  *next = entry->found.begin + 1;
  entry->moving = true;
  out->region = entry->region;
  out->bank = entry->bank;
  std::memcpy(out->tag, entry->tag, sizeof out->tag);
  return true;
}
void put_down(const Load& load, const char* why) {
  const LockGuard guard(g_entries_lock);
  Entry& entry = entries()[position(load.region->address())];
  entry.bank = load.bank;
  entry.moving = false;
  entry.why = why;
  settle_entry(entry);
}

DeviceRegion::Bank bank_of(const Load& load) REQUIRES(g_carrying) {
  Carrier& carrier = carrier_of(load.region->device(), load.region->context());
  if (carrier.staging == nullptr) {
    const cuda::ContextScope current(load.region->context());
    auto made = cuda::Staging::create(load.region->page_bytes());
    if (made.ok()) carrier.staging = (*std::move(made)).release();
  }
  return {load.bank, carrier.staging, carrier.kernels};
}

// Page by batch, so that a call that comes meanwhile waits for no more than one.
Status store(Load& load) REQUIRES(g_carrying) {
  if (load.bank == nullptr) {
    load.bank = make_bank(load.region->size_bytes(), load.tag);
  }
  if (load.bank == nullptr) return {Code::kNoMemory, "no memory to keep what is parked"};
  const DeviceRegion::Bank bank = bank_of(load);
  if (bank.staging == nullptr) return {Code::kNoMemory, "staging memory"};
  for (std::uint32_t page = 0; page < load.region->page_count(); page += KVMEM_BATCH_PAGES) {
    if (g_gate.is_wanted()) return {Code::kBusy, "the engine goes on"};
    KV_TRY(load.region->store(page, KVMEM_BATCH_PAGES, bank));
  }
  return {};
}

void drop_bank(Load& load) {
  if (load.region->stored_pages() != 0 || load.bank == nullptr) return;
  give_up_bank(std::exchange(load.bank, nullptr), load.region->size_bytes());
}

Status store_all(const char* only, const char* why) REQUIRES(g_carrying) {
  Status status;
  Load load{};
  for (CUdeviceptr next = 0; status.ok() && take_up(&next, &load, [&](const Entry& e) {
                               return !e.fixed && !e.moving && e.shares == 0 &&
                                      (only[0] == 0 || std::strcmp(only, e.tag) == 0);
                             });) {
    status = store(load);
    drop_bank(load);
    put_down(load, why);
  }
  return status;
}

// False: there is no room for all.
bool restore_all() REQUIRES(g_carrying) {
  bool whole = true;
  Load load{};
  for (CUdeviceptr next = 0;
       take_up(&next, &load, [](const Entry& e) { return e.bank != nullptr; });) {
    (void)claim_room(load.region->device(), load.region->stored_pages());
    const Status status = load.region->restore(0, load.region->page_count(), bank_of(load));
    if (status.code() == Code::kCorrupt) {
      notice("a parked page came back with other bytes; whoever touches it fails: ", status.what());
    }
    whole = whole && load.region->stored_pages() == 0;
    drop_bank(load);
    put_down(load, "wake");
  }
  return whole;
}

void trim_pools() {
  for (int i = 0; i < kDevicesMax; ++i) {
    DevicePool* pools[2] = {};
    {
      const LockGuard guard(g_entries_lock);
      pools[0] = g_devices[i].pool;
      pools[1] = g_devices[i].host;
    }
    for (DevicePool* pool : pools) {
      if (pool != nullptr) (void)pool->trim(SIZE_MAX);
    }
  }
}

void ended(const Status& status) {
  const int error = status.ok() ? 0 : status.code() == Code::kBusy ? -EAGAIN : -ENOMEM;
  last_parking.store(error, std::memory_order_relaxed);
  parkings.fetch_add(1, std::memory_order_release);
  sys::futex_wake(parkings, INT32_MAX);
}

Status store_and_trim(const char* only, const char* why) REQUIRES(g_carrying) {
  KV_TRY(store_all(only, why));
  trim_pools();
  claim_held();
  return {};
}

// Until a call comes, or the daemon says so.
void stay_parked() REQUIRES(g_carrying) {
  for (;;) {
    const std::uint32_t seen = g_gate.event();
    const Wanted also = take_wanted();
    if (g_gate.is_wanted() || also.wake) return;
    bury_all();
    if (also.park) ended(store_and_trim(also.tag, "park"));
    if (also.tell_all) claim_held();
    tell(also.tell_all);
    tried.fetch_add(1, std::memory_order_release);
    sys::futex_wake(tried, INT32_MAX);
    g_gate.wait(seen);
  }
}

// The gate stays closed from the first page that goes to the last that is back.
void park(const char* only, const char* why) {
  constexpr std::uint64_t kNoRoomNs = 10'000'000;
  constexpr int kSayAfter = 200;
  const LockGuard alone(g_carrying);
  Status stored = g_gate.close(drain, nullptr);
  if (!stored.ok()) {
    detail("not parked: ", stored.what());
    return ended(stored);
  }
  g_parked = true;
  bury_all();
  stored = store_and_trim(only, why);
  ended(stored);
  if (stored.ok()) {
    stay_parked();
  } else if (stored.code() != Code::kBusy) {
    notice("not parked: ", stored.what(), " ", cuda::error_name(stored));
  }
  for (int n = 0; !restore_all(); ++n) {
    if (n == kSayAfter) notice("parked, and no room on the GPU to wake: the engine waits for it");
    sys::sleep_ns(kNoRoomNs);
  }
  g_parked = false;
  g_gate.open();
  tell(false);
}

// --- giving back ---

// Moves pages of a device to host memory until it holds no more than `bytes`. False: it still does.
bool spill(CUdevice index, DevicePool& pool, std::uint64_t bytes) {
  CUdeviceptr before = ~CUdeviceptr{0};
  for (;;) {
    const std::uint64_t held = pool.stats().in_existence * pool.page_bytes();
    if (held <= bytes) return true;
    Found found;
    {
      // The newest memory is, with most engines, at the highest address, and least in use.
      const LockGuard guard(g_entries_lock);
      Array<Entry>& all = entries();
      const Entry* last = nullptr;
      for (const Entry& e : all) {
        if (e.found.begin < before && !e.freed && !e.fixed && e.shares == 0 &&
            e.region->device() == index) {
          last = &e;
        }
      }
      if (last == nullptr) return false;
      found = last->found;
    }
    before = found.begin;
    std::uint32_t moved = 0;
    const Status status = move(found.begin, std::min<std::uint64_t>(found.size_bytes, held - bytes),
                               DevicePlace::kHost, &moved);
    if (status.code() == Code::kUnsupported || status.code() == Code::kNoMemory) return false;
  }
}

// False: more is held than may stay.
bool give_back(const wire::AgentCommand::ForGpu& to, std::uint64_t keep_bytes) {
  bool done = true;
  for (int i = 0; i < kDevicesMax; ++i) {
    DevicePool* pool = nullptr;
    Gpu gpu{};
    {
      const LockGuard guard(g_entries_lock);
      pool = g_devices[i].pool;
      gpu = g_devices[i].gpu;
    }
    if (pool == nullptr || std::memcmp(gpu.uuid, to.gpu, sizeof gpu.uuid) != 0) continue;
    pool->set_bytes_max(keep_bytes);  // idle pages go
    done = spill(i, *pool, keep_bytes) && done;
  }
  claim_held();
  return done;
}

// --- the thread ---

// For how long the engine has started nothing; as far as the keeper has looked.
class Idle {
 public:
  std::uint64_t look() {
    const std::uint32_t now = g_gate.passes();
    if (now != passes_) since_ns_ = sys::now_ns();
    passes_ = now;
    return sys::now_ns() - since_ns_;
  }
  void restart() { since_ns_ = sys::now_ns(); }

 private:
  std::uint32_t passes_ = g_gate.passes();
  std::uint64_t since_ns_ = sys::now_ns();
};

void* keep(void* /*unused*/) {
  constexpr std::uint64_t kPauseMinNs = 100'000;
  constexpr std::uint64_t kPauseMaxNs = 50'000'000;
  // An engine that others wait for is taken for idle after so long.
  constexpr std::uint64_t kIdleEnoughNs = 500'000'000;
  (void)sys::block_signals();
  std::uint64_t pause_ns = kPauseMinNs;
  for (Idle idle;;) {
    const std::uint32_t seen = asked.load(std::memory_order_acquire);
    const Wanted now = take_wanted();
    const bool is_buried = bury();  // first: it makes room
    const bool done = bring_home() && is_buried;
    if (now.tell_all) claim_held();
    tell(now.tell_all);
    const std::uint64_t idle_ns = idle.look();
    const bool is_idle = idle_ns >= kIdleEnoughNs;
    const bool is_over = now.give_back && !give_back(now.back, is_idle ? now.back.hbm_idle_bytes
                                                                       : now.back.hbm_bytes);
    if (now.park) {
      park(now.tag, "park");
    } else if (is_over && is_idle) {
      park("", "budget");
    } else if (g_settings.park_after_ns != 0 && idle_ns >= g_settings.park_after_ns) {
      park("", "idle");
      idle.restart();
    }
    tried.fetch_add(1, std::memory_order_release);
    sys::futex_wake(tried, INT32_MAX);
    if (!done) {
      sys::sleep_ns(pause_ns);
      pause_ns = std::min(2 * pause_ns, kPauseMaxNs);
      continue;
    }
    pause_ns = kPauseMinNs;
    if (g_settings.park_after_ns == 0) {
      sys::futex_wait(asked, seen);
    } else {
      sys::futex_wait_for(asked, seen, g_settings.park_after_ns / 4 + kPauseMinNs);
    }
  }
}

void start() {
  pthread_attr_t attributes;
  pthread_t thread{};
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  (void)::pthread_create(&thread, &attributes, keep, nullptr);  // none: freed memory stays
  ::pthread_attr_destroy(&attributes);
}

void ask() {
  asked.fetch_add(1, std::memory_order_release);
  sys::futex_wake(asked, 1);
  g_gate.nudge();  // parked, it waits there
}

}  // namespace

Array<Entry>& entries() {
  alignas(Array<Entry>) static constinit unsigned char room[sizeof(Array<Entry>)] = {};
  // All zero bytes are an empty array; no destructor: threads allocate until the very end.
  return *reinterpret_cast<Array<Entry>*>(room);
}

std::size_t position(CUdeviceptr at) {
  Array<Entry>& all = entries();
  const Entry* found = std::upper_bound(
      all.begin(), all.end(), at,
      [](CUdeviceptr where, const Entry& e) { return where < e.found.begin + e.reserved_bytes; });
  return static_cast<std::size_t>(found - all.begin());
}

Carrier& carrier_of(CUdevice device, CUcontext context) {
  Carrier& carrier = carriers[device];
  const cuda::ContextScope current(context);
  if (carrier.kernels == nullptr && !carrier.no_kernels) {
    auto made = cuda::Kernels::create();
    carrier.no_kernels = !made.ok();
    if (made.ok()) carrier.kernels = (*std::move(made)).release();
  }
  return carrier;
}

void settle_entry(Entry& entry) {
  const DeviceRegion& region = *entry.region;
  bool spills = false;
  for (std::uint32_t i = 0; i < region.page_count() && !spills; ++i) {
    spills = region.page(i) == DevicePage::kMapped && region.place(i) == DevicePlace::kHost;
  }
  if (spills != entry.spills) g_spilled.fetch_add(spills ? 1 : -1, std::memory_order_relaxed);
  entry.spills = spills;
  entry.changed = true;
  if (entry.freed || entry.shares != 0) wake_keeper();  // who shares it waits
}

Status drain(void* /*argument*/) {
  Array<CUcontext> contexts;
  {
    const LockGuard guard(g_entries_lock);
    for (const Entry& entry : entries()) {
      const CUcontext context = entry.found.context;
      if (std::find(contexts.begin(), contexts.end(), context) != contexts.end()) continue;
      if (!contexts.resize(contexts.size() + 1)) return {Code::kNoMemory, "a list of contexts"};
      contexts[contexts.size() - 1] = context;
    }
  }
  for (const CUcontext context : contexts) {
    const cuda::ContextScope current(context);
    if (!current.status().ok()) continue;  // the engine has destroyed it, and with it its work
    const Status status = cuda::status_of(cuda::driver().context_synchronize(), "cuCtxSynchronize");
    if (status.code() != Code::kPeerGone) KV_TRY(status);
  }
  return {};
}

bool any_freed() { return g_freed.load(std::memory_order_acquire) != 0; }

void wake_keeper() {
  ::pthread_once(&once, start);
  ask();
}

void await_keeper(std::uint64_t timeout_ns) {
  const std::uint32_t seen = tried.load(std::memory_order_acquire);
  wake_keeper();
  sys::futex_wait_for(tried, seen, timeout_ns);
}

int carry_out(const wire::AgentCommand& command) {
  {
    const LockGuard guard(wanted_lock);
    switch (command.op) {
      case wire::AgentOp::kPark:
        wanted.park = true;
        std::memcpy(wanted.tag, command.for_gpu.tag, sizeof wanted.tag - 1);
        break;
      case wire::AgentOp::kWake:
        wanted.wake = true;
        wanted.park = false;
        break;
      case wire::AgentOp::kGiveBack:
        wanted.give_back = true;
        wanted.back = command.for_gpu;
        break;
      default:
        return -ENOSYS;
    }
  }
  ask();
  return 0;
}

int park_and_wait(const char* only) {
  const std::uint32_t seen = parkings.load(std::memory_order_acquire);
  wire::AgentCommand command;
  command.op = wire::AgentOp::kPark;
  command.for_gpu = {};
  if (only != nullptr) strncpy(command.for_gpu.tag, only, sizeof command.for_gpu.tag - 1);
  (void)carry_out(command);
  wake_keeper();
  while (parkings.load(std::memory_order_acquire) == seen) sys::futex_wait(parkings, seen);
  return last_parking.load(std::memory_order_relaxed);
}

void tell_all() {
  {
    const LockGuard guard(wanted_lock);
    wanted.tell_all = true;
  }
  ask();
}

}  // namespace kvmem::device
