// Ledger: how much of a GPU's own memory each engine may hold. No claim is granted beyond the
// budget; who asks for no more than his fair share gets it, as soon as those who hold more than
// theirs have given back. Pure.
//
//   fair share = budget / engines that hold or want anything
//
// What nobody claims may be held beyond the fair share, until somebody needs it. Who needs more
// than his share gets it from those who do nothing.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

namespace kvmem::policy {

class Ledger {
 public:
  using Holder = std::uint64_t;

  Ledger() = default;  // of nothing
  explicit Ledger(std::uint64_t budget_bytes) : budget_bytes_(budget_bytes) {}

  struct Answer {
    std::uint64_t granted_bytes = 0;  // what the holder may hold from now on, in all
    // Who is to give back, where less was granted than is needed.
    struct Asked {
      Holder holder;
      std::uint64_t keeps_bytes;       // in any case
      std::uint64_t keeps_idle_bytes;  // if he does nothing
    };
    std::vector<Asked> asked;
    bool entitled = false;  // some of them give back in any case
  };
  // `holder` needs so much in all, and takes up to `wanted_bytes` of what is free; what it held
  // before beyond that is free.
  Answer claim(Holder holder, std::uint64_t needed_bytes, std::uint64_t wanted_bytes);
  Answer claim(Holder holder, std::uint64_t needed_bytes) {
    return claim(holder, needed_bytes, needed_bytes);
  }
  // `holder` has so much, from before there was this ledger.
  void record(Holder holder, std::uint64_t bytes);
  void forget(Holder holder) { claims_.erase(holder); }
  void set_budget(std::uint64_t bytes) { budget_bytes_ = bytes; }

  std::uint64_t budget_bytes() const { return budget_bytes_; }
  std::uint64_t claimed_bytes() const;
  std::uint64_t held_by(Holder holder) const;
  std::size_t holders() const { return claims_.size(); }

 private:
  std::uint64_t budget_bytes_ = 0;
  std::map<Holder, std::uint64_t> claims_;
};

}  // namespace kvmem::policy
