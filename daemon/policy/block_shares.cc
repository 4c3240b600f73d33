#include "policy/block_shares.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/check.h"

namespace kvmem::policy {

BlockShares::Entry& BlockShares::entry_of(const Member* member) {
  const auto it = std::find_if(entries_.begin(), entries_.end(),
                               [&](const Entry& entry) { return entry.member == member; });
  KV_CHECK(it != entries_.end());
  return *it;
}

void BlockShares::set(Entry& entry, std::uint64_t pages) {
  given_ = given_ - std::exchange(entry.pages, pages) + pages;
  entry.member->set_pages(pages);
}

void BlockShares::add(Member* member, Tenant tenant) {
  entries_.push_back({member, tenant});
  Entry& entry = entries_.back();
  set(entry, std::max(pages_ - std::min(pages_, given_), used(entry)));
  settle(member);
}

void BlockShares::remove(Member* member) {
  const Entry removed = entry_of(member);
  std::erase_if(entries_, [&](const Entry& entry) { return entry.member == member; });
  given_ -= removed.pages;
  if (entries_.size() == 1) set(entries_.back(), pages_);
}

std::uint64_t BlockShares::pages_of(const Member* member) const {
  const auto it = std::find_if(entries_.begin(), entries_.end(),
                               [&](const Entry& entry) { return entry.member == member; });
  return it == entries_.end() ? 0 : it->pages;
}

std::set<BlockShares::Tenant> BlockShares::active(std::uint64_t now_ms) const {
  std::set<Tenant> tenants;
  for (const Entry& entry : entries_) {
    const std::uint64_t since_ms = std::max(now_ms, now_ms_) - entry.asked_ms;
    if (entry.has_asked && since_ms < kActiveMs) tenants.insert(entry.tenant);
  }
  return tenants;
}

std::uint64_t BlockShares::share_of(Tenant tenant, std::uint64_t now_ms) const {
  const std::set<Tenant> tenants = active(now_ms);
  return tenants.contains(tenant) ? pages_ / tenants.size() : 0;
}

void BlockShares::ask(Member* member, std::size_t blocks, std::uint64_t now_ms) {
  Entry& entry = entry_of(member);
  entry.has_asked = true;
  entry.asked_ms = now_ms_ = std::max(now_ms_, now_ms);
  if (entries_.size() == 1) return;
  const std::uint64_t wants = member->pages_for(member->resident_blocks() + blocks);
  if (wants > entry.pages) set(entry, wants);
}

void BlockShares::settle(Member* member) {
  const auto too_much = [&] { return given_ - std::min(given_, pages_); };
  const auto unused = [](const Entry& entry) {
    return entry.pages - std::min(entry.pages, used(entry));
  };
  if (too_much() == 0) return;
  Entry& asked = entry_of(member);
  set(asked, asked.pages - std::min(unused(asked), too_much()));
  while (too_much() > 0) {
    Entry& most =
        *std::max_element(entries_.begin(), entries_.end(),
                          [&](const Entry& a, const Entry& b) { return unused(a) < unused(b); });
    if (unused(most) == 0) break;
    set(most, most.pages - std::min(unused(most), too_much()));
  }
  if (too_much() == 0) return;
  const std::set<Tenant> has_share = active(now_ms_);
  std::map<Tenant, std::uint64_t> uses;
  std::vector<Holder> holders;
  for (Entry& entry : entries_) {
    std::uint64_t& tenant_pages = uses[entry.tenant];
    tenant_pages += used(entry);
    holders.push_back({&entry, &tenant_pages,
                       has_share.contains(entry.tenant) ? pages_ / has_share.size() : 0, 0});
  }
  while (too_much() > 0) {
    Holder* least = giver(holders);
    KV_CHECK(least != nullptr);
    Entry& entry = *least->entry;
    const std::uint64_t before = used(entry);
    set(entry, entry.member->pages_for(entry.member->resident_blocks() - 1));
    const std::uint64_t after = used(entry);
    KV_CHECK(after < before);
    *least->tenant_pages -= before - after;
    least->is_known = false;
  }
}

// Whoever loses a block: as more is used than there is, somebody is beyond his share.
BlockShares::Holder* BlockShares::giver(std::vector<Holder>& holders) const {
  Holder* least = nullptr;
  const auto goes_before = [](const Holder& a, const Holder& b) {
    if (a.next != b.next) return a.next < b.next;
    const std::uint64_t a_beyond = *a.tenant_pages - a.share;
    const std::uint64_t b_beyond = *b.tenant_pages - b.share;
    return a_beyond != b_beyond ? a_beyond > b_beyond : a.entry->pages > b.entry->pages;
  };
  for (Holder& holder : holders) {
    if (*holder.tenant_pages <= holder.share || holder.entry->member->resident_blocks() == 0) {
      continue;
    }
    if (!holder.is_known) {
      holder.next = holder.entry->member->next_to_go(now_ms_);
      holder.is_known = true;
    }
    if (least == nullptr || goes_before(holder, *least)) least = &holder;
  }
  return least;
}

void BlockShares::validate() const {
  std::uint64_t given = 0;
  for (const Entry& entry : entries_) {
    KV_CHECK(used(entry) <= entry.pages);
    given += entry.pages;
  }
  KV_CHECK(given == given_ && given <= pages_);
}

}  // namespace kvmem::policy
