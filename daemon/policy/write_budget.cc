#include "policy/write_budget.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace kvmem::policy {
namespace {

// What a horizon's offers are guessed from at first: before that much of it has passed they would
// be a guess from nothing.
constexpr double kFirstPart = 1.0 / 64;
constexpr double kBinsPerOdds = 4;
constexpr double kRounding = 1e-6;  // of sums of doubles, relative

}  // namespace

std::size_t WriteBudget::bin_of(double chance) {
  const double odds = std::log(std::max(chance, 1e-9) / std::max(1 - chance, 1e-9));
  const double bin = std::floor(odds * kBinsPerOdds) + static_cast<double>(kBins) / 2;
  return static_cast<std::size_t>(std::clamp(bin, 0.0, static_cast<double>(kBins - 1)));
}

double WriteBudget::least_of(std::size_t bin) {
  if (bin == 0) return 0;
  const double odds = (static_cast<double>(bin) - static_cast<double>(kBins) / 2) / kBinsPerOdds;
  return 1 / (1 + std::exp(-odds));
}

double WriteBudget::saved_bytes() const {
  double saved = unshared_;
  for (const auto& [tenant, account] : accounts_) saved += account.saved;
  return saved;
}

void WriteBudget::set_rate(double bytes_per_time, double horizon) {
  const bool is_first = !is_limited();
  const double saved = saved_bytes();
  rate_ = bytes_per_time;
  horizon_ = horizon;
  set_saved(!is_limited() ? 0 : is_first ? burst_bytes() : std::min(saved, burst_bytes()));
}

void WriteBudget::set_saved(double bytes) {
  for (auto& [tenant, account] : accounts_) account.saved = 0;
  unshared_ = std::clamp(bytes, 0.0, burst_bytes());
  share_out();
}

// What nobody has goes to those who may save more.
void WriteBudget::share_out() {
  const double most = saved_max();
  for (auto& [tenant, account] : accounts_) {
    const double beyond = std::max(account.saved - most, 0.0);
    account.saved -= beyond;
    unshared_ += beyond;
  }
  // Each round fills an account, or ends it.
  for (std::size_t round = 0; round < accounts_.size() && unshared_ > 0; ++round) {
    const auto takers = std::count_if(accounts_.begin(), accounts_.end(),
                                      [&](const auto& a) { return a.second.saved < most; });
    if (takers == 0) break;
    const double part = unshared_ / static_cast<double>(takers);
    for (auto& [tenant, account] : accounts_) {
      const double gets = std::min({part, most - account.saved, unshared_});
      account.saved += gets;
      unshared_ -= gets;
    }
  }
}

void WriteBudget::pass_time(std::uint64_t now) {
  if (now <= now_) return;
  const auto passed = static_cast<double>(now - std::exchange(now_, now));
  if (!is_limited()) return;
  unshared_ += std::clamp(burst_bytes() - saved_bytes(), 0.0, rate_ * passed);
  share_out();
}

void WriteBudget::set_active(Tenant tenant, bool is_active) {
  const auto it = accounts_.find(tenant);
  if (is_active == (it != accounts_.end())) return;
  if (is_active) {
    accounts_[tenant].decayed_at = now_;
  } else {
    unshared_ += it->second.saved;
    accounts_.erase(it);
  }
  share_out();
}

void WriteBudget::forget_some(Account& account) const {
  const auto passed = static_cast<double>(now_ - account.decayed_at);
  if (passed < horizon_ * kFirstPart) return;
  account.decayed_at = now_;
  const double kept = std::exp(-passed / horizon_);
  for (double& bytes : account.offered) bytes *= kept;
  account.remembers = account.remembers * kept + horizon_ * (1 - kept);
}

bool WriteBudget::admits(Tenant tenant, double chance, std::uint64_t bytes,
                         std::uint64_t planned_bytes) {
  if (!is_limited()) return true;
  const auto it = accounts_.find(tenant);
  if (it == accounts_.end()) return false;
  Account& account = it->second;
  const auto block = static_cast<double>(bytes);
  const double left = account.saved - static_cast<double>(planned_bytes);
  account.price = 0;
  if (chance < 0) return left >= block;
  forget_some(account);
  const std::size_t bin = bin_of(chance);
  account.offered[bin] += block;
  if (left < block) {
    account.price = 1;
    return false;
  }
  const double all = std::accumulate(account.offered.begin(), account.offered.end(), 0.0);
  const double since = static_cast<double>(now_ - account.decayed_at);
  const double remembers = std::max(account.remembers + since, horizon_ * kFirstPart);
  const double spends = 2 * rate_ * left / saved_max();
  double wanted = spends * remembers;  // of `all`
  if (wanted >= all) return true;
  std::size_t at = kBins - 1;
  while (at > 0 && account.offered[at] < wanted) wanted -= account.offered[at--];
  account.price = least_of(at);
  if (bin != at) return bin > at;
  account.due += block * wanted / account.offered[at];
  if (account.due < block) return false;
  account.due -= block;
  return true;
}

bool WriteBudget::spend(Tenant tenant, std::uint64_t bytes) {
  if (!is_limited()) return true;
  const auto it = accounts_.find(tenant);
  const auto block = static_cast<double>(bytes);
  double& saved = it == accounts_.end() ? unshared_ : it->second.saved;
  if (saved < block) return false;
  saved -= block;
  spent_bytes_ += bytes;
  return true;
}

double WriteBudget::price(Tenant tenant) const {
  const auto it = accounts_.find(tenant);
  return it == accounts_.end() ? 0 : it->second.price;
}

void WriteBudget::validate() const {
  KV_CHECK(unshared_ >= 0);
  KV_CHECK(saved_bytes() <= burst_bytes() * (1 + kRounding));
  for (const auto& [tenant, account] : accounts_) {
    KV_CHECK(account.saved >= 0 && account.saved <= saved_max() * (1 + kRounding));
  }
}

}  // namespace kvmem::policy
