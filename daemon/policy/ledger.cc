#include "policy/ledger.h"

#include <algorithm>

namespace kvmem::policy {

std::uint64_t Ledger::claimed_bytes() const {
  std::uint64_t sum = 0;
  for (const auto& [holder, bytes] : claims_) sum += bytes;
  return sum;
}

std::uint64_t Ledger::held_by(Holder holder) const {
  const auto it = claims_.find(holder);
  return it == claims_.end() ? 0 : it->second;
}

void Ledger::record(Holder holder, std::uint64_t bytes) {
  if (bytes == 0) return forget(holder);
  claims_[holder] = std::min(bytes, budget_bytes_);  // no engine can claim that it has more
}

Ledger::Answer Ledger::claim(Holder holder, std::uint64_t needed_bytes,
                             std::uint64_t wanted_bytes) {
  if (wanted_bytes == 0) {
    forget(holder);
    return {};
  }
  std::uint64_t& mine = claims_[holder];
  const std::uint64_t others = claimed_bytes() - mine;
  const std::uint64_t free = budget_bytes_ - std::min(budget_bytes_, others);
  Answer answer;
  // What it holds already is its own, though the budget may have shrunk.
  answer.granted_bytes = mine = std::min(wanted_bytes, std::max(free, mine));
  if (mine >= needed_bytes) return answer;
  const std::uint64_t fair = budget_bytes_ / claims_.size();
  std::uint64_t due = std::min(needed_bytes, fair) - std::min({needed_bytes, fair, mine});
  std::uint64_t missing = needed_bytes - mine;
  answer.entitled = due > 0;
  for (const auto& [other, bytes] : claims_) {
    if (other == holder || bytes == 0 || (due == 0 && missing == 0)) continue;
    const std::uint64_t gives = std::min(bytes - std::min(bytes, fair), due);
    const std::uint64_t gives_idle = std::max(gives, std::min(bytes, missing));
    answer.asked.push_back({other, bytes - gives, bytes - gives_idle});
    due -= gives;
    missing -= std::min(missing, gives_idle);
  }
  return answer;
}

}  // namespace kvmem::policy
