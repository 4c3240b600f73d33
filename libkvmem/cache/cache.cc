// The C API of the block cache: a connection of its own to the daemon, and the memory it maps.
//
//   closed -> attached    the first call, or the next one after a hang-up
//   attached -> closed    the daemon hung up: what is leased stays mapped until it is ended
#include "wire/cache.h"

#include <errno.h>
#include <string.h>

#include <cstdint>

#include "base/heap.h"
#include "base/unique_handle.h"
#include "client/channel.h"
#include "client/lock.h"
#include "client/notice.h"
#include "client/settings.h"
#include "kvmem.h"

#define KVMEM_EXPORTED extern "C" __attribute__((visibility("default")))

namespace kvmem {
namespace {

// Reads and writes of the store are waited for, and other engines' before them.
constexpr std::uint64_t kReplyTimeoutNs = 600'000'000'000;

static_assert(sizeof(kvmem_block_name) == sizeof(wire::BlockName));

// What one daemon has lent.
struct Attachment {
  UniqueFd socket;
  UniqueMapping blocks;    // read-only
  UniqueMapping exchange;  // ours and the daemon's
  std::uint32_t epoch = 0;
  Array<std::uint32_t> leases;  // that have not been ended
  Attachment* older = nullptr;  // of an earlier daemon, while something in it is leased

  // Null: ended, or never lent.
  std::uint32_t* find(std::uint32_t lease) {
    for (std::uint32_t& known : leases) {
      if (known == lease) return &known;
    }
    return nullptr;
  }
  bool end(std::uint32_t lease) {
    std::uint32_t* const known = find(lease);
    if (known == nullptr) return false;
    *known = leases[leases.size() - 1];
    leases.shrink(leases.size() - 1);
    return true;
  }
  unsigned char* at(std::size_t offset) const {
    return static_cast<unsigned char*>(exchange.get().address) + offset;
  }
};

bool map(UniqueMapping& out, int fd, std::uint64_t size_bytes, int prot) {
  const long at = sys::mmap(0, size_bytes, prot, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (sys::is_error(at)) return false;
  sys::madvise(static_cast<std::uint64_t>(at), size_bytes, MADV_DONTDUMP);
  out.reset({reinterpret_cast<void*>(at), size_bytes});
  return true;
}

}  // namespace
}  // namespace kvmem

struct kvmem_cache {
  kvmem::Lock lock;
  std::uint64_t identity[2];
  std::uint64_t block_bytes;
  int pid;  // that opened it
  std::uint32_t epoch;
  kvmem::Attachment* now;    // null: closed
  kvmem::Attachment* older;  // not empty
  kvmem_cache_statistics stats;
};

namespace kvmem {
namespace {

using wire::Op;
using wire::Reply;
using wire::Request;

void destroy(Attachment* attachment) { Owned<Attachment>{attachment}.reset(); }

void detach(kvmem_cache& c) {
  Attachment* gone = c.now;
  if (gone == nullptr) return;
  c.now = nullptr;
  gone->socket.reset();
  gone->exchange.reset();
  if (gone->leases.empty()) return destroy(gone);
  gone->older = c.older;
  c.older = gone;
}

int attach(kvmem_cache& c) {
  void* room = heap_room<Attachment>();
  if (room == nullptr) return -ENOMEM;
  Owned<Attachment> made(::new (room) Attachment);
  const int socket = connect_to(g_settings.socket_path);
  if (socket < 0) return socket == -EAGAIN || socket == -EMFILE ? socket : -ENOTCONN;
  made->socket.reset(socket);
  Request request;
  request.op = Op::kCacheOpen;
  request.size_bytes = c.block_bytes;
  memcpy(request.identity, c.identity, sizeof request.identity);
  Reply reply;
  Descriptors received;
  const int error = converse(socket, request, nullptr, 0, &reply, &received, kReplyTimeoutNs);
  if (error != 0) return error == -EMFILE ? error : -ENOTCONN;
  if (reply.error != 0) {
    detail(reply.message);
    return reply.error;
  }
  if (received.count != 2) return -EPROTO;
  if (!map(made->blocks, received.fd[0].get(), reply.size_bytes, PROT_READ) ||
      !map(made->exchange, received.fd[1].get(), wire::cache_exchange_bytes(c.block_bytes),
           PROT_READ | PROT_WRITE)) {
    return -ENOMEM;
  }
  made->epoch = ++c.epoch;
  c.now = made.release();
  return 0;
}

// Asks this daemon. 0 or what it answered; where it is gone, -ENOTCONN, and detached.
int ask_this(kvmem_cache& c, const Request& request, Reply* reply) {
  if (converse(c.now->socket.get(), request, nullptr, 0, reply, nullptr, kReplyTimeoutNs) != 0) {
    detach(c);
    return -ENOTCONN;
  }
  if (reply->error != 0) detail(reply->message);
  return reply->error;
}

// Runs `fill` on the exchange memory, then asks. A daemon that was restarted meanwhile is asked
// anew, once: every request may be repeated.
template <class Fill>
int ask(kvmem_cache& c, const Request& request, Reply* reply, Fill fill) {
  for (int attempt = 0;; ++attempt) {
    const bool is_fresh = c.now == nullptr;
    if (is_fresh) {
      if (const int error = attach(c); error != 0) return error;
    }
    fill(*c.now);
    const int error = ask_this(c, request, reply);
    if (c.now != nullptr || is_fresh || attempt > 0) return error;
  }
}

bool is_usable(const kvmem_cache* c) { return c != nullptr && c->pid == sys::pid(); }

int ask_about(kvmem_cache& c, Request& request, const kvmem_block_name* names, std::size_t count,
              Reply* reply) {
  if (count > wire::kCacheNamesMax) return -E2BIG;
  request.page_count = count;
  const int error = ask(c, request, reply, [&](const Attachment& to) {
    if (count > 0) memcpy(to.at(0), names, count * sizeof *names);
  });
  if (error == 0 && reply->page_count > count) return -EPROTO;
  return error;
}

// Tells the daemon; it does not answer.
void tell(kvmem_cache& c, const Request& request) {
  if (send_message(c.now->socket.get(), &request, sizeof request, nullptr, 0,
                   sys::now_ns() + kReplyTimeoutNs) != 0) {
    detach(c);  // with the daemon went what it had lent
  }
}

void send_end(kvmem_cache& c, std::uint32_t lease) {
  Request request;
  request.op = Op::kCacheEnd;
  request.region_id = lease;
  tell(c, request);
}

int end(kvmem_cache& c, std::uint32_t epoch, std::uint32_t lease) {
  if (c.now != nullptr && c.now->epoch == epoch) {
    if (!c.now->end(lease)) return -EINVAL;
    send_end(c, lease);
    return 0;
  }
  // Of an earlier daemon: what is mapped here is unmapped with the last one.
  for (Attachment** at = &c.older; *at != nullptr; at = &(*at)->older) {
    Attachment* lent = *at;
    if (lent->epoch != epoch || !lent->end(lease)) continue;
    if (lent->leases.empty()) {
      *at = lent->older;
      destroy(lent);
    }
    return 0;
  }
  return -EINVAL;
}

// Where the blocks are that the daemon has just lent, and null for those that it has not; how many
// have an address.
std::size_t find_blocks(const kvmem_cache& c, const Reply& reply, const void** blocks) {
  const Attachment& now = *c.now;
  const auto* memory = static_cast<const unsigned char*>(now.blocks.get().address);
  const std::uint64_t slot_bytes = wire::cache_slot_bytes(c.block_bytes);
  std::size_t here = 0;
  for (std::size_t i = 0; i < reply.page_count; ++i) {
    std::uint32_t slot = 0;
    memcpy(&slot, now.at(wire::kCacheSlotsOffset) + i * sizeof slot, sizeof slot);
    const bool is_here = slot != wire::kNoCacheSlot;
    blocks[i] = is_here ? memory + slot * slot_bytes : nullptr;
    here += is_here;
  }
  return here;
}

int take_lease(kvmem_cache& c, const Reply& reply, std::uint64_t* request) {
  Attachment& now = *c.now;
  *request = 0;
  if (reply.page_count == 0) return 0;
  const auto lease = static_cast<std::uint32_t>(reply.region_id);
  if (!now.leases.resize(now.leases.size() + 1)) {
    send_end(c, lease);
    return -ENOMEM;
  }
  now.leases[now.leases.size() - 1] = lease;
  *request = std::uint64_t{now.epoch} << 32 | lease;
  return 0;
}

bool is_request(const kvmem_cache_request* options, const void* const* blocks) {
  return options != nullptr && options->size >= sizeof *options &&
         (options->count == 0 || (options->names != nullptr && blocks != nullptr));
}

int begin(kvmem_cache& c, const kvmem_cache_request& options, std::uint16_t flags,
          const void** blocks, Reply* reply, std::uint64_t* request) {
  Request asked;
  asked.op = Op::kCacheBegin;
  asked.flags = flags;
  asked.time_us = options.time_ms * 1000;
  asked.input_tokens = options.input_tokens;
  asked.output_tokens = options.output_tokens;
  if (options.tail_is_partial != 0) asked.flags |= Request::kPartial;
  if (const int error = ask_about(c, asked, options.names, options.count, reply); error != 0) {
    return error;
  }
  if (const int error = take_lease(c, *reply, request); error != 0) return error;
  ++c.stats.requests;
  c.stats.asked += options.count;
  c.stats.found += find_blocks(c, *reply, blocks);
  return 0;
}

// One daemon's word: another one does not know the request.
int wait_for(kvmem_cache& c, std::uint64_t number, const void** blocks, std::size_t* found) {
  const auto epoch = static_cast<std::uint32_t>(number >> 32);
  const auto lease = static_cast<std::uint32_t>(number);
  if (c.now == nullptr || c.now->epoch != epoch) return -ENOTCONN;
  if (c.now->find(lease) == nullptr) return -EINVAL;
  Request request;
  request.op = Op::kCacheWait;
  request.region_id = lease;
  Reply reply;
  if (const int error = ask_this(c, request, &reply); error != 0) return error;
  if (reply.page_count > wire::kCacheNamesMax) return -EPROTO;
  if (reply.page_count == 0) c.now->end(lease);
  find_blocks(c, reply, blocks);
  *found = reply.page_count;
  c.stats.found += reply.first_page;
  c.stats.restored += reply.first_page;
  return 0;
}

}  // namespace
}  // namespace kvmem

KVMEM_EXPORTED int kvmem_cache_open(const kvmem_cache_options* options,
                                    kvmem_cache** cache) noexcept {
  if (options == nullptr || cache == nullptr || options->size < sizeof *options ||
      options->block_bytes == 0 || options->block_bytes > kvmem::wire::kCacheBlockBytesMax) {
    return -EINVAL;
  }
  if (kvmem::g_settings.off) return -ENOTSUP;
  const int saved = errno;
  void* room = kvmem::heap_room<kvmem_cache>();
  if (room == nullptr) {
    errno = saved;
    return -ENOMEM;
  }
  kvmem::Owned<kvmem_cache> made(::new (room) kvmem_cache{});
  memcpy(made->identity, options->identity, sizeof made->identity);
  made->block_bytes = options->block_bytes;
  made->pid = kvmem::sys::pid();
  const int error = kvmem::attach(*made);
  if (error == 0) *cache = made.release();
  errno = saved;
  return error;
}

KVMEM_EXPORTED void kvmem_cache_close(kvmem_cache* cache) noexcept {
  if (cache == nullptr) return;
  const int saved = errno;
  kvmem::Owned<kvmem_cache> gone(cache);
  // (The daemon ends what is leased when it sees the hang-up. A child's copy closes its own.)
  if (gone->now != nullptr) kvmem::destroy(gone->now);
  while (gone->older != nullptr) {
    kvmem::Attachment* next = gone->older->older;
    kvmem::destroy(gone->older);
    gone->older = next;
  }
  gone.reset();
  errno = saved;
}

KVMEM_EXPORTED int kvmem_cache_contains(kvmem_cache* cache, const kvmem_block_name* names,
                                        size_t count, size_t* found) noexcept {
  if (!kvmem::is_usable(cache) || found == nullptr || (names == nullptr && count > 0)) {
    return -EINVAL;
  }
  const int saved = errno;
  const kvmem::LockGuard guard(cache->lock);
  kvmem::wire::Request request;
  request.op = kvmem::wire::Op::kCacheContains;
  kvmem::wire::Reply reply;
  const int error = kvmem::ask_about(*cache, request, names, count, &reply);
  if (error == 0) *found = reply.page_count;
  errno = saved;
  return error;
}

KVMEM_EXPORTED int kvmem_cache_begin(kvmem_cache* cache, const kvmem_cache_request* options,
                                     const void** blocks, size_t* found,
                                     uint64_t* request) noexcept {
  if (!kvmem::is_usable(cache) || !kvmem::is_request(options, blocks) || found == nullptr ||
      request == nullptr) {
    return -EINVAL;
  }
  const int saved = errno;
  const kvmem::LockGuard guard(cache->lock);
  kvmem::wire::Reply reply;
  const int error = kvmem::begin(*cache, *options, 0, blocks, &reply, request);
  if (error == 0) {
    *found = reply.page_count;
    cache->stats.restored += reply.first_page;
  }
  errno = saved;
  return error;
}

KVMEM_EXPORTED int kvmem_cache_plan(kvmem_cache* cache, const kvmem_cache_request* options,
                                    const void** blocks, size_t* found, size_t* compute_end,
                                    uint64_t* request) noexcept {
  if (!kvmem::is_usable(cache) || !kvmem::is_request(options, blocks) || found == nullptr ||
      compute_end == nullptr || request == nullptr) {
    return -EINVAL;
  }
  const int saved = errno;
  const kvmem::LockGuard guard(cache->lock);
  using kvmem::wire::Request;
  const unsigned flags = Request::kMayCompute | (options->overlaps != 0 ? Request::kOverlaps : 0U);
  kvmem::wire::Reply reply;
  const int error =
      kvmem::begin(*cache, *options, static_cast<std::uint16_t>(flags), blocks, &reply, request);
  if (error == 0) {
    *found = reply.page_count;
    *compute_end = reply.first_page;
  }
  errno = saved;
  return error;
}

KVMEM_EXPORTED int kvmem_cache_wait(kvmem_cache* cache, uint64_t request, const void** blocks,
                                    size_t* found) noexcept {
  if (!kvmem::is_usable(cache) || found == nullptr) return -EINVAL;
  if (request == 0) {
    *found = 0;
    return 0;
  }
  if (blocks == nullptr) return -EINVAL;
  const int saved = errno;
  const kvmem::LockGuard guard(cache->lock);
  const int error = kvmem::wait_for(*cache, request, blocks, found);
  errno = saved;
  return error;
}

KVMEM_EXPORTED int kvmem_cache_computed(kvmem_cache* cache, size_t first, size_t count,
                                        uint64_t microseconds) noexcept {
  if (!kvmem::is_usable(cache) || first > kvmem::wire::kCacheNamesMax ||
      count > kvmem::wire::kCacheNamesMax) {
    return -EINVAL;
  }
  const int saved = errno;
  const kvmem::LockGuard guard(cache->lock);
  int error = cache->now == nullptr ? kvmem::attach(*cache) : 0;
  if (error == 0) {
    kvmem::wire::Request request;
    request.op = kvmem::wire::Op::kCacheComputed;
    request.first_page = first;
    request.page_count = count;
    request.time_us = microseconds;
    kvmem::tell(*cache, request);
  }
  errno = saved;
  return error;
}

KVMEM_EXPORTED int kvmem_cache_end(kvmem_cache* cache, uint64_t request) noexcept {
  if (!kvmem::is_usable(cache)) return -EINVAL;
  if (request == 0) return 0;
  const int saved = errno;
  int error = 0;
  {
    const kvmem::LockGuard guard(cache->lock);
    error = kvmem::end(*cache, static_cast<std::uint32_t>(request >> 32),
                       static_cast<std::uint32_t>(request));
  }
  errno = saved;
  return error;
}

KVMEM_EXPORTED int kvmem_cache_put(kvmem_cache* cache, const kvmem_block_name* name,
                                   const void* bytes) noexcept {
  if (!kvmem::is_usable(cache) || name == nullptr || bytes == nullptr) return -EINVAL;
  const int saved = errno;
  const kvmem::LockGuard guard(cache->lock);
  kvmem::wire::Request request;
  request.op = kvmem::wire::Op::kCachePut;
  kvmem::wire::Reply reply;
  const int error = kvmem::ask(*cache, request, &reply, [&](const kvmem::Attachment& to) {
    memcpy(to.at(0), name, sizeof *name);
    memcpy(to.at(kvmem::wire::kCacheStagingOffset), bytes, cache->block_bytes);
  });
  ++(error == 0 ? cache->stats.puts : cache->stats.refused);
  errno = saved;
  return error;
}

KVMEM_EXPORTED int kvmem_cache_stats(kvmem_cache* cache, kvmem_cache_statistics* stats) noexcept {
  if (!kvmem::is_usable(cache) || stats == nullptr || stats->size < sizeof *stats) return -EINVAL;
  const kvmem::LockGuard guard(cache->lock);
  *stats = cache->stats;
  stats->size = sizeof *stats;
  return 0;
}
