#include "cache/records.h"

#include <algorithm>

#include "base/check.h"

namespace kvmem::cache {
namespace {

// A daemon that is killed may have written generations that are not found again now but later.
constexpr std::uint64_t kGenerationsSkipped = std::uint64_t{1} << 24;

}  // namespace

Records::Records(tier::Store* store, std::uint64_t pages_max)
    : store_(store), pages_max_(store == nullptr ? 0 : pages_max) {
  if (store_ == nullptr) return;
  std::uint64_t newest = 0;
  for (const tier::Record& record : store_->records()) {
    if (record.kind != tier::RecordKind::kPersistent) continue;
    newest = std::max(newest, record.generation);
    add(record);
  }
  next_generation_ = newest + kGenerationsSkipped;
}

void Records::trim() {
  while (pages_used() > pages_max_ && !left_.empty()) release_oldest();
}

void Records::add(const tier::Record& record) {
  by_key_.emplace(record.key, left_.emplace(record.generation, record));
}

void Records::remove(ByKey::iterator at) {
  left_.erase(at->second);
  by_key_.erase(at);
}

void Records::release_oldest() {
  const ByGeneration::iterator oldest = left_.begin();
  auto [at, end] = by_key_.equal_range(oldest->second.key);
  while (at != end && at->second != oldest) ++at;
  KV_CHECK(at != end);
  const tier::Record& record = oldest->second;
  (void)store_->release(record.key, record.generation, record.locator);
  remove(at);
}

std::uint64_t Records::common_generation(const std::vector<tier::Key>& keys) const {
  std::uint64_t best = 0;
  const auto [begin, end] = by_key_.equal_range(keys[0]);
  for (auto first = begin; first != end; ++first) {
    const std::uint64_t generation = first->second->first;
    const bool all = std::all_of(keys.begin() + 1, keys.end(), [&](const tier::Key& key) {
      const auto [a, b] = by_key_.equal_range(key);
      return std::any_of(a, b, [&](const auto& r) { return r.second->first == generation; });
    });
    if (all) best = std::max(best, generation);
  }
  return best;
}

bool Records::has(const std::vector<tier::Key>& keys) const {
  return !left_.empty() && common_generation(keys) != 0;
}

std::optional<Records::Found> Records::find(const std::vector<tier::Key>& keys) {
  if (left_.empty()) return std::nullopt;
  Found found{common_generation(keys), {}};
  bool claimed = found.generation != 0;  // all so far
  for (const tier::Key& key : keys) {
    bool has_it = false;
    auto [at, end] = by_key_.equal_range(key);
    while (at != end) {
      const ByKey::iterator here = at++;
      const tier::Record record = here->second->second;
      const bool wanted = claimed && !has_it && record.generation == found.generation;
      if (wanted && store_->claim(key, record.generation, record.locator).ok()) {
        has_it = true;
        found.locators.push_back(record.locator);
      } else {
        (void)store_->release(key, record.generation, record.locator);
      }
      remove(here);
    }
    claimed = has_it;
  }
  used_ += found.locators.size();
  if (claimed) return found;
  for (std::size_t i = 0; i < found.locators.size(); ++i) {
    (void)store_->release(keys[i], found.generation, found.locators[i]);
  }
  give_back(found.locators.size());
  return std::nullopt;
}

void Records::leave(const std::vector<tier::Key>& keys, const Found& found) {
  for (std::size_t i = 0; i < keys.size(); ++i) {
    add({keys[i], found.generation, found.locators[i], tier::RecordKind::kPersistent});
  }
  give_back(keys.size());
}

bool Records::reserve(std::uint64_t pages) {
  if (used_ + pages > pages_max_) return false;
  while (pages_used() + pages > pages_max_) release_oldest();
  used_ += pages;
  return true;
}

}  // namespace kvmem::cache
