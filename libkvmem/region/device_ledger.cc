#include "region/device_ledger.h"

#include <errno.h>
#include <string.h>

#include <algorithm>
#include <atomic>

#include "client/agent.h"
#include "client/notice.h"
#include "region/device_keeper.h"
#include "region/table.h"

namespace kvmem::device {
namespace {

// What nobody answers for is not taken at once: a daemon that is started again is back by then.
constexpr std::uint64_t kDaemonAwayNs = 3'000'000'000;
constexpr std::uint64_t kAskAgainNs = 10'000'000;

std::atomic<bool> claimed{false};
std::atomic<bool> is_alone{false};  // the daemon was waited for in vain

struct Conversation {
  wire::Request request;
  wire::Reply reply;
};

int talk(void* context) {
  auto& c = *static_cast<Conversation*>(context);
  if (const int error = table::connect_quietly(); error != 0) return error;
  return session().request(c.request, nullptr, 0, &c.reply, nullptr);
}

int ask(Conversation& c) {
  const LockGuard guard(g_agent_lock);
  return run_on_agent(talk, &c);
}

void name(wire::Request& request, const Gpu& gpu) {
  std::copy(gpu.uuid, gpu.uuid + 2, request.gpu);
}

bool is_away(int error) { return error == -ENOTCONN || error == -EPIPE; }

Claim say(const Gpu& gpu, std::uint64_t needed_bytes, std::uint64_t wanted_bytes,
          std::uint16_t flags) {
  Conversation c;
  c.request.op = wire::Op::kGpuClaim;
  c.request.flags = flags;
  name(c.request, gpu);
  c.request.size_bytes = gpu.total_bytes;
  c.request.hbm_bytes = needed_bytes;
  c.request.hbm_wanted_bytes = wanted_bytes;
  const bool waits = (flags & wire::Request::kExists) == 0 && has_claims() &&
                     !is_alone.load(std::memory_order_relaxed);
  const std::uint64_t give_up_ns = sys::now_ns() + (waits ? kDaemonAwayNs : 0);
  int error = ask(c);
  while (is_away(error) && sys::now_ns() < give_up_ns) {
    sys::sleep_ns(kAskAgainNs);
    error = ask(c);
  }
  if (is_away(error) || error == -EAGAIN) {
    if (waits) is_alone.store(true, std::memory_order_relaxed);
    detail("no kvmemd: GPU memory is shared with nobody");
    return {wanted_bytes, false};
  }
  is_alone.store(false, std::memory_order_relaxed);
  if (error != 0) return {0, false};  // refused
  // What a daemon that came later was not told.
  if (!claimed.exchange(true, std::memory_order_relaxed)) tell_all();
  return {std::min(c.reply.size_bytes, wanted_bytes), c.reply.others_asked != 0};
}

}  // namespace

Claim claim(const Gpu& gpu, std::uint64_t needed_bytes, std::uint64_t wanted_bytes) {
  return say(gpu, needed_bytes, wanted_bytes, 0);
}

std::uint64_t claim_existing(const Gpu& gpu, std::uint64_t bytes) {
  return say(gpu, bytes, bytes, wire::Request::kExists).bytes;
}

bool report(const Gpu& gpu, const RegionReport& region) {
  Conversation c;
  c.request.op = wire::Op::kGpuRegion;
  name(c.request, gpu);
  c.request.address = region.address;
  c.request.size_bytes = region.size_bytes;
  c.request.hbm_bytes = region.hbm_bytes;
  c.request.host_bytes = region.host_bytes;
  c.request.stored_bytes = region.stored_bytes;
  if (region.tag != nullptr) strncpy(c.request.tag, region.tag, sizeof c.request.tag - 1);
  if (region.why != nullptr) strncpy(c.request.why, region.why, sizeof c.request.why - 1);
  return ask(c) == 0;
}

bool has_claims() { return claimed.load(std::memory_order_relaxed); }

}  // namespace kvmem::device
