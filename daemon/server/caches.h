// Caches: the block caches of all users, and the connections that use them.
//
// A user has a cache for each size of block, which all of his engines share; no other user reaches
// it. Users that are active have equal shares of cache.dram, of cache.store and of
// cache.write_budget, and what one does not use others do: policy/block_shares.h,
// policy/write_budget.h. DRAM is taken from the regions' budget when the first engine asks for a
// cache.
//
// A connection asks one thing at a time. Loop only.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cache/block_cache.h"
#include "cache/budget_file.h"
#include "config/config.h"
#include "loop/loop.h"
#include "server/session.h"
#include "wire/protocol.h"

namespace kvmem::server {

struct CacheConnection;

class Caches {
 public:
  // `answer(session, reply)` sends a reply; `changed()`: dram_pages() is another.
  struct Owner {
    virtual ~Owner() = default;
    virtual void answer(Session& session, const wire::Reply& reply) = 0;
    virtual void cache_ended(Session& session) = 0;  // of a session that is ending
    virtual void dram_changed() = 0;
  };

  // `history`: what its files' names begin with; empty: there are none. Waits for the disk: caches
  // of earlier daemons are there at once.
  Caches(loop::Loop& loop, Owner& owner, const config::Config::Cache& config, std::string history);
  ~Caches();
  Caches(const Caches&) = delete;
  Caches& operator=(const Caches&) = delete;

  static bool is_for_caches(wire::Op op) {
    return op >= wire::Op::kCacheOpen && op <= wire::Op::kCacheComputed;
  }
  // False: it is answered when it is done, or not at all.
  bool handle(Session& session, const wire::Request& request, wire::Reply* reply,
              std::vector<UniqueFd>* fds);
  // The session ends: what it leased is given back.
  void drop(Session& session);
  // Nothing more begins; call the loop until idle().
  void stop();
  bool idle() const;
  void tick();                                         // once a second
  void set_write_budget(std::uint64_t bytes_per_day);  // 0: none

  // Taken from the regions' budget.
  std::uint64_t dram_pages() const { return is_used_ ? config_.dram_pages() : 0; }

  struct Key {
    std::uint32_t uid;
    std::uint64_t block_bytes;
    auto operator<=>(const Key&) const = default;
  };
  struct Held {
    std::unique_ptr<cache::BlockCache> cache;
    std::uint32_t connections = 0;
  };
  const std::map<Key, Held>& all() const { return caches_; }
  const cache::Records& records() const { return records_; }
  const policy::WriteBudget& write_budget() const { return write_budget_; }
  const policy::BlockShares& dram_shares() const { return dram_shares_; }
  const policy::BlockShares& store_shares() const { return store_shares_; }

 private:
  wire::Reply open(Session& session, const wire::Request& request, std::vector<UniqueFd>* fds);
  void end(CacheConnection& connection, std::uint64_t lease);
  bool begin(Session& session, const wire::Request& request, wire::Reply* reply);
  static bool wait(CacheConnection& connection, std::uint64_t lease, wire::Reply* reply);
  static void computed(CacheConnection& connection, const wire::Request& request);
  bool put(Session& session, wire::Reply* reply);
  Result<Held*> add(const Key& key);
  void recall();
  bool make_room(std::uint32_t uid);
  void save_write_budget();

  loop::Loop& loop_;
  Owner& owner_;
  const config::Config::Cache config_;
  const std::string history_;
  cache::Records records_;
  cache::Room room_;
  policy::BlockShares dram_shares_;
  policy::BlockShares store_shares_;
  policy::WriteBudget write_budget_;
  cache::BudgetFile budget_file_;
  std::uint64_t spent_bytes_kept_ = 0;  // what the file knows of was spent by then
  std::map<Key, Held> caches_;
  bool is_used_ = false;  // by an engine of this daemon's life
};

// One engine's connection to a cache.
struct CacheConnection {
  // Its context is the connection. One that is ended, by the engine or with it, goes once it is
  // done.
  struct Lease : cache::BlockCache::Lease {
    std::uint64_t number = 0;
  };

  Session* session = nullptr;
  Caches::Owner* owner = nullptr;
  Caches::Held* held = nullptr;
  cache::Identity identity;
  os::SharedMemory exchange;
  std::map<std::uint64_t, Lease> leases;  // by number; node addresses stay
  std::uint64_t next_lease = 1;
  std::uint64_t awaited = 0;  // the lease whose blocks the engine waits for
  std::size_t pending = 0;    // leases that are not done
  cache::BlockCache::Put put;
  bool is_putting = false;
  bool is_dropping = false;  // in Caches::drop()

  bool is_answering() const { return awaited != 0 || is_putting; }
  bool is_busy() const { return pending > 0 || is_putting; }
  cache::BlockCache& cache() const { return *held->cache; }
  std::byte* at(std::size_t offset) const { return exchange.data() + offset; }
};

}  // namespace kvmem::server
