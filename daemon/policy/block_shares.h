// BlockShares: one capacity for the caches of several tenants, each cache with a policy of its own.
// One for DRAM, one for the store.
//
//   share of a tenant = capacity / tenants that are active; 0 if he is not
//
// A tenant is active for kActiveMs after a request. What he asks for up to his share he gets:
// capacity that nobody uses first, then what others hold beyond their shares. What is beyond the
// shares goes by value: the block goes that is worth least (next_to_go() of the policies) of all
// that tenants beyond their shares have, also if it is one of those just asked for. So
//
//   nobody's use pushes another below his share (but for a part of a block, where blocks do not
//   divide it); what one does not use others do; and the caches of one tenant, of several sizes of
//   block, have what is his by value.
//
// Who is not active is protected no more: his blocks make room for what others ask for up to their
// shares, and compete by value with what they ask for beyond.
//
// Values are told in the time of the requests: an engine that claims that little time passes may
// get more of what is beyond the shares, never of a share. Of policies that cannot tell, the tenant
// loses blocks that is farthest beyond his share, and of his caches the largest.
//
// A request takes three steps: ask() lets its cache have all of its blocks, on credit; the policy
// serves it; settle() takes back what is too much. A cache that is alone has all, always, and no
// step does anything to it.
//
// Units are pages of the capacity. A step looks at all members, some tens of them, and settle() at
// them all for each block that goes, at their values once and then at that of who lost one. Pure:
// time is handed in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

namespace kvmem::policy {

class BlockShares {
 public:
  using Tenant = std::uint32_t;
  // The last age that policies tell apart (block_return.h) begins there: of who has asked for
  // nothing for longer hardly a block is expected to be asked for again.
  static constexpr std::uint64_t kActiveMs = 4096 * 1000;

  // A cache's part in the capacity.
  class Member {
   public:
    virtual ~Member() = default;
    virtual std::size_t resident_blocks() const = 0;
    // What it takes to hold so many: more, the more they are.
    virtual std::uint64_t pages_for(std::size_t blocks) const = 0;
    // BlockPolicy::next_to_go(), now.
    virtual double next_to_go(std::uint64_t now_ms) = 0;
    // So much may be used from now on; blocks beyond it leave before this returns.
    virtual void set_pages(std::uint64_t pages) = 0;

   protected:
    Member() = default;
    Member(const Member&) = default;
    Member& operator=(const Member&) = default;
  };

  explicit BlockShares(std::uint64_t pages) : pages_(pages) {}

  // It gets what is nobody's: the first one all. What it has already competes with what others
  // have. It stays where it is until remove().
  void add(Member* member, Tenant tenant);
  // It has no blocks any more, or they are nobody's.
  void remove(Member* member);

  // `member` is about to serve a request of so many blocks.
  void ask(Member* member, std::size_t blocks, std::uint64_t now_ms);
  // It has.
  void settle(Member* member);

  std::uint64_t pages() const { return pages_; }
  std::uint64_t pages_of(const Member* member) const;  // that it may use
  std::uint64_t share_of(Tenant tenant, std::uint64_t now_ms) const;
  bool is_active(Tenant tenant, std::uint64_t now_ms) const {
    return active(now_ms).contains(tenant);
  }
  // Stops the process (KV_CHECK) where more is given than there is. Not between ask() and settle().
  void validate() const;

 private:
  struct Entry {
    Member* member = nullptr;
    Tenant tenant = 0;
    std::uint64_t pages = 0;
    bool has_asked = false;
    std::uint64_t asked_ms = 0;
  };
  struct Holder {  // while it is settled who loses what
    Entry* entry;
    std::uint64_t* tenant_pages;  // that he uses
    std::uint64_t share;
    double next;
    bool is_known = false;  // `next`
  };

  Entry& entry_of(const Member* member);
  std::set<Tenant> active(std::uint64_t now_ms) const;
  static std::uint64_t used(const Entry& entry) {
    return entry.member->pages_for(entry.member->resident_blocks());
  }
  void set(Entry& entry, std::uint64_t pages);
  Holder* giver(std::vector<Holder>& holders) const;

  const std::uint64_t pages_;
  std::vector<Entry> entries_;
  std::uint64_t given_ = 0;  // to all of them
  std::uint64_t now_ms_ = 0;
};

}  // namespace kvmem::policy
