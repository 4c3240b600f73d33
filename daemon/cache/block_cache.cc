#include "cache/block_cache.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace kvmem::cache {
namespace {

std::array<std::uint64_t, 2> hash_of(std::span<const std::uint64_t> words) {
  const XXH128_hash_t hash = XXH3_128bits(words.data(), words.size_bytes());
  return {hash.high64, hash.low64};
}

// Slots for what is leased or on its way, beside those the policy counts on.
std::uint64_t counted_slots(std::uint64_t slots) {
  return slots - std::min<std::uint64_t>({slots / 2, slots / 8 + 1, 64});
}

// The fewest of which so many are counted on.
std::uint64_t slots_for(std::uint64_t counted) {
  std::uint64_t slots = counted;
  while (counted_slots(slots) < counted) slots += counted - counted_slots(slots);
  return slots;
}

}  // namespace

Result<std::unique_ptr<BlockCache>> BlockCache::create(const CacheOptions& options,
                                                       os::Executor& workers, Records& records,
                                                       std::unique_ptr<History> history) {
  if (options.block_bytes == 0 || options.block_bytes > wire::kCacheBlockBytesMax) {
    return Status(Code::kInvalid, "blocks have 1 byte to 64 MiB");
  }
  if (options.slots_max == 0 || options.slots_max >= kNoSlot) {
    return Status(Code::kInvalid, "not one block fits into cache.dram");
  }
  if (policy::make_block_policy(options.policy, 0) == nullptr) {
    return Status(Code::kInvalid, "no policy has this name");
  }
  const std::uint64_t slot_bytes = align_up(options.block_bytes, options.page_bytes);
  KV_ASSIGN_OR_RETURN(
      os::SharedMemory memory,
      os::SharedMemory::create("kvmem-blocks", align_up(options.slots_max * slot_bytes, kPageBytes),
                               options.memory_kind, true));
  std::unique_ptr<BlockCache> cache(new BlockCache(options, workers, records, std::move(memory)));
  cache->history_ = std::move(history);
  cache->recall();
  if (options.dram_shares != nullptr) {
    options.dram_shares->add(&cache->dram_part_, options.uid);
    if (cache->store_policy_ != nullptr) {
      options.store_shares->add(&cache->store_part_, options.uid);
    }
  }
  return cache;
}

BlockCache::BlockCache(const CacheOptions& options, os::Executor& workers, Records& records,
                       os::SharedMemory memory)
    : options_(options),
      slot_bytes_(align_up(options.block_bytes, options.page_bytes)),
      pages_(static_cast<std::uint32_t>(slot_bytes_ / options.page_bytes)),
      workers_(workers),
      records_(records),
      memory_(std::move(memory)) {
  options_.slots = std::min(options_.slots, options_.slots_max);
  dram_policy_ = policy::make_block_policy(options_.policy, counted_slots(options_.slots));
  if (records_.store() != nullptr) {
    store_policy_ = policy::make_block_policy(options_.policy, options_.stored_blocks);
  }
  if (options_.room != nullptr) options_.room->add(this);
  for (std::uint64_t slot = options_.slots_max; slot-- > 0;) {
    empty_slots_.push_back(static_cast<std::uint32_t>(slot));
  }
  for (unsigned i = 0; i < kReadsMax; ++i) {
    reads_.push_back(std::make_unique<PageRead>());
    PageRead* read = reads_.back().get();
    read->cache = this;
    read->done = [](tier::ReadOp* op, Status status) {
      auto* self = static_cast<PageRead*>(op);
      BlockCache& cache = *self->cache;
      Block& block = *self->block;
      cache.idle_reads_.push_back(self);
      cache.read_cost_.ends(self->begin_ns, cache.options_.now_ns());
      block.failed |= !status.ok();
      if (--block.pages_moving == 0 && block.next_page == cache.pages_) cache.filled(block);
      cache.pump_reads();
      cache.slots_changed();
    };
    idle_reads_.push_back(read);
  }
  for (unsigned i = 0; i < kWritesMax; ++i) {
    writes_.push_back(std::make_unique<PageWrite>());
    PageWrite* write = writes_.back().get();
    write->cache = this;
    write->kind = tier::RecordKind::kPersistent;
    write->done = [](tier::WriteOp* op, Status status) {
      auto* self = static_cast<PageWrite*>(op);
      BlockCache& cache = *self->cache;
      Block& block = *self->block;
      cache.idle_writes_.push_back(self);
      block.failed |= !status.ok();
      block.locators[self->index] = self->locator;
      if (--block.pages_moving == 0 && block.next_page == cache.pages_) cache.written(block);
      cache.pump_writes();
      cache.slots_changed();
    };
    idle_writes_.push_back(write);
  }
}

BlockCache::~BlockCache() {
  KV_CHECK(idle());
  if (options_.room != nullptr) {
    options_.room->remove(this);
    options_.room->give_back((options_.slots_max - empty_slots_.size()) * pages_);
  }
  if (options_.dram_shares != nullptr) {
    options_.dram_shares->remove(&dram_part_);
    if (store_policy_ != nullptr) options_.store_shares->remove(&store_part_);
  }
  for (auto& [key, block] : blocks_) {
    KV_CHECK(block.leases == 0);
    if (block.in_store != InStore::kStored) continue;
    records_.leave(keys_of(block.id), {block.generation, block.locators});
  }
}

// ------------------------------------------------------------------------------ names and blocks

BlockCache::Id BlockCache::id_of(const Identity& identity, const wire::BlockName& name) const {
  return hash_of(std::array{identity.hi, identity.lo, options_.block_bytes, name.hi, name.lo});
}

// Nobody reaches another user's records, whatever he calls his own.
std::vector<tier::Key> BlockCache::keys_of(const Id& id) const {
  std::vector<tier::Key> keys;
  for (std::uint64_t page = 0; page < pages_; ++page) {
    const Id hash = hash_of(std::array{id[0], id[1], page});
    keys.push_back({std::uint64_t{options_.uid} << 32 | hash[0] >> 32, hash[1]});
  }
  return keys;
}

BlockCache::Block* BlockCache::find(const Id& id) {
  const auto it = blocks_.find(id[1]);
  return it == blocks_.end() || it->second.id != id ? nullptr : &it->second;
}

BlockCache::Block* BlockCache::find_to_have(const Id& id) {
  if (Block* known = find(id); known != nullptr && can_be_had(*known)) return known;
  if (records_.pages_left() == 0) return nullptr;
  const auto it = blocks_.find(id[1]);
  // Its bytes are on their way, or another block has its key.
  if (it != blocks_.end() && (it->second.id != id || it->second.in_dram != InDram::kNone)) {
    return nullptr;
  }
  std::optional<Records::Found> found = records_.find(keys_of(id));
  if (!found) return nullptr;
  Block& block = blocks_[id[1]];
  block.id = id;
  block.in_store = InStore::kStored;
  block.generation = found->generation;
  block.locators = std::move(found->locators);
  ++stats_.stored;
  return &block;
}

std::size_t BlockCache::contains(const Identity& identity, std::span<const wire::BlockName> names) {
  std::size_t run = 0;
  for (; run < names.size(); ++run) {
    const Id id = id_of(identity, names[run]);
    if (const Block* block = find(id); block != nullptr && can_be_had(*block)) continue;
    if (records_.pages_left() == 0 || !records_.has(keys_of(id))) break;
  }
  return run;
}

// -------------------------------------------------------------------------------------- requests

void BlockCache::begin(Lease* lease, std::span<const wire::BlockName> names) {
  lease->slots.clear();
  lease->blocks.clear();
  lease->compute_end = 0;
  lease->restored = 0;
  lease->is_ended_ = lease->is_done_ = false;
  if (std::exchange(is_recalled_, false) && lease->time_ms < last_ms_) {
    shift_ms_ = last_ms_ - lease->time_ms;
  }
  History::Entry request;
  request.time_ms = std::max(last_ms_, lease->time_ms + shift_ms_);
  request.input_tokens = lease->input_tokens;
  request.output_tokens = lease->output_tokens;
  request.tail_is_partial = lease->tail_is_partial;
  request.path.reserve(names.size());
  for (const wire::BlockName& name : names) request.path.push_back(id_of(lease->identity, name));
  ++stats_.requests;
  stats_.asked += request.path.size();
  for (const Id& id : request.path) {
    Block* block = stopping_ ? nullptr : find_to_have(id);
    if (block == nullptr) break;
    if (block->leases++ == 0) {
      ++stats_.leased;
      held_ += block->in_dram == InDram::kReady;
    }
    lease->blocks.push_back(block);
  }
  if (!stopping_) {
    serve(request);
    if (history_ != nullptr) history_->append(request);
  }
  if (lease->may_compute) {
    lease->slots.assign(lease->blocks.size(), kNoSlot);
    choose(*lease);
  }
  lease->waits = 1;  // until all have been asked for
  for (std::size_t i = 0; i < lease->blocks.size(); ++i) {
    Block* block = lease->blocks[i];
    if (block->in_dram == InDram::kReady) {
      ++stats_.hits_dram;
      if (lease->may_compute) lease->slots[i] = block->slot;
      continue;
    }
    if (i < lease->compute_end) {
      ++stats_.left_to_compute;
      continue;
    }
    ++lease->waits;
    block->waiting.push_back(lease);
    ++stats_.hits_stored;
    ++lease->restored;
    if (block->in_dram == InDram::kNone) {
      block->in_dram = InDram::kWaiting;
      to_restore_.push_back(block);
    }
  }
  if (--lease->waits == 0) resolve(*lease);
  use_free_slots();
}

void BlockCache::computed(const Identity& identity, std::uint64_t first, std::uint64_t count,
                          std::uint64_t ns) {
  if (count == 0 || ns == 0) return;
  if (models_.size() == kModelsMax && !models_.contains(identity)) models_.erase(models_.begin());
  models_[identity].compute.took(first, count, ns);
}

// Which of the stored blocks are read.
void BlockCache::choose(Lease& lease) {
  const auto is_stored = std::make_unique<bool[]>(lease.blocks.size());
  ChoiceMade made;
  made.ns = options_.now_ns();
  made.blocks = lease.blocks.size();
  made.overlaps = lease.overlaps;
  for (std::size_t i = 0; i < lease.blocks.size(); ++i) {
    is_stored[i] = lease.blocks[i]->in_dram != InDram::kReady;
    made.stored += is_stored[i];
  }
  if (made.stored == 0) return;
  const auto model = models_.find(lease.identity);
  if (model != models_.end() && read_cost_.is_known()) {
    made.is_known = true;
    made.read = read_cost_.estimate((to_restore_.size() + to_read_.size()) * pages_, made.ns);
    made.compute = model->second.compute;
    made.choice = policy::choose_restore({is_stored.get(), made.blocks}, pages_, made.read,
                                         made.compute, lease.overlaps, model->second.last);
    model->second.last = made.choice.kind;
    lease.compute_end = made.choice.compute_end;
    if (lease.compute_end > 0 && read_cost_.is_stale(made.ns)) probe(lease);
  }
  ++stats_.choices[static_cast<std::size_t>(made.choice.kind)];
  last_choice_ = made;
}

// Nobody waits for them; they tell what reading takes now.
void BlockCache::probe(const Lease& lease) {
  unsigned left = std::max(1U, kProbePages / pages_);
  for (std::size_t i = lease.compute_end; i-- > 0 && left > 0;) {
    Block& block = *lease.blocks[i];
    if (block.in_dram != InDram::kNone) continue;
    block.in_dram = InDram::kWaiting;
    to_restore_.push_back(&block);
    --left;
  }
}

void BlockCache::resolve(Lease& lease) {
  lease.slots.clear();
  std::vector<Block*> blocks = std::exchange(lease.blocks, {});
  bool has_gap = false;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const bool is_ready = blocks[i]->in_dram == InDram::kReady;
    has_gap |= !is_ready;
    if (!lease.is_ended_ && is_ready && (lease.may_compute || !has_gap)) {
      lease.slots.resize(i + 1, kNoSlot);
      lease.slots[i] = blocks[i]->slot;
      lease.blocks.push_back(blocks[i]);
      continue;
    }
    if (!lease.is_ended_ && i >= lease.compute_end) ++stats_.hits_lost;
    unlease(*blocks[i]);
  }
  lease.restored = std::min(lease.restored, lease.blocks.size());
  lease.is_done_ = true;
  lease.done(&lease);
}

void BlockCache::end(Lease* lease) {
  lease->is_ended_ = true;
  if (!lease->is_done_) return;
  for (Block* block : lease->blocks) unlease(*block);
  lease->blocks.clear();
  use_free_slots();
}

void BlockCache::unlease(Block& block) {
  if (--block.leases > 0) return;
  --stats_.leased;
  held_ -= block.in_dram == InDram::kReady;
  settle(block.id[1]);
}

void BlockCache::serve(const History::Entry& served) {
  if (!is_recalling_) last_ns_ = options_.now_ns();
  const std::uint64_t now_ms = last_ns_ / 1'000'000;
  // Before the path's blocks are there: slots may come, and who waits for them goes on.
  const bool is_shared = options_.dram_shares != nullptr && !is_recalling_;
  if (is_shared) {
    options_.dram_shares->ask(&dram_part_, served.path.size(), now_ms);
    if (store_policy_ != nullptr) {
      options_.store_shares->ask(&store_part_, served.path.size(), now_ms);
    }
  }
  std::vector<policy::BlockKey> keys;
  keys.reserve(served.path.size());
  for (const Id& id : served.path) {
    const auto [it, is_new] = blocks_.try_emplace(id[1]);
    if (is_new) it->second.id = id;
    if (it->second.id != id) break;  // what follows cannot be had either
    keys.push_back(id[1]);
  }
  policy::BlockRequest request;
  request.time_ms = last_ms_ = std::max(last_ms_, served.time_ms);
  request.path = keys;
  request.tail_is_partial = served.tail_is_partial;
  request.input_tokens = served.input_tokens;
  request.output_tokens = served.output_tokens;
  std::vector<policy::BlockKey> changed;
  Writes writes(*this);
  const auto tell = [&](policy::BlockPolicy& policy, bool Block::*is_wanted) {
    const std::size_t before = changed.size();
    policy.serve(request, &changed);
    for (const policy::BlockKey key : keys) blocks_.at(key).*is_wanted = true;
    for (std::size_t i = before; i < changed.size(); ++i) {
      if (const auto it = blocks_.find(changed[i]); it != blocks_.end()) {
        it->second.*is_wanted = false;
      }
    }
  };
  tell(*dram_policy_, &Block::dram_wanted);
  if (store_policy_ != nullptr) {
    if (is_write_limited()) {
      options_.write_budget->pass_time(now_ms);
      options_.write_budget->set_active(options_.uid, true);
      request.admission = &writes;
      request.free_blocks = stored_run(served);
    }
    tell(*store_policy_, &Block::store_wanted);
    for (std::size_t i = writes.has_refused ? request.free_blocks : keys.size(); i < keys.size();
         ++i) {
      const Block& block = blocks_.at(keys[i]);
      stats_.write_budget_refused += !block.store_wanted && block.in_store == InStore::kNone;
    }
  }
  if (is_shared) {
    options_.dram_shares->settle(&dram_part_);
    if (store_policy_ != nullptr) options_.store_shares->settle(&store_part_);
  }
  for (const policy::BlockKey key : changed) settle(key);
  for (const policy::BlockKey key : keys) settle(key);
}

// Of the path's leading blocks, those that need no write.
std::size_t BlockCache::stored_run(const History::Entry& request) const {
  std::size_t run = 0;
  for (; run < request.path.size(); ++run) {
    const Id& id = request.path[run];
    const auto it = blocks_.find(id[1]);
    const bool is_known = it != blocks_.end() && it->second.id == id;
    if (is_known && it->second.in_store != InStore::kNone) continue;
    if (!records_.has(keys_of(id))) break;
  }
  return run;
}

// What an earlier daemon did not write is not there to be written.
bool BlockCache::Writes::admits(double chance) {
  const bool is_worth_it =
      !cache.is_recalling_ && cache.options_.write_budget->admits(cache.options_.uid, chance,
                                                                  cache.slot_bytes_, planned_bytes);
  planned_bytes += is_worth_it ? cache.slot_bytes_ : 0;
  has_refused |= !is_worth_it && !cache.is_recalling_;
  return is_worth_it;
}

// --------------------------------------------------------------------------- what others do not
// have

std::uint64_t BlockCache::Part::pages_for(std::size_t blocks) const {
  return (is_dram ? slots_for(blocks) : blocks) * cache.pages_;
}

// The policy's clock is that of the requests.
double BlockCache::Part::next_to_go(std::uint64_t now_ms) {
  const std::uint64_t then_ms = cache.last_ns_ / 1'000'000;
  const std::uint64_t passed_ms = cache.last_ns_ == 0 ? 0 : now_ms - std::min(now_ms, then_ms);
  return policy().next_to_go(cache.last_ms_ + passed_ms);
}

void BlockCache::Part::set_pages(std::uint64_t pages) {
  if (is_dram) {
    cache.set_slots(pages / cache.pages_);
  } else {
    cache.set_stored(pages / cache.pages_);
  }
}

// The policies come to know what those of the last daemon knew, and the store's blocks are looked
// up that they still want.
void BlockCache::recall() {
  if (history_ == nullptr) return;
  is_recalling_ = true;
  history_->read([this](const History::Entry& request) { serve(request); });
  is_recalling_ = false;
  std::vector<Id> wanted;
  for (const auto& [key, block] : blocks_) {
    if (block.store_wanted) wanted.push_back(block.id);
  }
  for (const Id& id : wanted) (void)find_to_have(id);
  is_recalled_ = true;
}

void BlockCache::tick() {
  if (history_ != nullptr) history_->flush();
}

void BlockCache::forget() {
  if (history_ != nullptr) history_->remove();
}

void BlockCache::put(Put* put) {
  const Id id = id_of(put->identity, put->name);
  Block* block = find(id);
  const bool is_there = block != nullptr && (block->in_dram != InDram::kNone || can_be_had(*block));
  if (is_there || (!stopping_ && find_to_have(id) != nullptr)) {
    ++stats_.puts_known;
    put->done(put, {});
    return;
  }
  const auto is_wanted = [&] {
    block = find(id);
    return block != nullptr && !stopping_ && (block->dram_wanted || block->store_wanted);
  };
  if (is_wanted() && !has_free_slot()) {
    if (slot_may_come()) {
      to_put_.push_back(put);
      return;
    }
    (void)free_a_slot();  // it may be the one that goes
  }
  bool is_empty = false;
  const std::uint32_t slot = is_wanted() ? take_slot(&is_empty) : kNoSlot;
  if (slot == kNoSlot) {
    ++stats_.puts_refused;
    put->done(put, is_wanted() ? Status(Code::kNoMemory, "no slot is free in DRAM")
                               : Status(Code::kNoSpace, "the block is not kept"));
    return;
  }
  block->slot = slot;
  block->in_dram = InDram::kFilling;
  put->cache = this;
  put->block = block;
  put->status = {};
  os::Job& job = *put;
  job.work = [](os::Job* self) {
    auto* p = static_cast<Put*>(self);
    const BlockCache& cache = *p->cache;
    const std::uint64_t offset = p->block->slot * cache.slot_bytes_;
    p->status = cache.make_memory(p->block->slot);
    if (!p->status.ok()) return;
    std::byte* to = cache.memory_.data() + offset;
    std::memcpy(to, p->bytes, cache.options_.block_bytes);
    std::memset(to + cache.options_.block_bytes, 0, cache.slot_bytes_ - cache.options_.block_bytes);
  };
  job.done = [](os::Job* self) {
    auto* p = static_cast<Put*>(self);
    BlockCache& cache = *p->cache;
    Block& filled = *p->block;
    --cache.jobs_;
    if (p->status.ok()) {
      filled.in_dram = InDram::kReady;
      ++cache.stats_.ready;
      ++cache.stats_.puts;
    } else {
      cache.free_slot(filled, false);
      ++cache.stats_.puts_refused;
    }
    cache.settle(filled.id[1]);
    cache.slots_changed();
    p->done(p, p->status);
  };
  ++jobs_;
  workers_.execute(&job);
}

// Carries out what the policies say, as far as it can be done now. The block may be gone then.
void BlockCache::settle(policy::BlockKey key) {
  const auto it = blocks_.find(key);
  if (it == blocks_.end()) return;
  Block& block = it->second;
  // Whatever moves comes here when it is done.
  if (block.in_dram == InDram::kWaiting || block.in_dram == InDram::kFilling ||
      block.in_store == InStore::kWriting) {
    return;
  }
  const bool can_do_without = block.leases == 0 || block.in_dram == InDram::kReady;
  if (block.in_store == InStore::kStored && !block.store_wanted && can_do_without) {
    release_records(block);
    ++stats_.dropped_stored;
  }
  if (block.in_dram == InDram::kReady && block.in_store == InStore::kNone && block.store_wanted &&
      (options_.write_through || !block.dram_wanted) && !stopping_) {
    block.in_store = InStore::kWriting;
    block.next_page = 0;
    block.failed = false;
    block.locators.assign(pages_, tier::kNoLocator);
    to_write_.push_back(&block);
    pump_writes();
    return;
  }
  if (block.in_dram == InDram::kReady && block.leases == 0 && !block.dram_wanted) {
    ++stats_.dropped_dram;
    free_slot(block, true);
  }
  if (!can_be_had(block) && block.leases == 0 && !block.dram_wanted && !block.store_wanted) {
    blocks_.erase(it);
  }
}

void BlockCache::set_slots(std::uint64_t slots) {
  options_.slots = std::min(slots, options_.slots_max);
  std::vector<policy::BlockKey> gone;
  dram_policy_->set_capacity(counted_slots(options_.slots), &gone);
  drop_unwanted(gone, &Block::dram_wanted);
  punch_spare();
  use_free_slots();
}

void BlockCache::set_stored(std::uint64_t blocks) {
  options_.stored_blocks = blocks;
  if (store_policy_ == nullptr) return;
  std::vector<policy::BlockKey> gone;
  store_policy_->set_capacity(blocks, &gone);
  drop_unwanted(gone, &Block::store_wanted);
}

void BlockCache::drop_unwanted(const std::vector<policy::BlockKey>& gone, bool Block::*is_wanted) {
  for (const policy::BlockKey key : gone) {
    if (const auto it = blocks_.find(key); it != blocks_.end()) it->second.*is_wanted = false;
  }
  for (const policy::BlockKey key : gone) settle(key);
}

void BlockCache::stop() {
  stopping_ = true;
  pump_writes();
  use_free_slots();
  if (history_ != nullptr) history_->close();
}

bool BlockCache::idle() const {
  return !is_moving() && to_restore_.empty() && to_put_.empty() &&
         (history_ == nullptr || history_->idle());
}

// ----------------------------------------------------------------------------------------- slots

std::uint32_t BlockCache::take_slot(bool* is_empty) {
  if (slots_used_ >= options_.slots) return kNoSlot;
  *is_empty = spare_slots_.empty();
  std::vector<std::uint32_t>& from = *is_empty ? empty_slots_ : spare_slots_;
  if (from.empty() || (*is_empty && !has_room())) return kNoSlot;  // others are just being emptied
  if (*is_empty && options_.room != nullptr) options_.room->take(pages_);
  const std::uint32_t slot = from.back();
  from.pop_back();
  ++slots_used_;
  return slot;
}

// All of it or, where that fails, nothing. Any thread.
Status BlockCache::make_memory(std::uint32_t slot) const {
  const std::uint64_t offset = slot * slot_bytes_;
  const Status status = memory_.populate(offset, slot_bytes_);
  if (!status.ok()) (void)memory_.punch(offset, slot_bytes_);
  return status;
}

void BlockCache::free_slot(Block& block, bool has_memory) {
  stats_.ready -= block.in_dram == InDram::kReady;
  block.in_dram = InDram::kNone;
  const std::uint32_t slot = std::exchange(block.slot, kNoSlot);
  if (has_memory) {
    spare_slots_.push_back(slot);
  } else {
    has_no_memory(slot);
  }
  --slots_used_;
  punch_spare();
}

void BlockCache::has_no_memory(std::uint32_t slot) {
  empty_slots_.push_back(slot);
  if (options_.room != nullptr) options_.room->give_back(pages_);
}

void BlockCache::slots_changed() {
  use_free_slots();
  if (options_.room != nullptr) options_.room->changed(this);
}

bool BlockCache::is_moving() const {
  return jobs_ > 0 || !to_read_.empty() || !to_write_.empty() ||
         idle_reads_.size() < reads_.size() || idle_writes_.size() < writes_.size();
}

// What DRAM holds for later gives way to what is wanted now: the policy says in which order.
bool BlockCache::free_a_slot() {
  std::vector<policy::BlockKey> gone;
  while (!has_free_slot() && stats_.ready > held_ && dram_policy_->resident_blocks() > 0) {
    gone.clear();
    dram_policy_->set_capacity(dram_policy_->resident_blocks() - 1, &gone);
    drop_unwanted(gone, &Block::dram_wanted);
    dram_policy_->set_capacity(counted_slots(options_.slots), &gone);
  }
  return has_free_slot();
}

void BlockCache::use_free_slots() {
  while (!to_restore_.empty() || !to_put_.empty()) {
    if (!has_free_slot() && slot_may_come() && !stopping_) return;
    const bool is_free = !stopping_ && free_a_slot();
    if (!to_restore_.empty()) {
      Block& block = *to_restore_.front();
      to_restore_.pop_front();
      block.in_dram = InDram::kNone;
      if (is_free) {
        restore(block);
      } else {
        wake_waiting(block);
      }
    } else {
      Put* next = to_put_.front();
      to_put_.pop_front();
      put(next);
    }
  }
}

void BlockCache::punch_spare() {
  while (!spare_slots_.empty() && slots_used_ + spare_slots_.size() > options_.slots) {
    auto* job = new SlotJob;
    job->cache = this;
    job->slot = spare_slots_.back();
    spare_slots_.pop_back();
    job->work = [](os::Job* self) {
      auto* punched = static_cast<SlotJob*>(self);
      const BlockCache& cache = *punched->cache;
      (void)cache.memory_.punch(punched->slot * cache.slot_bytes_, cache.slot_bytes_);
    };
    job->done = [](os::Job* self) {
      const std::unique_ptr<SlotJob> punched(static_cast<SlotJob*>(self));
      punched->cache->has_no_memory(punched->slot);
      --punched->cache->jobs_;
      --punched->cache->punching_;
      punched->cache->slots_changed();
    };
    ++jobs_;
    ++punching_;
    workers_.execute(job);
  }
}

// --------------------------------------------------------------------------- DRAM from the store

void BlockCache::restore(Block& block) {
  KV_CHECK(block.in_dram == InDram::kNone && block.in_store == InStore::kStored);
  bool is_empty = false;
  const std::uint32_t slot = take_slot(&is_empty);
  KV_CHECK(slot != kNoSlot);
  block.slot = slot;
  block.in_dram = InDram::kFilling;
  block.next_page = 0;
  block.failed = false;
  if (!is_empty) {
    to_read_.push_back(&block);
    pump_reads();
    return;
  }
  auto* job = new SlotJob;
  job->cache = this;
  job->block = &block;
  job->slot = slot;
  job->work = [](os::Job* self) {
    auto* made = static_cast<SlotJob*>(self);
    const BlockCache& cache = *made->cache;
    made->status = cache.make_memory(made->slot);
  };
  job->done = [](os::Job* self) {
    const std::unique_ptr<SlotJob> made(static_cast<SlotJob*>(self));
    BlockCache& cache = *made->cache;
    --cache.jobs_;
    if (made->status.ok()) {
      cache.to_read_.push_back(made->block);
      cache.pump_reads();
    } else {
      cache.free_slot(*made->block, false);
      cache.wake_waiting(*made->block);
    }
    cache.slots_changed();
  };
  ++jobs_;
  workers_.execute(job);
}

void BlockCache::pump_reads() {
  while (!to_read_.empty()) {
    Block& block = *to_read_.front();
    const std::vector<tier::Key> keys = keys_of(block.id);
    while (block.next_page < pages_ && !block.failed && !idle_reads_.empty()) {
      PageRead* read = idle_reads_.back();
      read->block = &block;
      read->key = keys[block.next_page];
      read->generation = block.generation;
      read->locator = block.locators[block.next_page];
      read->page = slot_at(block.slot) + block.next_page * options_.page_bytes;
      block.failed = !records_.store()->read(read).ok();
      if (block.failed) break;
      read->begin_ns = options_.now_ns();
      read_cost_.begins(read->begin_ns);
      idle_reads_.pop_back();
      ++block.pages_moving;
      ++block.next_page;
    }
    if (block.next_page < pages_ && !block.failed) return;  // all reads are under way
    to_read_.pop_front();
    block.next_page = pages_;
    if (block.pages_moving == 0) filled(block);
  }
}

void BlockCache::filled(Block& block) {
  if (block.failed) {
    free_slot(block, true);
    release_records(block);  // as good as lost
    ++stats_.read_errors;
  } else {
    block.in_dram = InDram::kReady;
    ++stats_.ready;
    held_ += block.leases > 0;
    ++stats_.read;
  }
  wake_waiting(block);
}

// The block may be gone then.
void BlockCache::wake_waiting(Block& block) {
  const policy::BlockKey key = block.id[1];
  const std::vector<Lease*> waiting = std::move(block.waiting);
  block.waiting.clear();
  for (Lease* lease : waiting) {
    if (--lease->waits == 0) resolve(*lease);
  }
  settle(key);
}

// --------------------------------------------------------------------------- the store from DRAM

void BlockCache::pump_writes() {
  while (!to_write_.empty() && !idle_writes_.empty()) {
    Block& block = *to_write_.front();
    if (block.next_page == 0) {
      const bool is_wanted = block.store_wanted && !stopping_;
      bool has_room = is_wanted && records_.reserve(pages_);
      // What is being written may be unwanted by now and make room.
      if (is_wanted && !has_room && idle_writes_.size() < writes_.size()) return;
      if (has_room && !may_spend()) {
        records_.give_back(pages_);
        has_room = false;
        ++stats_.write_budget_refused;
      }
      if (!has_room) {
        to_write_.pop_front();
        block.in_store = InStore::kNone;
        block.store_wanted = false;
        block.locators.clear();
        settle(block.id[1]);
        continue;
      }
      block.generation = records_.next_generation();
    }
    const std::vector<tier::Key> keys = keys_of(block.id);
    while (block.next_page < pages_ && !block.failed && !idle_writes_.empty()) {
      PageWrite* write = idle_writes_.back();
      write->block = &block;
      write->index = block.next_page;
      write->key = keys[block.next_page];
      write->generation = block.generation;
      write->page = slot_at(block.slot) + block.next_page * options_.page_bytes;
      write->locator = tier::kNoLocator;
      block.failed = !records_.store()->write(write).ok();
      if (block.failed) break;
      idle_writes_.pop_back();
      ++block.pages_moving;
      ++block.next_page;
    }
    if (block.next_page < pages_ && !block.failed) return;
    to_write_.pop_front();
    block.next_page = pages_;
    if (block.pages_moving == 0) written(block);
  }
}

bool BlockCache::may_spend() const {
  if (!is_write_limited()) return true;
  options_.write_budget->pass_time(options_.now_ns() / 1'000'000);
  return options_.write_budget->spend(options_.uid, slot_bytes_);
}

void BlockCache::written(Block& block) {
  block.in_store = InStore::kStored;
  ++stats_.stored;
  if (block.failed) {
    release_records(block);
    block.store_wanted = false;
    ++stats_.write_errors;
  } else {
    ++stats_.written;
  }
  settle(block.id[1]);
}

void BlockCache::release_records(Block& block) {
  const std::vector<tier::Key> keys = keys_of(block.id);
  for (std::uint32_t page = 0; page < pages_; ++page) {
    if (block.locators[page] == tier::kNoLocator) continue;
    (void)records_.store()->release(keys[page], block.generation, block.locators[page]);
  }
  records_.give_back(pages_);
  block.locators.clear();
  block.in_store = InStore::kNone;
  --stats_.stored;
}

// -------------------------------------------------------------------------------------- for tests

CacheStats BlockCache::stats() const {
  CacheStats stats = stats_;
  stats.known = blocks_.size();
  stats.slots_used = slots_used_;
  return stats;
}

void BlockCache::validate() const {
  dram_policy_->validate();
  if (store_policy_ != nullptr) store_policy_->validate();
  std::vector<bool> seen(options_.slots_max);
  CacheStats counted;
  std::uint64_t held = 0;
  for (const auto& [key, block] : blocks_) {
    KV_CHECK(block.id[1] == key);
    const bool has_slot = block.in_dram == InDram::kFilling || block.in_dram == InDram::kReady;
    KV_CHECK(has_slot == (block.slot != kNoSlot));
    KV_CHECK((block.in_store == InStore::kNone) == block.locators.empty());
    KV_CHECK(block.in_store != InStore::kWriting || block.in_dram == InDram::kReady);
    KV_CHECK(block.waiting.empty() || block.in_dram == InDram::kWaiting ||
             block.in_dram == InDram::kFilling);
    counted.ready += block.in_dram == InDram::kReady;
    counted.leased += block.leases > 0;
    held += block.in_dram == InDram::kReady && block.leases > 0;
    counted.stored += block.in_store == InStore::kStored;
    counted.slots_used += block.slot != kNoSlot;
    if (block.slot == kNoSlot) continue;
    KV_CHECK(!seen[block.slot]);
    seen[block.slot] = true;
  }
  for (const auto* slots : {&empty_slots_, &spare_slots_}) {
    for (const std::uint32_t slot : *slots) {
      KV_CHECK(!seen[slot]);
      seen[slot] = true;
    }
  }
  KV_CHECK(counted.ready == stats_.ready && counted.leased == stats_.leased);
  KV_CHECK(held == held_);
  KV_CHECK(counted.stored == stats_.stored && counted.slots_used == slots_used_);
}

}  // namespace kvmem::cache
