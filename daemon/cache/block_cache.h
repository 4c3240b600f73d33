// BlockCache: immutable blocks of KV cache of one user and one size, in DRAM and in the page store.
//
// A block's name is 128 bits that stand for all that decides its bytes: the chained hash of the
// tokens up to its end, beside the identity of the model, layout and revision. Bytes once put under
// a name are the name's until both tiers have lost them; putting again changes nothing.
//
//   DRAM:   none -> filling -> ready -> none     filling: put, or read from the store; a read
//           none -> waiting -> filling           waits while slots are being emptied
//   store:  none -> writing -> stored -> none    written from a ready slot, one record a page
//
// WHO STAYS. Two policies, of the DRAM slots and of the store's share, are told of the same
// requests. settle() alone carries out what they say: a block wanted in the store is written (at
// once, or when DRAM loses it), and leaves DRAM when nobody wants it there, nobody has leased it
// and the store has it. What the policies know and the bytes that are there need not agree: an
// engine may never put what it announced, a read may fail. Bytes count, always.
//
// READ OR COMPUTE. A request whose engine can compute stored blocks itself gets a choice, made from
// what reading took this cache lately and what that engine says computing took. Where all are
// computed nothing would be learned of reading any more: so once a second some are read as well.
//
// TENANTS. Several caches divide one DRAM and one store between them: policy::BlockShares says who
// may have how much, with each request; Room holds back what another has not given up yet.
//
// WRITES. Under a budget for them the store's policy is held to what policy::WriteBudget admits: a
// block that is refused is not written, stays in DRAM as long as that wants it, and is offered
// again by the next request that asks for it.
//
// Slots are in memory that engines can only read. A leased slot keeps its bytes; one is used again
// only after its last lease has ended.
//
// Loop only; leases and puts are the caller's objects, nothing here waits.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/page.h"
#include "base/status.h"
#include "cache/history.h"
#include "cache/records.h"
#include "cache/room.h"
#include "os/clock.h"
#include "os/memory.h"
#include "os/workers.h"
#include "policy/block_policy.h"
#include "policy/block_shares.h"
#include "policy/restore_choice.h"
#include "policy/write_budget.h"
#include "tier/store.h"
#include "wire/cache.h"

namespace kvmem::cache {

struct Identity {
  std::uint64_t hi = 0;
  std::uint64_t lo = 0;
  auto operator<=>(const Identity&) const = default;
};

struct CacheOptions {
  std::uint32_t uid = 0;
  std::uint64_t block_bytes = 0;    // 1 .. kCacheBlockBytesMax
  std::uint64_t slots_max = 1;      // that the memory has addresses for
  std::uint64_t slots = 1;          // of them, in DRAM
  std::uint64_t stored_blocks = 0;  // in the store
  std::string policy = "kvmem";     // of block_policy_names()
  bool write_through = true;        // to the store when put; else when DRAM loses it
  os::MemoryKind memory_kind = os::MemoryKind::kShmem;
  std::uint64_t page_bytes = kPageBytes;  // the store's
  std::uint64_t (*now_ns)() = os::now_ns;
  // With other caches; they outlive this one. Both or null: then set_capacity() is its owner's.
  policy::BlockShares* dram_shares = nullptr;
  policy::BlockShares* store_shares = nullptr;
  Room* room = nullptr;
  policy::WriteBudget* write_budget = nullptr;  // in milliseconds of now_ns(), by users; null: none
};

struct CacheStats {
  // Gauges, in blocks.
  std::uint64_t known = 0;
  std::uint64_t ready = 0;   // in DRAM
  std::uint64_t leased = 0;  // of them
  std::uint64_t stored = 0;  // in the store, those that are also in DRAM too
  std::uint64_t slots_used = 0;
  // Counters, in blocks.
  std::uint64_t requests = 0;
  std::uint64_t asked = 0;            // in all paths
  std::uint64_t hits_dram = 0;        // leased at once
  std::uint64_t hits_stored = 0;      // leased after a read
  std::uint64_t hits_lost = 0;        // promised by the table, and could not be had
  std::uint64_t left_to_compute = 0;  // stored, and sooner computed than read
  std::uint64_t puts = 0;
  std::uint64_t puts_known = 0;    // were there
  std::uint64_t puts_refused = 0;  // not worth keeping, or no slot
  std::uint64_t written = 0;
  std::uint64_t write_errors = 0;
  std::uint64_t write_budget_refused = 0;  // not worth a write, or no budget left for one
  std::uint64_t read = 0;
  std::uint64_t read_errors = 0;
  std::uint64_t dropped_dram = 0;
  std::uint64_t dropped_stored = 0;
  std::array<std::uint64_t, 3> choices{};  // by policy::RestoreKind, of requests with a choice
};

// The last choice between reading and computing, and what it was made from.
struct ChoiceMade {
  std::uint64_t ns = 0;  // when; 0: there was none
  policy::RestoreChoice choice;
  std::size_t blocks = 0;  // that were there, of the path
  std::size_t stored = 0;  // of them, in the store alone
  bool overlaps = false;
  bool is_known = false;  // what either takes: else all is read
  policy::ReadCost::Estimate read;
  policy::ComputeCost compute;
};

class BlockCache final : private Room::User {
  struct Block;

 public:
  static constexpr std::uint32_t kNoSlot = wire::kNoCacheSlot;

  // A request's blocks, while it uses them. Unchanged by its owner from begin() until `done`, kept
  // until end() and `done`.
  struct Lease {
    void (*done)(Lease* self) = nullptr;  // once: what can be had is there
    void* context = nullptr;              // the caller's
    Identity identity;
    std::uint64_t time_ms = 0;  // never less than before, else taken as that
    std::uint32_t input_tokens = 0;
    std::uint32_t output_tokens = 0;
    bool tail_is_partial = false;
    bool may_compute = false;  // stored blocks, where that is sooner than reading them,
    bool overlaps = false;     // while others are read
    // Out: of the path's leading blocks. Where it may compute also when begin() returns, of what
    // is in DRAM by then; kNoSlot: of others, in the end those that are to be computed.
    std::vector<std::uint32_t> slots;
    std::size_t compute_end = 0;  // out, by begin(): before it nothing is read
    std::size_t restored = 0;     // out: how many had to be read

    bool is_done() const { return is_done_; }
    bool is_ended() const { return is_ended_; }

   private:
    friend class BlockCache;
    std::vector<Block*> blocks;
    std::size_t waits = 0;
    bool is_ended_ = false;
    bool is_done_ = false;
  };

  struct Put : private os::Job {
    // OK, also where the name has its bytes already. kNoSpace: it is not kept (of no request that
    // began, or not worth it). kNoMemory: no slot is free, and none will be before a lease ends.
    void (*done)(Put* self, Status status) = nullptr;
    void* context = nullptr;
    Identity identity;
    wire::BlockName name;
    const std::byte* bytes = nullptr;  // block_bytes; what they are when they are copied counts

   private:
    friend class BlockCache;
    BlockCache* cache = nullptr;
    Block* block = nullptr;
    Status status;
  };

  // `workers` and `records` outlive the cache. `history` (or null) is read at once: what it says is
  // worth its place in the store, and is there, is the cache's from the start.
  static Result<std::unique_ptr<BlockCache>> create(const CacheOptions& options,
                                                    os::Executor& workers, Records& records,
                                                    std::unique_ptr<History> history = nullptr);
  // REQUIRES: idle(), all leases ended. What is stored is left to `records`.
  ~BlockCache() override;
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;

  // How many blocks at the path's start can be had. Changes nothing.
  std::size_t contains(const Identity& identity, std::span<const wire::BlockName> names);
  // `names`: the path, from the start of the prompt. `done` may run before it returns.
  void begin(Lease* lease, std::span<const wire::BlockName> names);
  // Before `done` has run, it still runs, with nothing leased.
  void end(Lease* lease);
  void put(Put* put);
  // An engine computed blocks [first, first + count) of a prompt in so long.
  void computed(const Identity& identity, std::uint64_t first, std::uint64_t count,
                std::uint64_t ns);
  const ChoiceMade& last_choice() const { return last_choice_; }

  // DRAM and the store's share, in blocks.
  void set_capacity(std::uint64_t slots, std::uint64_t stored_blocks) {
    set_slots(slots);
    set_stored(stored_blocks);
  }
  // Once a second or so.
  void tick();
  // Its history is nobody's any more.
  void forget();
  // Nothing new is read or written; what is under way ends.
  void stop();
  bool idle() const;

  const CacheOptions& options() const { return options_; }
  const os::SharedMemory& memory() const { return memory_; }
  std::uint64_t slot_bytes() const { return slot_bytes_; }
  CacheStats stats() const;
  // Stops the process where the structures contradict each other. Walks everything.
  void validate() const;

 private:
  using Id = std::array<std::uint64_t, 2>;
  static constexpr unsigned kReadsMax = 32;  // pages, at the store
  static constexpr unsigned kWritesMax = 16;
  static constexpr unsigned kProbePages = 8;
  static constexpr std::size_t kModelsMax = 64;

  enum class InDram : std::uint8_t { kNone, kWaiting, kFilling, kReady };
  enum class InStore : std::uint8_t { kNone, kWriting, kStored };

  struct Block {
    Id id{};
    std::uint32_t slot = kNoSlot;
    std::uint32_t leases = 0;
    std::uint32_t next_page = 0;  // of a read or write, that has not been started
    std::uint32_t pages_moving = 0;
    InDram in_dram = InDram::kNone;
    InStore in_store = InStore::kNone;
    bool dram_wanted = false;  // by the policies
    bool store_wanted = false;
    bool failed = false;           // a page of the read or write
    std::uint64_t generation = 0;  // of its records
    std::vector<tier::Locator> locators;
    std::vector<Lease*> waiting;  // for the read
  };

  // Its part in what several caches divide: of DRAM, or of the store.
  struct Part final : policy::BlockShares::Member {
    Part(BlockCache& of, bool is_dram_part) : cache(of), is_dram(is_dram_part) {}
    std::size_t resident_blocks() const override { return policy().resident_blocks(); }
    std::uint64_t pages_for(std::size_t blocks) const override;
    double next_to_go(std::uint64_t now_ms) override;
    void set_pages(std::uint64_t pages) override;
    policy::BlockPolicy& policy() const {
      return is_dram ? *cache.dram_policy_ : *cache.store_policy_;
    }
    BlockCache& cache;
    const bool is_dram;
  };
  // Of a request's blocks, those that are worth a write.
  struct Writes final : policy::Admission {
    explicit Writes(BlockCache& of) : cache(of) {}
    bool admits(double chance) override;
    BlockCache& cache;
    std::uint64_t planned_bytes = 0;
    bool has_refused = false;
  };

  struct PageRead : tier::ReadOp {
    BlockCache* cache = nullptr;
    Block* block = nullptr;
    std::uint64_t begin_ns = 0;
  };
  struct PageWrite : tier::WriteOp {
    BlockCache* cache = nullptr;
    Block* block = nullptr;
    std::uint32_t index = 0;
  };
  // A slot's memory is made, or given back, off the loop.
  struct SlotJob : os::Job {
    BlockCache* cache = nullptr;
    Block* block = nullptr;  // null: given back
    std::uint32_t slot = 0;
    Status status;
  };

  BlockCache(const CacheOptions& options, os::Executor& workers, Records& records,
             os::SharedMemory memory);

  // Names and blocks.
  Id id_of(const Identity& identity, const wire::BlockName& name) const;
  std::vector<tier::Key> keys_of(const Id& id) const;
  Block* find(const Id& id);
  static bool can_be_had(const Block& block) {
    return block.in_dram == InDram::kReady || block.in_store == InStore::kStored;
  }
  // Null: it cannot be had. Takes over what an earlier daemon left.
  Block* find_to_have(const Id& id);

  void serve(const History::Entry& request);
  std::size_t stored_run(const History::Entry& request) const;
  bool is_write_limited() const {
    return options_.write_budget != nullptr && options_.write_budget->is_limited();
  }
  void set_slots(std::uint64_t slots);
  void set_stored(std::uint64_t blocks);
  void drop_unwanted(const std::vector<policy::BlockKey>& gone, bool Block::*is_wanted);
  void recall();
  void settle(policy::BlockKey key);
  void choose(Lease& lease);
  void probe(const Lease& lease);
  void resolve(Lease& lease);
  void unlease(Block& block);

  // Slots.
  std::uint32_t take_slot(bool* is_empty);
  Status make_memory(std::uint32_t slot) const;
  void free_slot(Block& block, bool has_memory);
  void punch_spare();
  std::byte* slot_at(std::uint32_t slot) const { return memory_.data() + slot * slot_bytes_; }

  bool has_free_slot() const {
    return slots_used_ < options_.slots &&
           (!spare_slots_.empty() || (!empty_slots_.empty() && has_room()));
  }
  bool has_room() const { return options_.room == nullptr || options_.room->has(pages_); }
  void has_no_memory(std::uint32_t slot);
  bool is_giving() const override {
    return punching_ > 0 || (slots_used_ + spare_slots_.size() > options_.slots && is_moving());
  }
  void room_changed() override { use_free_slots(); }
  // Something has ended that slots may be waited for of, here or in other caches.
  void slots_changed();
  // Who waits for a slot gets one, or hears that there will be none.
  void use_free_slots();
  bool free_a_slot();
  bool is_moving() const;  // it will end
  bool slot_may_come() const {
    return is_moving() || (options_.room != nullptr && options_.room->may_come(this));
  }

  // DRAM from the store. REQUIRES: a slot is free.
  void restore(Block& block);
  void pump_reads();
  void filled(Block& block);
  void wake_waiting(Block& block);

  // The store from DRAM.
  void pump_writes();
  bool may_spend() const;
  void written(Block& block);
  void release_records(Block& block);

  CacheOptions options_;
  const std::uint64_t slot_bytes_;
  const std::uint32_t pages_;  // of a block
  os::Executor& workers_;
  Records& records_;
  const os::SharedMemory memory_;
  std::unique_ptr<policy::BlockPolicy> dram_policy_;
  std::unique_ptr<policy::BlockPolicy> store_policy_;  // null: no store
  policy::ReadCost read_cost_;
  struct Model {
    policy::ComputeCost compute;
    policy::RestoreKind last = policy::RestoreKind::kRead;
  };
  std::map<Identity, Model> models_;  // whose engines said what computing takes
  ChoiceMade last_choice_;
  Part dram_part_{*this, true};
  Part store_part_{*this, false};

  std::unordered_map<policy::BlockKey, Block> blocks_;  // by id[1]
  std::vector<std::uint32_t> empty_slots_;              // have no memory
  std::vector<std::uint32_t> spare_slots_;              // have
  std::uint64_t slots_used_ = 0;
  std::uint64_t punching_ = 0;  // slots whose memory is being given back
  std::uint64_t held_ = 0;      // blocks that are ready and leased

  std::deque<Block*> to_restore_;  // wait for a slot
  std::deque<Put*> to_put_;        // likewise
  std::deque<Block*> to_read_;
  std::deque<Block*> to_write_;
  std::vector<std::unique_ptr<PageRead>> reads_;
  std::vector<std::unique_ptr<PageWrite>> writes_;
  std::vector<PageRead*> idle_reads_;
  std::vector<PageWrite*> idle_writes_;
  std::uint64_t jobs_ = 0;            // at the workers
  std::unique_ptr<History> history_;  // may be null
  std::uint64_t last_ms_ = 0;
  std::uint64_t last_ns_ = 0;  // when that was, of now_ns(); 0: in an earlier life
  // Added to what engines say: their clock may not be the one that the history was written by.
  std::uint64_t shift_ms_ = 0;
  bool is_recalled_ = false;  // and no request has come since
  bool is_recalling_ = false;
  bool stopping_ = false;
  CacheStats stats_;
};

}  // namespace kvmem::cache
