#include "policy/block_kvmem.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <limits>
#include <optional>
#include <unordered_map>

#include "base/check.h"
#include "policy/block_return.h"

namespace kvmem::policy {
namespace {

constexpr std::uint32_t kNone = UINT32_MAX;
constexpr double kNotQueued = std::numeric_limits<double>::quiet_NaN();

enum Rule : unsigned { kReturns, kCounts, kRecency };
constexpr unsigned kRules = 3;
// The real one, then a shadow for each rule.
constexpr unsigned kSets = 1 + kRules;
constexpr std::uint8_t kAllSets = (1U << kSets) - 1;
constexpr std::uint8_t kShadows = kAllSets & ~1U;

// What follows a block that more than these have followed is the next conversation with the same
// prompt, not this conversation's next turn.
constexpr std::uint32_t kFollowersOfATurn = 3;
// Another rule takes over when its lead is that far from chance.
constexpr double kSureDeviations = 1;
// Pieces of a set whose value is looked at again, with each request.
constexpr unsigned kRefreshed = 24;
// Beyond that many times, how often a block was asked for tells no more.
constexpr std::uint32_t kCountedMax = 6;

// Resident in some set, or of the request that is served.
struct Block {
  BlockKey key = 0;
  std::uint32_t parent = kNone;
  std::uint32_t piece = kNone;
  std::uint32_t refs = 0;
  std::uint32_t followers = 0;                  // blocks ever seen right behind it
  std::array<std::uint32_t, kSets> children{};  // those of them that are resident
  std::uint8_t resident = 0;                    // a bit for each set
};

// What is remembered of a block that no set holds.
struct Ghost {
  BlockKey key;
  std::uint32_t refs;
  std::uint32_t followers;
};

// What is looked at most comes first, and fits a cache line.
struct alignas(64) Piece {
  std::uint32_t generation = 0;  // counted up when it is gone
  bool is_old = false;           // its ghosts are forgotten
  ReturnModel::Run run;
  std::uint64_t created_ms = 0;
  std::array<double, kSets> queued{};  // its place in the set's queue
  double returns = 0;                  // its value by that rule
  std::uint64_t returns_at = 0;        // the request that found it

  std::uint32_t refs = 0;
  std::uint32_t length = 0;  // when it was made
  std::uint32_t turn = 0;    // of its conversation
  // Front to back: blocks with another owner by now, then, from `begin`, its blocks, then its
  // ghosts, the first one at the back.
  std::uint32_t begin = 0;
  std::array<std::uint32_t, kSets> end{};  // [begin, end) is resident
  std::vector<std::uint32_t> blocks;
  std::vector<Ghost> ghosts;
  std::optional<BlockKey> before;  // what the first ghost follows, where no block is left

  bool has_blocks() const { return begin < blocks.size(); }
  bool is_all_taken() const { return !has_blocks() && ghosts.empty(); }
};

class Kvmem final : public BlockPolicy {
 public:
  explicit Kvmem(std::size_t capacity) : capacity_(capacity) {}

  std::size_t resident_run(std::span<const BlockKey> path) const override {
    std::size_t run = 0;
    for (; run < path.size(); ++run) {
      const auto it = ids_.find(path[run]);
      if (it == ids_.end() || (blocks_[it->second].resident & 1) == 0) break;
    }
    return run;
  }
  std::size_t resident_blocks() const override { return sets_[0].size; }
  std::size_t known_blocks() const override { return ids_.size() + ghosts_; }
  double next_to_go(std::uint64_t time_ms) override;

  void serve(const BlockRequest& request, std::vector<BlockKey>* gone) override;
  void set_capacity(std::size_t blocks, std::vector<BlockKey>* gone) override {
    capacity_ = blocks;
    for (unsigned set = 0; set < kSets; ++set) shrink(set, gone);
    forget_some();
  }
  void validate() const override;

 private:
  struct PieceRef {
    std::uint32_t piece;
    std::uint32_t generation;
  };
  struct Queued {
    double value;
    PieceRef ref;
    bool operator>(const Queued& other) const { return value > other.value; }
  };
  struct Set {
    std::size_t size = 0;  // blocks
    // Pieces that can lose a block, a heap with the least valuable in front. An entry is void when
    // it is not the value its piece is `queued` by.
    std::vector<Queued> queue;
    std::size_t queued = 0;  // entries that are not void
  };
  // How many more prefix hits one had than the other of late, request by request.
  struct Lead {
    double sum = 0;
    double squares = 0;
    // If they were as good as each other, it would be beyond 1 one time in six.
    double deviations() const { return squares > 0 ? sum / std::sqrt(squares) : 0; }
  };
  struct Born {
    PieceRef ref;
    std::uint64_t created_ms;
  };

  Rule rule_of(unsigned set) const { return set == 0 ? chosen_ : static_cast<Rule>(set - 1); }
  bool is_valid(const PieceRef& ref) const {
    return pieces_[ref.piece].generation == ref.generation;
  }
  // Its last block is in the set, and nothing in the set follows it.
  bool can_lose(unsigned set, const Piece& piece) const {
    return piece.end[set] > piece.begin &&
           blocks_[piece.blocks[piece.end[set] - 1]].children[set] == 0;
  }

  // The request's path, before it is served.
  void find_path(const BlockRequest& request);
  std::uint32_t new_block(BlockKey key, std::uint32_t parent);
  std::uint32_t ghost_owner(BlockKey key, std::uint32_t parent) const;
  std::uint32_t revive(std::uint32_t piece, std::uint32_t parent);
  Piece begin_request(const BlockRequest& request, std::size_t matched) const;
  std::uint8_t kind_of(const BlockRequest& request, std::size_t i) const;
  std::size_t admitted(const BlockRequest& request, Piece like) const;

  // Who owns what.
  void take(std::uint32_t block);
  void own(const BlockRequest& request, Piece like, std::size_t admitted);
  std::uint32_t new_piece(const Piece& like);
  void bury(std::uint32_t piece);

  // What is gone, and remembered.
  void make_ghost(std::uint32_t piece);
  void begin_with_ghost(std::uint32_t piece, std::optional<BlockKey> before);
  void forget_ghosts(std::uint32_t piece);
  void forget_oldest();
  void forget_some();

  // What is resident.
  double value_of(Piece& piece, Rule rule);
  bool is_current(unsigned set, const Queued& entry) const {
    return is_valid(entry.ref) && pieces_[entry.ref.piece].queued[set] == entry.value;
  }
  void pass_time(std::uint64_t now_ms);
  void choose_rule();
  void admit(std::uint32_t block, std::uint8_t sets);
  void put(unsigned set, std::uint32_t piece);
  void offer(unsigned set, std::uint32_t block);
  void renew(std::uint32_t piece);
  void refresh();
  void requeue(unsigned set);
  std::uint32_t pop_least(unsigned set);
  void shrink(unsigned set, std::vector<BlockKey>* gone);
  std::uint32_t evict(unsigned set, std::uint32_t piece, std::vector<BlockKey>* gone);

  std::size_t ghosts_max() const { return 16 * capacity_ + 262144; }
  // References until a lead counts half.
  double score_blocks() const { return 4 * static_cast<double>(capacity_) + 65536; }

  std::size_t capacity_;
  ReturnModel model_;

  std::unordered_map<BlockKey, std::uint32_t> ids_;  // of blocks
  std::vector<Block> blocks_;
  std::vector<std::uint32_t> free_blocks_;
  std::vector<Piece> pieces_;
  std::vector<std::uint32_t> free_pieces_;
  std::unordered_map<BlockKey, std::uint32_t>
      heads_;  // pieces without blocks, by their first ghost
  std::size_t ghosts_ = 0;

  // Pieces in the order of their birth. They are counted from the first one ever: `born_before_`
  // are no longer here.
  std::deque<Born> born_;
  std::uint64_t born_before_ = 0;
  std::array<std::uint64_t, ReturnModel::kBins - 1> next_to_leave_{};  // that age bin
  std::uint64_t next_to_forget_ = 0;

  std::array<Set, kSets> sets_;
  std::array<std::array<Lead, kRules>, kRules> leads_;  // of the first over the second
  Rule chosen_ = kCounts;                               // which needs no learning
  std::size_t next_refreshed_ = 0;
  double gap_ms_sum_ = 0;  // between two references of a block
  double gaps_ = 0;

  // Of the request that is served.
  std::uint64_t requests_ = 0;
  std::uint64_t now_ms_ = 0;
  std::vector<std::uint32_t> path_;
};

// ------------------------------------------------------------------------------------- the path

std::uint32_t Kvmem::new_block(BlockKey key, std::uint32_t parent) {
  std::uint32_t id = 0;
  if (free_blocks_.empty()) {
    id = static_cast<std::uint32_t>(blocks_.size());
    blocks_.emplace_back();
  } else {
    id = free_blocks_.back();
    free_blocks_.pop_back();
    blocks_[id] = {};
  }
  blocks_[id].key = key;
  blocks_[id].parent = parent;
  ids_[key] = id;
  return id;
}

// The piece whose first ghost that is; a block never seen follows nothing that is remembered.
std::uint32_t Kvmem::ghost_owner(BlockKey key, std::uint32_t parent) const {
  if (parent != kNone) {
    const std::uint32_t owner = blocks_[parent].piece;
    if (owner == kNone) return kNone;
    const Piece& piece = pieces_[owner];
    if (piece.blocks.back() == parent && !piece.ghosts.empty() && piece.ghosts.back().key == key) {
      return owner;
    }
  }
  const auto it = heads_.find(key);
  if (it == heads_.end()) return kNone;
  const std::optional<BlockKey>& before = pieces_[it->second].before;
  const bool follows = parent == kNone ? !before : before == blocks_[parent].key;
  return follows ? it->second : kNone;
}

// Its first ghost is a block again.
std::uint32_t Kvmem::revive(std::uint32_t piece, std::uint32_t parent) {
  Piece& p = pieces_[piece];
  const Ghost ghost = p.ghosts.back();
  if (!p.has_blocks()) heads_.erase(ghost.key);
  p.ghosts.pop_back();
  --ghosts_;
  const std::uint32_t id = new_block(ghost.key, parent);
  blocks_[id].piece = piece;
  blocks_[id].refs = ghost.refs;
  blocks_[id].followers = ghost.followers;
  p.blocks.push_back(id);
  return id;
}

// The path's blocks, as far as they are what they were: a key that was seen behind another one is
// not followed.
void Kvmem::find_path(const BlockRequest& request) {
  path_.clear();
  std::uint32_t parent = kNone;
  for (const BlockKey key : request.path) {
    std::uint32_t block = kNone;
    if (const auto it = ids_.find(key); it != ids_.end()) {
      block = it->second;
      if (blocks_[block].parent != parent) return;
    } else if (const std::uint32_t owner = ghost_owner(key, parent); owner != kNone) {
      block = revive(owner, parent);
    } else {
      block = new_block(key, parent);
      if (parent != kNone) ++blocks_[parent].followers;
    }
    path_.push_back(parent = block);
  }
}

Piece Kvmem::begin_request(const BlockRequest& request, std::size_t matched) const {
  Piece like;
  like.created_ms = now_ms_;
  like.turn = 1;
  std::uint64_t gap_s = 0;
  std::uint8_t followers = 0;
  if (matched > 0) {
    const Block& last = blocks_[path_[matched - 1]];
    const Piece& before = pieces_[last.piece];
    if (matched > 1 && last.followers <= kFollowersOfATurn) {
      like.turn = before.turn + 1;
      gap_s = 1 + (now_ms_ - before.created_ms) / 1000;
    }
    followers = std::min<std::uint8_t>(6, ReturnModel::bucket_of(last.followers));
  }
  like.run.buckets = {ReturnModel::bucket_of(like.turn),
                      ReturnModel::bucket_of(gap_s),
                      ReturnModel::bucket_of(request.input_tokens),
                      ReturnModel::bucket_of(request.output_tokens),
                      ReturnModel::bucket_of(path_.size() - matched),
                      ReturnModel::bucket_of(matched),
                      followers};
  return like;
}

// Of the path's block, when it is the request's.
std::uint8_t Kvmem::kind_of(const BlockRequest& request, std::size_t i) const {
  const std::uint32_t refs = blocks_[path_[i]].refs + 1;
  const bool is_tail = request.tail_is_partial && i + 1 == request.path.size() && refs == 1;
  return is_tail ? ReturnModel::kTail : ReturnModel::kind_of(refs);
}

// How much of the path may be resident.
std::size_t Kvmem::admitted(const BlockRequest& request, Piece like) const {
  if (request.admission == nullptr) return path_.size();
  std::optional<double> chance;
  for (std::size_t i = request.free_blocks; i < path_.size(); ++i) {
    if ((blocks_[path_[i]].resident & 1) != 0) continue;
    const std::uint8_t kind = kind_of(request, i);
    if (!chance || kind != like.run.kind) {
      like.run.kind = kind;
      chance = model_.chance_of_return(like.run, 0);
    }
    if (!request.admission->admits(*chance)) return i;
  }
  return path_.size();
}

// -------------------------------------------------------------------------------- who owns what

// The block has been asked for again: its owner loses it.
void Kvmem::take(std::uint32_t block) {
  const std::uint32_t owner = blocks_[block].piece;
  Piece& piece = pieces_[owner];
  KV_CHECK(piece.has_blocks() && piece.blocks[piece.begin] == block);
  ++piece.begin;
  gap_ms_sum_ += static_cast<double>(now_ms_ - piece.created_ms);
  gaps_ += 1;
  if (piece.is_all_taken()) {
    model_.observe(piece.run, piece.length, ReturnModel::bin_of(now_ms_ - piece.created_ms), true);
    bury(owner);
  } else if (!piece.has_blocks()) {
    begin_with_ghost(owner, blocks_[block].key);
  }
}

std::uint32_t Kvmem::new_piece(const Piece& like) {
  std::uint32_t id = 0;
  if (free_pieces_.empty()) {
    id = static_cast<std::uint32_t>(pieces_.size());
    pieces_.emplace_back();
  } else {
    id = free_pieces_.back();
    free_pieces_.pop_back();
  }
  const std::uint32_t generation = pieces_[id].generation;
  pieces_[id] = like;
  pieces_[id].generation = generation;
  pieces_[id].queued.fill(kNotQueued);
  born_.push_back({{id, generation}, like.created_ms});
  return id;
}

void Kvmem::bury(std::uint32_t piece) {
  const std::uint32_t generation = pieces_[piece].generation + 1;
  for (unsigned set = 0; set < kSets; ++set) {
    if (!std::isnan(pieces_[piece].queued[set])) --sets_[set].queued;
  }
  pieces_[piece] = {};
  pieces_[piece].generation = generation;
  pieces_[piece].queued.fill(kNotQueued);
  free_pieces_.push_back(piece);
}

// The path's blocks are the request's from now on, in pieces of one kind each. Those beyond
// `admitted` are in the shadows only: to be learned from.
void Kvmem::own(const BlockRequest& request, Piece like, std::size_t admitted) {
  std::uint32_t piece = kNone;
  for (std::size_t i = 0; i < path_.size(); ++i) {
    Block& block = blocks_[path_[i]];
    const std::uint8_t kind = kind_of(request, i);
    ++block.refs;
    if (piece == kNone || kind != like.run.kind) {
      like.run.kind = kind;
      piece = new_piece(like);
    }
    Piece& p = pieces_[piece];
    p.refs = block.refs;
    p.blocks.push_back(path_[i]);
    ++p.length;
    for (unsigned set = i < admitted ? 0 : 1; set < kSets; ++set) p.end[set] = p.length;
    block.piece = piece;
    admit(path_[i], i < admitted ? kAllSets : kShadows);
  }
}

// ---------------------------------------------------------------------- what is gone, and
// remembered

// The piece's last block is in no set any more.
void Kvmem::make_ghost(std::uint32_t piece) {
  Piece& p = pieces_[piece];
  const std::uint32_t id = p.blocks.back();
  const Block& block = blocks_[id];
  KV_CHECK(block.resident == 0);
  p.blocks.pop_back();
  ids_.erase(block.key);
  free_blocks_.push_back(id);
  if (!p.is_old) {
    p.ghosts.push_back({block.key, block.refs, block.followers});
    ++ghosts_;
    if (p.has_blocks()) return;
    begin_with_ghost(
        piece, block.parent == kNone ? std::nullopt : std::optional(blocks_[block.parent].key));
  } else if (p.is_all_taken()) {
    bury(piece);
  }
}

void Kvmem::begin_with_ghost(std::uint32_t piece, std::optional<BlockKey> before) {
  const BlockKey key = pieces_[piece].ghosts.back().key;
  // Of a path that has been given up: its block came anew behind another one.
  if (const auto it = heads_.find(key); it != heads_.end()) forget_ghosts(it->second);
  heads_[key] = piece;
  pieces_[piece].before = before;
}

void Kvmem::forget_ghosts(std::uint32_t piece) {
  Piece& p = pieces_[piece];
  if (!p.ghosts.empty() && !p.has_blocks()) heads_.erase(p.ghosts.back().key);
  ghosts_ -= p.ghosts.size();
  p.ghosts = {};
  if (p.is_all_taken()) bury(piece);
}

void Kvmem::forget_oldest() {
  next_to_forget_ = std::max(next_to_forget_, born_before_);
  const PieceRef oldest = born_[next_to_forget_++ - born_before_].ref;
  if (!is_valid(oldest)) return;
  pieces_[oldest.piece].is_old = true;
  forget_ghosts(oldest.piece);
}

void Kvmem::forget_some() {
  while (ghosts_ > ghosts_max()) forget_oldest();
  while (!born_.empty() && (born_.size() > ghosts_max() ||
                            std::min(next_to_leave_.back(), next_to_forget_) > born_before_)) {
    if (next_to_forget_ <= born_before_) forget_oldest();
    born_.pop_front();
    ++born_before_;
  }
}

// ----------------------------------------------------------------------------- what is resident

double Kvmem::value_of(Piece& piece, Rule rule) {
  const auto created_ms = static_cast<double>(piece.created_ms);
  switch (rule) {
    case kReturns:
      if (piece.returns_at != requests_) {
        piece.returns = model_.index(piece.run, now_ms_ - piece.created_ms);
        piece.returns_at = requests_;
      }
      return piece.returns;
    case kCounts: {
      if (piece.run.kind == ReturnModel::kTail) return created_ms - 1e18;
      const double gap_ms = gaps_ > 0 ? gap_ms_sum_ / gaps_ : 0;
      return created_ms + gap_ms * std::min(piece.refs - 1, kCountedMax);
    }
    case kRecency:
      break;
  }
  return created_ms;
}

// What has outlived a bin has not returned in it.
void Kvmem::pass_time(std::uint64_t now_ms) {
  now_ms_ = std::max(now_ms_, now_ms);
  for (unsigned bin = 0; bin + 1 < ReturnModel::kBins; ++bin) {
    std::uint64_t& next = next_to_leave_[bin];
    next = std::max(next, born_before_);
    for (; next < born_before_ + born_.size(); ++next) {
      const Born& born = born_[next - born_before_];
      if (born.created_ms + ReturnModel::bin_end_ms(bin) > now_ms_) break;
      if (!is_valid(born.ref)) continue;
      const Piece& piece = pieces_[born.ref.piece];
      model_.observe(piece.run, piece.length, bin, false);
      renew(born.ref.piece);
    }
  }
}

void Kvmem::choose_rule() {
  const double decay = std::exp2(-static_cast<double>(path_.size()) / score_blocks());
  std::array<double, kRules> hits{};
  for (unsigned rule = 0; rule < kRules; ++rule) {
    const auto bit = static_cast<std::uint8_t>(1U << (rule + 1));
    std::size_t run = 0;
    while (run < path_.size() && (blocks_[path_[run]].resident & bit) != 0) ++run;
    hits[rule] = static_cast<double>(run);
  }
  for (unsigned a = 0; a < kRules; ++a) {
    for (unsigned b = 0; b < kRules; ++b) {
      Lead& lead = leads_[a][b];
      const double hits_more = hits[a] - hits[b];
      lead.sum = lead.sum * decay + hits_more;
      lead.squares = lead.squares * decay + hits_more * hits_more;
    }
  }
  const auto lead = [this](unsigned rule) { return leads_[rule][chosen_].deviations(); };
  unsigned best = chosen_;
  for (unsigned rule = 0; rule < kRules; ++rule) {
    if (lead(rule) > std::max(kSureDeviations, lead(best))) best = rule;
  }
  if (best == chosen_) return;
  chosen_ = static_cast<Rule>(best);
  requeue(0);
}

// Resident in these sets from now on.
void Kvmem::admit(std::uint32_t block, std::uint8_t sets) {
  Block& b = blocks_[block];
  for (unsigned set = 0; set < kSets; ++set) {
    const auto bit = static_cast<std::uint8_t>(1U << set);
    if ((sets & bit) == 0 || (b.resident & bit) != 0) continue;
    b.resident |= bit;
    ++sets_[set].size;
    if (b.parent != kNone) ++blocks_[b.parent].children[set];
  }
}

void Kvmem::put(unsigned set, std::uint32_t piece) {
  Piece& p = pieces_[piece];
  const double value = value_of(p, rule_of(set));
  if (p.queued[set] == value) return;
  if (std::isnan(p.queued[set])) ++sets_[set].queued;
  p.queued[set] = value;
  std::vector<Queued>& queue = sets_[set].queue;
  queue.push_back({value, {piece, p.generation}});
  std::push_heap(queue.begin(), queue.end(), std::greater<>());
  if (queue.size() <= 2 * sets_[set].queued + 64) return;
  std::erase_if(queue, [&](const Queued& entry) { return !is_current(set, entry); });
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
}

// Its expected returns have changed.
void Kvmem::renew(std::uint32_t piece) {
  for (unsigned set = 0; set < kSets; ++set) {
    if (rule_of(set) == kReturns && !std::isnan(pieces_[piece].queued[set])) put(set, piece);
  }
}

// What the model learns and the time that passes change what all pieces are worth: some at a time.
void Kvmem::refresh() {
  Set& shadow = sets_[1 + kReturns];
  for (unsigned i = 0; i < kRefreshed && !shadow.queue.empty(); ++i) {
    const Queued entry = shadow.queue[next_refreshed_++ % shadow.queue.size()];
    if (is_current(1 + kReturns, entry)) renew(entry.ref.piece);
  }
}

// Without void entries, and by the rule of now.
void Kvmem::requeue(unsigned set) {
  std::vector<Queued>& queue = sets_[set].queue;
  std::erase_if(queue, [&](Queued& entry) {
    if (!is_current(set, entry)) return true;
    Piece& piece = pieces_[entry.ref.piece];
    entry.value = piece.queued[set] = value_of(piece, rule_of(set));
    return false;
  });
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
}

// The block, if nothing resident follows it, is the next its piece can lose.
void Kvmem::offer(unsigned set, std::uint32_t block) {
  if (blocks_[block].children[set] != 0) return;
  const std::uint32_t owner = blocks_[block].piece;
  KV_CHECK(can_lose(set, pieces_[owner]));
  put(set, owner);
}

// The piece's last block leaves the set. Returns what it followed.
std::uint32_t Kvmem::evict(unsigned set, std::uint32_t piece, std::vector<BlockKey>* gone) {
  Piece& p = pieces_[piece];
  Block& block = blocks_[p.blocks[--p.end[set]]];
  const std::uint32_t parent = block.parent;
  block.resident &= static_cast<std::uint8_t>(~(1U << set));
  --sets_[set].size;
  if (set == 0) gone->push_back(block.key);
  if (block.resident == 0) make_ghost(piece);
  if (parent != kNone) --blocks_[parent].children[set];
  return parent;
}

// The piece that loses its last block next; in the queue no more. REQUIRES: the set is not empty.
std::uint32_t Kvmem::pop_least(unsigned set) {
  Set& s = sets_[set];
  for (;;) {
    KV_CHECK(!s.queue.empty());
    std::pop_heap(s.queue.begin(), s.queue.end(), std::greater<>());
    const Queued least = s.queue.back();
    s.queue.pop_back();
    if (!is_current(set, least)) continue;
    Piece& piece = pieces_[least.ref.piece];
    piece.queued[set] = kNotQueued;
    --s.queued;
    if (!can_lose(set, piece)) continue;
    // What was learned since may have changed it.
    const double value = value_of(piece, rule_of(set));
    if (value <= least.value || s.queue.empty() || value <= s.queue.front().value) {
      return least.ref.piece;
    }
    put(set, least.ref.piece);
  }
}

void Kvmem::shrink(unsigned set, std::vector<BlockKey>* gone) {
  Set& s = sets_[set];
  while (s.size > capacity_) {
    const std::uint32_t least = pop_least(set);
    std::uint32_t parent = kNone;
    do parent = evict(set, least, gone);
    while (s.size > capacity_ && can_lose(set, pieces_[least]));
    if (parent != kNone) offer(set, parent);
  }
}

// Whatever rule chooses it, its returns are what it is worth.
double Kvmem::next_to_go(std::uint64_t time_ms) {
  if (sets_[0].size == 0) return std::numeric_limits<double>::infinity();
  const std::uint32_t least = pop_least(0);
  put(0, least);
  const Piece& piece = pieces_[least];
  return model_.index(piece.run, std::max(time_ms, now_ms_) - piece.created_ms);
}

void Kvmem::serve(const BlockRequest& request, std::vector<BlockKey>* gone) {
  ++requests_;
  pass_time(request.time_ms);
  find_path(request);
  choose_rule();
  std::size_t matched = 0;
  while (matched < path_.size() && blocks_[path_[matched]].refs > 0) ++matched;
  const Piece like = begin_request(request, matched);
  for (std::size_t i = 0; i < matched; ++i) {
    const std::uint32_t owner = blocks_[path_[i]].piece;
    take(path_[i]);
    // The conversation went on elsewhere.
    if (i + 1 == matched && !pieces_[owner].is_all_taken()) {
      pieces_[owner].run.kind = ReturnModel::kLeft;
    }
  }
  const std::size_t admitted_blocks = admitted(request, like);
  own(request, like, admitted_blocks);
  refresh();
  for (unsigned set = 0; set < kSets; ++set) {
    const std::size_t end = set == 0 ? admitted_blocks : path_.size();
    if (end > 0) offer(set, path_[end - 1]);
    shrink(set, gone);
  }
  for (std::size_t i = admitted_blocks; i < path_.size(); ++i) gone->push_back(request.path[i]);
  for (std::size_t i = path_.size(); i < request.path.size(); ++i) {
    if (resident_run(request.path.subspan(i, 1)) == 0) gone->push_back(request.path[i]);
  }
  forget_some();
}

void Kvmem::validate() const {
  std::array<std::size_t, kSets> resident{};
  std::vector<std::array<std::uint32_t, kSets>> children(blocks_.size());
  for (const auto& [key, id] : ids_) {
    const Block& block = blocks_[id];
    KV_CHECK(block.key == key && block.refs > 0 && block.resident != 0);
    for (unsigned set = 0; set < kSets; ++set) {
      if (((block.resident >> set) & 1) == 0) continue;
      ++resident[set];
      if (block.parent == kNone) continue;
      KV_CHECK(((blocks_[block.parent].resident >> set) & 1) != 0);  // prefixes stay
      ++children[block.parent][set];
    }
  }
  for (const auto& [key, id] : ids_) KV_CHECK(children[id] == blocks_[id].children);
  std::size_t owned = 0;
  std::size_t ghosts = 0;
  std::size_t heads = 0;
  for (std::uint32_t id = 0; id < pieces_.size(); ++id) {
    const Piece& piece = pieces_[id];
    owned += piece.blocks.size() - piece.begin;
    for (std::uint32_t i = piece.begin; i < piece.blocks.size(); ++i) {
      const Block& block = blocks_[piece.blocks[i]];
      KV_CHECK(block.piece == id);
      for (unsigned set = 0; set < kSets; ++set) {
        KV_CHECK((((block.resident >> set) & 1) != 0) == (i < piece.end[set]));
      }
    }
    ghosts += piece.ghosts.size();
    if (piece.has_blocks() || piece.ghosts.empty()) continue;
    ++heads;
    KV_CHECK(heads_.at(piece.ghosts.back().key) == id);
  }
  KV_CHECK(owned == ids_.size());
  KV_CHECK(ghosts == ghosts_ && ghosts <= ghosts_max() && heads == heads_.size());
  for (unsigned set = 0; set < kSets; ++set) {
    KV_CHECK(resident[set] == sets_[set].size && sets_[set].size <= capacity_);
  }
}

}  // namespace

std::unique_ptr<BlockPolicy> make_kvmem(std::size_t capacity_blocks) {
  return std::make_unique<Kvmem>(capacity_blocks);
}

}  // namespace kvmem::policy
