#include "region/device_keeper.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include <algorithm>
#include <cstring>

#include "client/notice.h"
#include "client/settings.h"
#include "region/device_entries.h"
#include "region/device_park.h"

namespace kvmem::device {

namespace {

// What the keeper has been asked to do; taken all at once.
struct Wanted {
  std::uint32_t park;  // the number of the last request; 0: none
  bool wake;
  bool tell_all;
  bool give_back;
  char tag[64];                     // park: of these alone; empty: all
  wire::AgentCommand::ForGpu back;  // give_back
};
Lock wanted_lock;
Wanted wanted GUARDED_BY(wanted_lock);
std::uint32_t park_requests GUARDED_BY(wanted_lock) = 0;
sys::FutexWord parks_answered{0};  // up to this one
std::atomic<int> park_answer{0};   // of the last one: 0 or -errno

std::atomic<bool> room_wanted{false};  // also what is kept for a stream
std::atomic<bool> has_thread{false};

sys::FutexWord asked{0};  // counted up when there is something to do
sys::FutexWord tried{0};  // counted up after each round
pthread_once_t once = PTHREAD_ONCE_INIT;

Wanted take_wanted() {
  const LockGuard guard(wanted_lock);
  return std::exchange(wanted, {});
}

void answer_park(std::uint32_t request, const Status& status) {
  if (request == 0) return;
  park_answer.store(status.ok()                    ? 0
                    : status.code() == Code::kBusy ? -EAGAIN
                                                   : -ENOMEM,
                    std::memory_order_relaxed);
  parks_answered.store(request, std::memory_order_release);
  sys::futex_wake(parks_answered, INT32_MAX);
}

// What could not be done yet.
void put_back(const Wanted& rest) {
  answer_park(rest.park, {Code::kBusy, "the engine goes on"});
  const LockGuard guard(wanted_lock);
  wanted.tell_all |= rest.tell_all;
  if (!rest.give_back || wanted.give_back) return;
  wanted.give_back = true;
  wanted.back = rest.back;
}

// --- burying ---

struct Gone {
  Gpu gpu;
  CUdeviceptr at;
  unsigned char* bank;
  std::size_t size_bytes;
};

// REQUIRES: the gate is closed. What is left to do of each, where the daemon may be waited for.
void bury_all(Array<Gone>* left) {
  for (;;) {
    Entry gone{};
    {
      const LockGuard guard(g_entries_lock);
      Array<Entry>& all = entries();
      Entry* entry =
          std::find_if(all.begin(), all.end(), [](const Entry& e) { return e.freed && !e.moving; });
      if (entry == all.end()) return;
      if (!left->resize(left->size() + 1)) return;  // another time
      gone = *entry;
      (*left)[left->size() - 1] = {g_devices[gone.region->device()].gpu, gone.found.begin,
                                   gone.bank, gone.reserved_bytes};
      if (entry->spills) g_spilled.fetch_sub(1, std::memory_order_relaxed);
      std::copy(entry + 1, all.end(), entry);
      all.shrink(all.size() - 1);
    }
    if (gone.shares != 0) gone.region->set_shared();
    HeapDelete{}(gone.region);
    g_freed.fetch_sub(1, std::memory_order_release);  // only now is there room
  }
}
void see_off(Array<Gone>& left) {
  for (const Gone& gone : left) {
    give_up_bank(gone.bank, gone.size_bytes);
    RegionReport what{};
    what.address = gone.at;
    (void)report(gone.gpu, what);
  }
}

// What was freed on a stream is kept for that stream until somebody needs the room.
bool is_burial_due() {
  if (room_wanted.exchange(false, std::memory_order_acq_rel)) return any_freed();
  const LockGuard guard(g_entries_lock);
  Array<Entry>& all = entries();
  return std::any_of(all.begin(), all.end(),
                     [](const Entry& e) { return e.freed && e.freed_on == kNoStream; });
}

// Regions that the engine has freed give addresses and memory back. False: not now.
bool bury() {
  if (!is_burial_due()) return true;
  if (!g_gate.close(drain, nullptr).ok()) {
    room_wanted.store(true, std::memory_order_release);
    return false;
  }
  Array<Gone> left;
  bury_all(&left);
  g_gate.open();
  see_off(left);
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
    if (report(gpu, what)) continue;
    const LockGuard guard(g_entries_lock);
    Array<Entry>& all = entries();
    const std::size_t i = position(what.address);
    if (i < all.size() && all[i].found.begin == what.address) all[i].changed = true;
    return;
  }
}

void claim_held_of_all() {
  for (int i = 0; i < kDevicesMax; ++i) claim_held(i);
}

// --- parked ---

void parked_until_wanted(const char* only, const char* why, std::uint32_t request) {
  Status status = park(only, why);
  answer_park(request, status);
  if (!status.ok()) {
    if (status.code() != Code::kBusy) {
      notice("not parked: ", status.what(), " ", cuda::error_name(status));
    }
    return;
  }
  for (;;) {
    const std::uint32_t seen = g_gate.event();
    const Wanted also = take_wanted();
    if (g_gate.is_wanted() || also.wake) {
      put_back(also);
      break;
    }
    Array<Gone> left;
    bury_all(&left);
    see_off(left);
    // It does nothing: whoever needs room may have all of it.
    if (also.park != 0) answer_park(also.park, park_more(also.tag, "park"));
    if (also.give_back) (void)park_more("", "budget");
    if (also.tell_all) claim_held_of_all();
    tell(also.tell_all);
    tried.fetch_add(1, std::memory_order_release);
    sys::futex_wake(tried, INT32_MAX);
    g_gate.wait(seen);
  }
  wake();
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
    const auto pages = static_cast<std::uint32_t>((held - bytes) / pool.page_bytes());
    const Status status =
        move(found.begin, found.size_bytes, DevicePlace::kHost, &moved, std::max(pages, 1U));
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
    claim_held(i);
  }
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
    if (now.tell_all) claim_held_of_all();
    tell(now.tell_all);
    const std::uint64_t idle_ns = idle.look();
    const bool is_idle = idle_ns >= kIdleEnoughNs;
    const bool is_over = now.give_back && !give_back(now.back, is_idle ? now.back.hbm_idle_bytes
                                                                       : now.back.hbm_bytes);
    if (now.park != 0) {
      parked_until_wanted(now.tag, "park", now.park);
    } else if (is_over && is_idle) {
      parked_until_wanted("", "budget", 0);
    } else if (g_settings.park_after_ns != 0 && idle_ns >= g_settings.park_after_ns) {
      parked_until_wanted("", "idle", 0);
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
  // None: freed memory stays.
  has_thread = ::pthread_create(&thread, &attributes, keep, nullptr) == 0;
  ::pthread_attr_destroy(&attributes);
}

void ask() {
  asked.fetch_add(1, std::memory_order_release);
  sys::futex_wake(asked, 1);
  g_gate.nudge();  // parked, it waits there
}

}  // namespace

bool any_freed() { return g_freed.load(std::memory_order_acquire) != 0; }

void start_keeper() { ::pthread_once(&once, start); }

void wake_keeper() {
  start_keeper();
  ask();
}

void await_keeper(std::uint64_t timeout_ns) {
  const std::uint32_t seen = tried.load(std::memory_order_acquire);
  room_wanted.store(true, std::memory_order_release);
  wake_keeper();
  sys::futex_wait_for(tried, seen, timeout_ns);
}

namespace {

// The number of the request. Two that mean different memory become one for all.
std::uint32_t want_park(const char* only) REQUIRES(wanted_lock) {
  char tag[sizeof wanted.tag] = {};
  std::memcpy(tag, only, ::strnlen(only, sizeof tag - 1));
  if (wanted.park != 0 && std::strcmp(wanted.tag, tag) != 0) tag[0] = 0;
  std::memcpy(wanted.tag, tag, sizeof tag);
  if (++park_requests == 0) ++park_requests;
  return wanted.park = park_requests;
}

}  // namespace

int carry_out(const wire::AgentCommand& command) {
  {
    const LockGuard guard(wanted_lock);
    switch (command.op) {
      case wire::AgentOp::kPark:
        (void)want_park(command.for_gpu.tag);
        break;
      case wire::AgentOp::kWake:
        wanted.wake = true;
        answer_park(std::exchange(wanted.park, 0), {Code::kBusy, "to be awake"});
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
  start_keeper();
  if (!has_thread) return -EAGAIN;
  std::uint32_t request = 0;
  {
    const LockGuard guard(wanted_lock);
    request = want_park(only == nullptr ? "" : only);
  }
  ask();
  for (;;) {
    const std::uint32_t answered = parks_answered.load(std::memory_order_acquire);
    // They count up, and wrap.
    if (static_cast<std::int32_t>(answered - request) >= 0) {
      return park_answer.load(std::memory_order_relaxed);
    }
    sys::futex_wait(parks_answered, answered);
  }
}

void tell_all() {
  {
    const LockGuard guard(wanted_lock);
    wanted.tell_all = true;
  }
  ask();
}

}  // namespace kvmem::device
