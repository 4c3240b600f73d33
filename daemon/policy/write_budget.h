// WriteBudget: how much may be written to the store over time, and which blocks it is spent on.
//
// BOUND. A bucket of tokens, of a byte each: `rate` come in per unit of time, `burst` are saved at
// most. So in any time t no more than rate x t + burst bytes are written, whatever is admitted:
// spend() says no where nothing is left. What comes in is divided equally among the tenants that
// are active; what one has no use for goes to those that have.
//
// PRICE. A write brings a hit if the block is asked for again, and what that is worth is told by
// the chance of it. Who writes what comes first spends the budget on blocks no better than any. So
// what is offered has to be among the best of what has been offered of late:
//
//   spends  = 2 x rate x (saved / what may be saved)   of the tenant, until it saves no more
//   offered = bytes offered per unit of time, remembered for about a horizon (burst / rate)
//   admitted is the best share of `spends / offered`: the price is that quantile of their chances
//
// The fuller the bucket the lower the price. A tenant that saves half of what it may spends what
// comes in; if more is offered, or better, than was, the bucket falls and the price rises until it
// does again. If less is offered than the budget allows all of it is written. Nothing is fitted: of
// the offers only their order counts.
//
// Time is the caller's, in units of his choice (milliseconds in the daemon, blocks asked for in the
// simulator). An offer costs a walk over kBins numbers. Pure.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>

namespace kvmem::policy {

class WriteBudget {
 public:
  using Tenant = std::uint32_t;
  // For admits(): the policy cannot tell. First come, first served.
  static constexpr double kUnknown = -1;

  WriteBudget() = default;  // without a limit

  // From now on. `horizon`: what comes in during it may be saved, and it is how long offers are
  // remembered. What is saved stays saved as far as it may be; the first limit begins with a full
  // bucket. rate 0: no limit.
  void set_rate(double bytes_per_time, double horizon);
  bool is_limited() const { return rate_ > 0; }
  double rate() const { return rate_; }
  double burst_bytes() const { return rate_ * horizon_; }
  double saved_bytes() const;
  std::uint64_t spent_bytes() const { return spent_bytes_; }  // in all, under limits
  // Of an earlier life. REQUIRES: is_limited().
  void set_saved(double bytes);

  // Time never goes back: an earlier `now` is taken as the latest.
  void pass_time(std::uint64_t now);
  // Whether it has a part in what comes in. If not, what it has saved is the others'.
  void set_active(Tenant tenant, bool is_active);

  // A block is offered, with its chance to be asked for again, 0..1. `planned_bytes` have been
  // admitted before and not been spent. True: it is worth the write.
  bool admits(Tenant tenant, double chance, std::uint64_t bytes, std::uint64_t planned_bytes = 0);
  // It is written now. False: it must not be, the bucket is empty.
  bool spend(Tenant tenant, std::uint64_t bytes);

  // The chance that was asked for when last something was offered; 0: any would do.
  double price(Tenant tenant) const;
  // Stops the process (KV_CHECK) where more is saved than may be.
  void validate() const;

 private:
  // Of the logarithm of the odds, a quarter each, from e^-8 to e^8: beyond them all are as good, or
  // as bad, as each other.
  static constexpr std::size_t kBins = 64;

  struct Account {
    double saved = 0;
    std::array<double, kBins> offered{};  // bytes, decayed
    double remembers = 0;                 // time, decayed likewise: a horizon in the end
    std::uint64_t decayed_at = 0;
    double due = 0;  // of the bin that the price is in, which is admitted in part
    double price = 0;
  };

  static std::size_t bin_of(double chance);
  static double least_of(std::size_t bin);
  double saved_max() const {
    return accounts_.empty() ? 0 : burst_bytes() / static_cast<double>(accounts_.size());
  }
  void forget_some(Account& account) const;
  void share_out();

  double rate_ = 0;
  double horizon_ = 0;
  std::uint64_t now_ = 0;
  std::uint64_t spent_bytes_ = 0;
  double unshared_ = 0;                 // saved for whoever comes
  std::map<Tenant, Account> accounts_;  // of those that are active
};

}  // namespace kvmem::policy
