#include "region/device_park.h"

#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "client/notice.h"
#include "region/device_entries.h"
#include "region/host.h"

namespace kvmem::device {

unsigned char* make_bank(std::size_t size_bytes, const char* tag) {
  if (void* region = host::allocate(size_bytes, /*is_heap=*/true, tag); region != nullptr) {
    (void)host::advise(reinterpret_cast<std::uintptr_t>(region), size_bytes, MADV_DONTFORK);
    return static_cast<unsigned char*>(region);
  }
  const long plain = sys::mmap(0, size_bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (sys::is_error(plain)) return nullptr;
  (void)sys::madvise(static_cast<std::uint64_t>(plain), size_bytes, MADV_DONTFORK);
  return reinterpret_cast<unsigned char*>(plain);
}

void give_up_bank(unsigned char* bank, std::size_t size_bytes) {
  if (bank == nullptr) return;
  if (in_arena(bank)) {
    (void)host::release(bank);
  } else {
    (void)sys::munmap(reinterpret_cast<std::uintptr_t>(bank), size_bytes);
  }
}

namespace {

// A region whose pages are carried; it stays until it has been put down.
struct Load {
  DeviceRegion* region;
  unsigned char* bank;
  char tag[64];
};

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
  return {load.bank, {carrier.staging, carrier.kernels}};
}

// Page by batch, so that a call that comes meanwhile waits for no more than one.
Status store(Load& load) REQUIRES(g_carrying) {
  if (load.bank == nullptr) load.bank = make_bank(load.region->size_bytes(), load.tag);
  if (load.bank == nullptr) return {Code::kNoMemory, "no memory to keep what is parked"};
  const DeviceRegion::Bank bank = bank_of(load);
  if (bank.carriage.staging == nullptr) return {Code::kNoMemory, "staging memory"};
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

Status store_and_trim(const char* only, const char* why) REQUIRES(g_carrying) {
  KV_TRY(store_all(only, why));
  trim_pools();
  for (int i = 0; i < kDevicesMax; ++i) claim_held(i);
  return {};
}

// Room for all that is stored, or none of it: two engines that wake must not each wait for what the
// other has got.
Status claim_all() {
  for (int i = 0; i < kDevicesMax; ++i) {
    std::uint64_t pages = 0;
    const DevicePool* pool = nullptr;
    bool has_host = false;
    {
      const LockGuard guard(g_entries_lock);
      for (const Entry& e : entries()) {
        if (!e.freed && e.bank != nullptr && e.region->device() == i) {
          pages += e.region->stored_pages();
        }
      }
      pool = g_devices[i].pool;
      has_host = g_devices[i].host != nullptr;
    }
    if (pages == 0) continue;
    (void)claim_room(i, pages);
    if (has_host || pool->available() >= pages) continue;
    for (int taken = 0; taken <= i; ++taken) claim_held(taken);
    return {Code::kNoMemory, "other engines have the GPU"};
  }
  return {};
}

// kNoMemory: not now. Any other error lasts; then, with `give_up`, what cannot come back is lost.
Status restore_all(bool give_up) REQUIRES(g_carrying) {
  KV_TRY(claim_all());
  Status result;
  Load load{};
  for (CUdeviceptr next = 0;
       take_up(&next, &load, [](const Entry& e) { return e.bank != nullptr; });) {
    Status status = load.region->restore(0, load.region->page_count(), bank_of(load));
    const bool lasts = !status.ok() && status.code() != Code::kNoMemory;
    if (status.code() == Code::kCorrupt || (lasts && give_up)) {
      alarm("parked GPU memory is lost, and who touches it fails: ", status.what());
      if (load.region->stored_pages() != 0 && give_up) load.region->drop_stored();
      status = {};
    }
    if (result.ok() || result.code() == Code::kNoMemory) result = status.ok() ? result : status;
    drop_bank(load);
    put_down(load, "wake");
  }
  return result;
}

}  // namespace

Status park(const char* only, const char* why) {
  Status status;
  {
    const LockGuard alone(g_carrying);
    KV_TRY(g_gate.close(drain, nullptr));
    g_parked = true;
    status = store_and_trim(only, why);
  }
  if (!status.ok()) wake();
  return status;
}

Status park_more(const char* only, const char* why) {
  const LockGuard alone(g_carrying);
  return store_and_trim(only, why);
}

void wake() {
  constexpr std::uint64_t kPauseNs = 5'000'000;
  constexpr int kTriesMax = 3;
  constexpr int kSayAfter = 100;
  int failed = 0;
  for (int n = 0;; ++n) {
    {
      const LockGuard alone(g_carrying);
      const Status status = restore_all(failed >= kTriesMax);
      if (status.ok()) {
        g_parked = false;
        break;
      }
      failed += status.code() != Code::kNoMemory;
    }
    if (n == kSayAfter) notice("parked, and no room on the GPU to wake: the engine waits for it");
    // Not in step with others that wait.
    sys::sleep_ns(kPauseNs + sys::now_ns() % (4 * kPauseNs));
  }
  g_gate.open();
}

}  // namespace kvmem::device
