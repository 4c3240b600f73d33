// Records: the block cache's part of the page store, of all users together.
//
// Holds what an earlier daemon left there until somebody asks for it by name, and keeps all of it
// within its share: what nobody has asked for gives way, the oldest first. Loop only.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "tier/store.h"

namespace kvmem::cache {

struct KeyHash {
  std::size_t operator()(const tier::Key& key) const { return key.hi ^ key.lo; }
};

class Records {
 public:
  // `store` may be null: then there is nothing, and room for nothing.
  Records(tier::Store* store, std::uint64_t pages_max);

  tier::Store* store() const { return store_; }
  std::uint64_t pages_max() const { return pages_max_; }
  std::uint64_t pages_used() const { return used_ + left_.size(); }
  std::uint64_t pages_left() const { return left_.size(); }  // nobody has asked for
  // What is left beyond the share goes, the oldest first. Once those have been found that are worth
  // their place.
  void trim();
  // Above all that were ever used: a name's next bytes are a new generation.
  std::uint64_t next_generation() { return next_generation_++; }

  struct Found {
    std::uint64_t generation = 0;
    std::vector<tier::Locator> locators;  // as many as keys
  };
  // Whether find() would find it.
  bool has(const std::vector<tier::Key>& keys) const;
  // Records left under all of these keys in one write; the caller's from now on. What else is left
  // under them is released.
  std::optional<Found> find(const std::vector<tier::Key>& keys);
  // Back to those nobody has asked for: the next of the caller finds it again.
  void leave(const std::vector<tier::Key>& keys, const Found& found);
  // Room for so many more; false: the share is used up by what is in use.
  bool reserve(std::uint64_t pages);
  // Of reserve() or find(): the pages are gone.
  void give_back(std::uint64_t pages) { used_ -= pages; }

 private:
  using ByGeneration = std::multimap<std::uint64_t, tier::Record>;
  using ByKey = std::unordered_multimap<tier::Key, ByGeneration::iterator, KeyHash>;

  // The newest generation that all keys have; 0: none.
  std::uint64_t common_generation(const std::vector<tier::Key>& keys) const;
  void add(const tier::Record& record);
  void release_oldest();
  void remove(ByKey::iterator at);

  tier::Store* const store_;
  const std::uint64_t pages_max_;
  std::uint64_t used_ = 0;
  std::uint64_t next_generation_ = 1;
  ByGeneration left_;
  ByKey by_key_;
};

}  // namespace kvmem::cache
