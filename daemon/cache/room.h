// Room: the pages of DRAM that all block caches have between them. Who may have how many is said by
// policy::BlockShares; what has been taken from one is there only when its leases have ended and
// its pages are given back, and no page is made for another before that.
//
// Loop only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/check.h"

namespace kvmem::cache {

class Room {
 public:
  class User {
   public:
    virtual ~User() = default;
    // Pages beyond what it may have are on their way out.
    virtual bool is_giving() const = 0;
    // Pages came back, or what was on its way has ended otherwise.
    virtual void room_changed() = 0;

   protected:
    User() = default;
    User(const User&) = default;
    User& operator=(const User&) = default;
  };

  explicit Room(std::uint64_t pages) : pages_(pages) {}

  void add(User* user) { users_.push_back(user); }
  void remove(User* user) { std::erase(users_, user); }

  bool has(std::uint64_t pages) const { return held_ + pages <= pages_; }
  void take(std::uint64_t pages) {
    KV_CHECK(has(pages));
    held_ += pages;
  }
  // Tells the others when all is done that belongs to it: changed().
  void give_back(std::uint64_t pages) {
    KV_CHECK(pages <= held_);
    held_ -= pages;
  }
  bool may_come(const User* to) const {
    return std::any_of(users_.begin(), users_.end(),
                       [&](const User* user) { return user != to && user->is_giving(); });
  }
  void changed(const User* by) const {
    for (User* user : users_) {
      if (user != by) user->room_changed();
    }
  }

  std::uint64_t pages() const { return pages_; }
  std::uint64_t held() const { return held_; }

 private:
  const std::uint64_t pages_;
  std::uint64_t held_ = 0;
  std::vector<User*> users_;
};

}  // namespace kvmem::cache
