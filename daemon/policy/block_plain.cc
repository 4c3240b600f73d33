#include "policy/block_plain.h"

#include <algorithm>
#include <list>
#include <set>
#include <unordered_map>

#include "base/check.h"

namespace kvmem::policy {
namespace {

using Keys = std::list<BlockKey>;

// A policy that knows blocks and no paths.
class PlainPolicy : public BlockPolicy {
 public:
  explicit PlainPolicy(std::size_t capacity) : capacity_(capacity) {}

  std::size_t resident_run(std::span<const BlockKey> path) const override {
    std::size_t run = 0;
    while (run < path.size() && is_resident(path[run])) ++run;
    return run;
  }
  void serve(const BlockRequest& request, std::vector<BlockKey>* gone) override {
    const auto before = static_cast<std::ptrdiff_t>(gone->size());
    const std::size_t admitted = admit(request);
    for (std::size_t i = request.path.size(); i-- > 0;) {
      const BlockKey key = request.path[i];
      if (capacity_ == 0 || (i >= admitted && !is_resident(key))) {
        gone->push_back(key);
      } else {
        touch(key, gone);
      }
    }
    // What the path's end drove out, and its beginning brought back, is not gone.
    gone->erase(std::remove_if(gone->begin() + before, gone->end(),
                               [this](BlockKey key) { return is_resident(key); }),
                gone->end());
  }
  void set_capacity(std::size_t blocks, std::vector<BlockKey>* gone) override {
    capacity_ = blocks;
    fit(gone);
  }

 protected:
  std::size_t capacity() const { return capacity_; }

 private:
  // How much of the path may become resident.
  std::size_t admit(const BlockRequest& request) const {
    if (request.admission == nullptr || capacity_ == 0) return request.path.size();
    std::size_t i = request.free_blocks;
    for (; i < request.path.size(); ++i) {
      if (!is_resident(request.path[i]) && !request.admission->admits(-1)) break;
    }
    return i;
  }
  virtual bool is_resident(BlockKey key) const = 0;
  // Resident afterwards. REQUIRES: the capacity is not 0.
  virtual void touch(BlockKey key, std::vector<BlockKey>* gone) = 0;
  // To a capacity that may have shrunk.
  virtual void fit(std::vector<BlockKey>* gone) = 0;

  std::size_t capacity_;
};

// A queue of keys, the newest in front.
class Queue {
 public:
  bool has(BlockKey key) const { return at_.contains(key); }
  std::size_t size() const { return at_.size(); }
  BlockKey oldest() const { return keys_.back(); }
  void push(BlockKey key) {
    keys_.push_front(key);
    at_[key] = keys_.begin();
  }
  void renew(BlockKey key) { keys_.splice(keys_.begin(), keys_, at_.at(key)); }
  bool remove(BlockKey key) {
    const auto it = at_.find(key);
    if (it == at_.end()) return false;
    keys_.erase(it->second);
    at_.erase(it);
    return true;
  }
  BlockKey pop_oldest() {
    const BlockKey key = keys_.back();
    at_.erase(key);
    keys_.pop_back();
    return key;
  }

 private:
  Keys keys_;
  std::unordered_map<BlockKey, Keys::iterator> at_;
};

class Lru final : public PlainPolicy {
 public:
  using PlainPolicy::PlainPolicy;
  std::size_t resident_blocks() const override { return queue_.size(); }
  std::size_t known_blocks() const override { return queue_.size(); }
  void validate() const override { KV_CHECK(queue_.size() <= capacity()); }

 private:
  bool is_resident(BlockKey key) const override { return queue_.has(key); }
  void touch(BlockKey key, std::vector<BlockKey>* gone) override {
    if (queue_.has(key)) return queue_.renew(key);
    if (queue_.size() == capacity()) gone->push_back(queue_.pop_oldest());
    queue_.push(key);
  }
  void fit(std::vector<BlockKey>* gone) override {
    while (queue_.size() > capacity()) gone->push_back(queue_.pop_oldest());
  }

  Queue queue_;
};

class LfuDa final : public PlainPolicy {
 public:
  using PlainPolicy::PlainPolicy;
  std::size_t resident_blocks() const override { return blocks_.size(); }
  std::size_t known_blocks() const override { return blocks_.size(); }
  void validate() const override {
    KV_CHECK(blocks_.size() <= capacity());
    KV_CHECK(order_.size() == blocks_.size());
  }

 private:
  struct Rank {
    std::uint64_t priority;
    std::uint64_t touched;
    BlockKey key;
    auto operator<=>(const Rank&) const = default;
  };
  struct Block {
    std::uint64_t uses;
    Rank rank;
  };

  bool is_resident(BlockKey key) const override { return blocks_.contains(key); }
  void touch(BlockKey key, std::vector<BlockKey>* gone) override {
    auto it = blocks_.find(key);
    if (it == blocks_.end()) {
      if (blocks_.size() == capacity()) evict(gone);
      it = blocks_.emplace(key, Block{0, {}}).first;
    } else {
      order_.erase(it->second.rank);
    }
    Block& block = it->second;
    block.rank = {++block.uses + age_, ++touched_, key};
    order_.insert(block.rank);
  }
  void fit(std::vector<BlockKey>* gone) override {
    while (blocks_.size() > capacity()) evict(gone);
  }
  void evict(std::vector<BlockKey>* gone) {
    const Rank least = *order_.begin();
    age_ = least.priority;
    order_.erase(order_.begin());
    blocks_.erase(least.key);
    gone->push_back(least.key);
  }

  std::unordered_map<BlockKey, Block> blocks_;
  std::set<Rank> order_;
  std::uint64_t age_ = 0;
  std::uint64_t touched_ = 0;
};

class Arc final : public PlainPolicy {
 public:
  using PlainPolicy::PlainPolicy;
  std::size_t resident_blocks() const override { return once_.size() + often_.size(); }
  std::size_t known_blocks() const override {
    return resident_blocks() + ghosts_once_.size() + ghosts_often_.size();
  }
  void validate() const override {
    KV_CHECK(resident_blocks() <= capacity());
    KV_CHECK(once_.size() + ghosts_once_.size() <= capacity());
    KV_CHECK(known_blocks() <= 2 * capacity());
  }

 private:
  bool is_resident(BlockKey key) const override { return once_.has(key) || often_.has(key); }

  void replace(bool is_ghost_often, std::vector<BlockKey>* gone) {
    const bool from_once =
        once_.size() > 0 && (once_.size() > target_ || (is_ghost_often && once_.size() == target_));
    Queue& from = from_once || often_.size() == 0 ? once_ : often_;
    Queue& to = &from == &once_ ? ghosts_once_ : ghosts_often_;
    const BlockKey key = from.pop_oldest();
    to.push(key);
    gone->push_back(key);
  }

  void touch(BlockKey key, std::vector<BlockKey>* gone) override {
    if (once_.remove(key)) return often_.push(key);
    if (often_.has(key)) return often_.renew(key);
    const std::size_t one = 1;
    if (ghosts_once_.has(key)) {
      target_ =
          std::min(capacity(), target_ + std::max(one, ghosts_often_.size() / ghosts_once_.size()));
      replace(false, gone);
      ghosts_once_.remove(key);
      return often_.push(key);
    }
    if (ghosts_often_.has(key)) {
      const std::size_t step = std::max(one, ghosts_once_.size() / ghosts_often_.size());
      target_ -= std::min(target_, step);
      replace(true, gone);
      ghosts_often_.remove(key);
      return often_.push(key);
    }
    if (once_.size() + ghosts_once_.size() == capacity()) {
      if (once_.size() < capacity()) {
        ghosts_once_.pop_oldest();
        replace(false, gone);
      } else {
        gone->push_back(once_.pop_oldest());
      }
    } else if (known_blocks() >= capacity()) {
      if (known_blocks() == 2 * capacity()) ghosts_often_.pop_oldest();
      if (resident_blocks() == capacity()) replace(false, gone);
    }
    once_.push(key);
  }
  void fit(std::vector<BlockKey>* gone) override {
    target_ = std::min(target_, capacity());
    while (resident_blocks() > capacity()) replace(false, gone);
    while (once_.size() + ghosts_once_.size() > capacity()) ghosts_once_.pop_oldest();
    while (known_blocks() > 2 * capacity()) ghosts_often_.pop_oldest();
  }

  Queue once_;
  Queue often_;
  Queue ghosts_once_;
  Queue ghosts_often_;
  std::size_t target_ = 0;  // of once_
};

class S3Fifo final : public PlainPolicy {
 public:
  using PlainPolicy::PlainPolicy;
  std::size_t resident_blocks() const override { return uses_.size(); }
  std::size_t known_blocks() const override { return uses_.size() + ghosts_.size(); }
  void validate() const override {
    KV_CHECK(uses_.size() <= capacity());
    KV_CHECK(uses_.size() == small_.size() + main_.size());
    KV_CHECK(ghosts_.size() <= main_max());
  }

 private:
  static constexpr unsigned kUsesMax = 3;

  std::size_t small_max() const { return std::max<std::size_t>(1, capacity() / 10); }
  std::size_t main_max() const { return capacity() - std::min(capacity(), small_max()); }

  bool is_resident(BlockKey key) const override { return uses_.contains(key); }

  void remember(BlockKey key) {
    if (main_max() == 0) return;
    if (ghosts_.size() == main_max()) ghosts_.pop_oldest();
    ghosts_.push(key);
  }
  bool evict_small(std::vector<BlockKey>* gone) {
    while (small_.size() > 0) {
      const BlockKey key = small_.pop_oldest();
      if (unsigned& uses = uses_.at(key); uses > 0) {
        uses = 0;
        main_.push(key);
        continue;
      }
      uses_.erase(key);
      remember(key);
      gone->push_back(key);
      return true;
    }
    return false;
  }
  bool evict_main(std::vector<BlockKey>* gone) {
    while (main_.size() > 0) {
      const BlockKey key = main_.pop_oldest();
      unsigned& uses = uses_.at(key);
      if (uses > 0) {
        --uses;
        main_.push(key);
        continue;
      }
      uses_.erase(key);
      gone->push_back(key);
      return true;
    }
    return false;
  }

  void touch(BlockKey key, std::vector<BlockKey>* gone) override {
    if (const auto it = uses_.find(key); it != uses_.end()) {
      it->second = std::min(it->second + 1, kUsesMax);
      return;
    }
    const bool is_known = ghosts_.remove(key);
    while (uses_.size() >= capacity()) evict(gone);
    (is_known ? main_ : small_).push(key);
    uses_[key] = 0;
  }
  void fit(std::vector<BlockKey>* gone) override {
    while (uses_.size() > capacity()) evict(gone);
    while (ghosts_.size() > main_max()) ghosts_.pop_oldest();
  }
  void evict(std::vector<BlockKey>* gone) {
    const bool done = small_.size() >= small_max() ? evict_small(gone) || evict_main(gone)
                                                   : evict_main(gone) || evict_small(gone);
    KV_CHECK(done);
  }

  std::unordered_map<BlockKey, unsigned> uses_;  // of what is resident
  Queue small_;
  Queue main_;
  Queue ghosts_;
};

}  // namespace

std::unique_ptr<BlockPolicy> make_lru(std::size_t capacity_blocks) {
  return std::make_unique<Lru>(capacity_blocks);
}
std::unique_ptr<BlockPolicy> make_lfu_da(std::size_t capacity_blocks) {
  return std::make_unique<LfuDa>(capacity_blocks);
}
std::unique_ptr<BlockPolicy> make_arc(std::size_t capacity_blocks) {
  return std::make_unique<Arc>(capacity_blocks);
}
std::unique_ptr<BlockPolicy> make_s3fifo(std::size_t capacity_blocks) {
  return std::make_unique<S3Fifo>(capacity_blocks);
}

}  // namespace kvmem::policy
