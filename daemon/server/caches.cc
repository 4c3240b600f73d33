#include "server/caches.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "os/clock.h"
#include "os/log.h"
#include "server/server.h"

namespace kvmem::server {
namespace {

using cache::BlockCache;
using wire::Reply;
using wire::Request;

constexpr std::size_t kCachesMax = 64;
constexpr std::ptrdiff_t kCachesOfAUserMax = 8;
constexpr std::size_t kLeasesMax = 4096;  // of a connection
// Requests are remembered until they named so many times as many blocks as the store may hold.
constexpr std::uint64_t kHistoryOfACapacity = 4;

std::uint64_t wall_ms() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

// As the engine put them there; it may change them meanwhile.
std::vector<wire::BlockName> names_from(const CacheConnection& from, std::uint64_t count) {
  std::vector<wire::BlockName> names(count);
  std::copy_n(reinterpret_cast<const wire::BlockName*>(from.at(0)), count, names.begin());
  return names;
}

void ended(const CacheConnection& c) {
  if (!c.is_dropping) c.owner->cache_ended(*c.session);
}

// What a lease has so far, for its engine.
Reply lent(const CacheConnection& c, const CacheConnection::Lease& lease) {
  Reply reply;
  reply.page_count = lease.slots.size();
  reply.region_id = lease.slots.empty() ? 0 : lease.number;  // 0: nothing to end
  std::ranges::copy(lease.slots, reinterpret_cast<std::uint32_t*>(c.at(wire::kCacheSlotsOffset)));
  return reply;
}

// Of a lease that is done. It goes if it has nothing.
Reply lent_for_good(CacheConnection& c, const CacheConnection::Lease& lease) {
  Reply reply = lent(c, lease);
  reply.first_page = lease.restored;
  if (lease.slots.empty()) c.leases.erase(lease.number);
  return reply;
}

// The lease is there, or as much of it as can be.
void begun(BlockCache::Lease* done) {
  auto* lease = static_cast<CacheConnection::Lease*>(done);
  auto* c = static_cast<CacheConnection*>(lease->context);
  --c->pending;
  if (lease->is_ended()) {
    c->leases.erase(lease->number);
    if (c->session->ending) ended(*c);
  } else if (c->awaited == lease->number) {
    c->awaited = 0;
    c->owner->answer(*c->session, lent_for_good(*c, *lease));
  }
}

void was_put(BlockCache::Put* put, Status status) {
  auto* c = static_cast<CacheConnection*>(put->context);
  c->is_putting = false;
  if (c->session->ending) return ended(*c);
  c->owner->answer(*c->session, status.ok() ? Reply{} : refuse_status(status));
}

}  // namespace

Caches::Caches(loop::Loop& loop, Owner& owner, const config::Config::Cache& config,
               std::string history)
    : loop_(loop),
      owner_(owner),
      config_(config),
      history_(loop.store() == nullptr ? std::string() : std::move(history)),
      records_(loop.store(), config.store_pages()),
      room_(config_.dram_pages()),
      dram_shares_(config_.dram_pages()),
      store_shares_(records_.pages_max()),
      budget_file_(history_.empty() ? history_ : history_ + "budget", loop.workers()) {
  set_write_budget(config_.write_bytes_per_day);
  if (const auto kept = budget_file_.read(); kept && write_budget_.is_limited()) {
    const std::uint64_t passed_ms = wall_ms() - std::min(wall_ms(), kept->wall_ms);
    write_budget_.set_saved(static_cast<double>(kept->saved_bytes) +
                            static_cast<double>(passed_ms) * write_budget_.rate());
  }
  if (!history_.empty()) recall();
  records_.trim();
}

Caches::~Caches() = default;

// In milliseconds: a day has so many, and an hour's worth may be saved.
void Caches::set_write_budget(std::uint64_t bytes_per_day) {
  constexpr double kHourMs = 3'600'000;
  write_budget_.pass_time(os::now_ns() / 1'000'000);
  write_budget_.set_rate(static_cast<double>(bytes_per_day) / (24 * kHourMs), kHourMs);
}

void Caches::save_write_budget() {
  const std::uint64_t spent = write_budget_.spent_bytes();
  if (std::exchange(spent_bytes_kept_, spent) == spent) return;
  write_budget_.pass_time(os::now_ns() / 1'000'000);
  budget_file_.write({wall_ms(), static_cast<std::uint64_t>(write_budget_.saved_bytes())});
}

bool Caches::handle(Session& session, const Request& request, Reply* reply,
                    std::vector<UniqueFd>* fds) {
  if (request.op == wire::Op::kCacheOpen) {
    *reply = open(session, request, fds);
    return true;
  }
  CacheConnection* c = session.cache.get();
  if (c == nullptr) {
    *reply = refuse(EPROTO, "send CacheOpen first");
    return true;
  }
  if (request.op == wire::Op::kCacheEnd) {
    end(*c, request.region_id);
    return false;
  }
  if (request.op == wire::Op::kCacheComputed) {
    computed(*c, request);
    return false;
  }
  if (c->is_answering()) {
    *reply = refuse(EBUSY, "the request before it has not been answered");
    return true;
  }
  const bool names = request.op == wire::Op::kCacheContains || request.op == wire::Op::kCacheBegin;
  if (names && request.page_count > wire::kCacheNamesMax) {
    *reply = refuse(E2BIG, "a request names at most 16,384 blocks");
    return true;
  }
  switch (request.op) {
    case wire::Op::kCacheContains:
      reply->page_count = c->cache().contains(c->identity, names_from(*c, request.page_count));
      return true;
    case wire::Op::kCacheBegin:
      return begin(session, request, reply);
    case wire::Op::kCacheWait:
      return wait(*c, request.region_id, reply);
    default:
      return put(session, reply);
  }
}

Reply Caches::open(Session& session, const Request& request, std::vector<UniqueFd>* fds) {
  if (session.cache != nullptr) return refuse(EALREADY, "this connection has a cache");
  const Key key{session.peer.uid, request.size_bytes};
  if (key.block_bytes == 0 || key.block_bytes > wire::kCacheBlockBytesMax) {
    return refuse(EINVAL, "blocks have 1 byte to 64 MiB");
  }
  const std::uint64_t slots_max = config_.dram_bytes / wire::cache_slot_bytes(request.size_bytes);
  if (slots_max == 0) {
    return refuse(ENOMEM, "not one such block fits into cache.dram of kvmemd's configuration");
  }
  auto connection = std::make_unique<CacheConnection>();
  auto exchange =
      os::SharedMemory::create("kvmem-exchange", wire::cache_exchange_bytes(request.size_bytes),
                               os::MemoryKind::kShmem, false);
  if (!exchange.ok()) return refuse_status(exchange.status());
  connection->exchange = *std::move(exchange);
  const auto found = caches_.find(key);
  Held* held = found != caches_.end() ? &found->second : nullptr;
  if (held == nullptr) {
    if (!make_room(key.uid)) {
      return refuse(EUSERS, "too many sizes of blocks are in use: close a cache of another size");
    }
    auto added = add(key);
    if (!added.ok()) return refuse_status(added.status());
    held = *added;
  }
  if (!std::exchange(is_used_, true)) owner_.dram_changed();
  auto blocks = os::reopen(held->cache->memory().fd(), O_RDONLY);
  if (!blocks.ok()) return refuse_status(blocks.status());
  fds->push_back(*std::move(blocks));
  fds->emplace_back(::fcntl(connection->exchange.fd(), F_DUPFD_CLOEXEC, 0));
  ++held->connections;
  connection->session = &session;
  connection->owner = &owner_;
  connection->held = held;
  connection->identity = {request.identity[0], request.identity[1]};
  session.cache = std::move(connection);
  Reply reply;
  reply.size_bytes = held->cache->memory().size_bytes();
  reply.page_count = slots_max;
  return reply;
}

Result<Caches::Held*> Caches::add(const Key& key) {
  cache::CacheOptions options;
  options.uid = key.uid;
  options.block_bytes = key.block_bytes;
  options.slots_max = config_.dram_bytes / wire::cache_slot_bytes(key.block_bytes);
  options.slots = options.slots_max;
  options.stored_blocks = records_.pages_max() / pages_for(key.block_bytes);
  options.policy = config_.policy;
  options.write_through = config_.write_through;
  options.memory_kind = loop_.memory_kind();
  options.dram_shares = &dram_shares_;
  options.store_shares = &store_shares_;
  options.room = &room_;
  options.write_budget = &write_budget_;
  std::unique_ptr<cache::History> history;
  if (!history_.empty()) {
    history = std::make_unique<cache::History>(
        history_ + std::to_string(key.uid) + "-" + std::to_string(key.block_bytes),
        cache::History::Owner{key.uid, key.block_bytes},
        kHistoryOfACapacity * std::max(options.stored_blocks, options.slots), loop_.workers());
  }
  KV_ASSIGN_OR_RETURN(auto cache,
                      BlockCache::create(options, loop_.workers(), records_, std::move(history)));
  return &caches_.emplace(key, Held{std::move(cache), 0}).first->second;
}

// The caches whose histories are there.
void Caches::recall() {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path prefix(history_);
  std::vector<Key> found;
  for (fs::directory_iterator it(prefix.parent_path(), error), end; !error && it != end;
       it.increment(error)) {
    if (!it->path().filename().string().starts_with(prefix.filename().string())) continue;
    auto owner = cache::History::owner_of(it->path().string());
    if (owner.ok()) found.push_back({owner->uid, owner->block_bytes});
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  for (const Key& key : found) {
    const bool fits = key.block_bytes != 0 && key.block_bytes <= wire::kCacheBlockBytesMax &&
                      config_.dram_bytes >= wire::cache_slot_bytes(key.block_bytes);
    if (!fits || caches_.size() == kCachesMax) continue;
    if (const auto added = add(key); !added.ok()) {
      os::log(os::Severity::kWarning, "block cache of uid %u: %s", key.uid, added.status().what());
    }
  }
}

bool Caches::begin(Session& session, const Request& request, Reply* reply) {
  CacheConnection& c = *session.cache;
  if (c.leases.size() >= kLeasesMax) {
    *reply = refuse(EMFILE, "too many requests have begun and not ended");
    return true;
  }
  const std::uint64_t number = c.next_lease++;
  CacheConnection::Lease& lease = c.leases[number];
  lease.number = number;
  lease.done = begun;
  lease.context = &c;
  lease.identity = c.identity;
  lease.time_ms = request.time_us != 0 ? request.time_us / 1000 : wall_ms();
  lease.input_tokens = request.input_tokens;
  lease.output_tokens = request.output_tokens;
  lease.tail_is_partial = (request.flags & Request::kPartial) != 0;
  lease.overlaps = (request.flags & Request::kOverlaps) != 0;
  const bool is_plan = (request.flags & Request::kMayCompute) != 0;
  lease.may_compute = is_plan;
  ++c.pending;
  if (!is_plan) c.awaited = number;
  c.cache().begin(&lease, names_from(c, request.page_count));
  if (!is_plan) return false;  // it may be answered already, and gone
  *reply = lent(c, lease);
  reply->first_page = lease.compute_end;
  if (lease.slots.empty()) c.leases.erase(number);
  return true;
}

bool Caches::wait(CacheConnection& c, std::uint64_t number, Reply* reply) {
  const auto found = c.leases.find(number);
  if (found == c.leases.end() || found->second.is_ended()) {
    *reply = refuse(EINVAL, "no such request has begun");
    return true;
  }
  if (!found->second.is_done()) {
    c.awaited = number;
    return false;
  }
  *reply = lent_for_good(c, found->second);
  return true;
}

// Of what has not begun there is nothing to end: a library of ours does not ask for it.
void Caches::end(CacheConnection& c, std::uint64_t number) {
  const auto found = c.leases.find(number);
  if (found == c.leases.end() || number == c.awaited || found->second.is_ended()) return;
  const bool is_done = found->second.is_done();
  c.cache().end(&found->second);
  if (is_done) c.leases.erase(found);
}

void Caches::computed(CacheConnection& c, const Request& request) {
  constexpr std::uint64_t kTimeMaxUs = std::uint64_t{1} << 40;
  if (request.first_page > wire::kCacheNamesMax || request.page_count > wire::kCacheNamesMax ||
      request.time_us > kTimeMaxUs) {
    return;
  }
  c.cache().computed(c.identity, request.first_page, request.page_count, request.time_us * 1000);
}

bool Caches::put(Session& session, Reply* /*reply*/) {
  CacheConnection& c = *session.cache;
  c.put.done = was_put;
  c.put.context = &c;
  c.put.identity = c.identity;
  std::memcpy(&c.put.name, c.at(0), sizeof c.put.name);
  c.put.bytes = c.at(wire::kCacheStagingOffset);
  c.is_putting = true;
  c.cache().put(&c.put);
  return false;
}

void Caches::drop(Session& session) {
  CacheConnection* c = session.cache.get();
  if (c == nullptr || c->held == nullptr) return;
  c->awaited = 0;
  // Slots that are given back may end what else this connection has begun.
  c->is_dropping = true;
  std::vector<std::uint64_t> numbers;
  for (const auto& [number, lease] : c->leases) numbers.push_back(number);
  for (const std::uint64_t number : numbers) end(*c, number);
  c->is_dropping = false;
  if (!c->is_busy()) --std::exchange(c->held, nullptr)->connections;
}

// A cache nobody is connected to makes room for one more.
bool Caches::make_room(std::uint32_t uid) {
  const auto of_user = std::count_if(caches_.begin(), caches_.end(),
                                     [&](const auto& c) { return c.first.uid == uid; });
  if (of_user < kCachesOfAUserMax && caches_.size() < kCachesMax) return true;
  const auto unused = std::find_if(caches_.begin(), caches_.end(), [&](const auto& c) {
    return c.second.connections == 0 && c.second.cache->idle() &&
           (of_user < kCachesOfAUserMax || c.first.uid == uid);
  });
  if (unused == caches_.end()) return false;
  if (unused->second.cache->stats().stored == 0) unused->second.cache->forget();
  caches_.erase(unused);
  return true;
}

void Caches::tick() {
  const std::uint64_t now_ms = os::now_ns() / 1'000'000;
  for (auto& [key, held] : caches_) {
    held.cache->tick();
    if (!store_shares_.is_active(key.uid, now_ms)) write_budget_.set_active(key.uid, false);
  }
  save_write_budget();
}

void Caches::stop() {
  for (auto& [key, held] : caches_) held.cache->stop();
  save_write_budget();
}

bool Caches::idle() const {
  return budget_file_.idle() && std::all_of(caches_.begin(), caches_.end(),
                                            [](const auto& c) { return c.second.cache->idle(); });
}

}  // namespace kvmem::server
