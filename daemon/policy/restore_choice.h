// Restore or compute: an engine has a stored block of KV cache again by reading it or by computing
// it, whichever is sooner. Pure: times are the caller's, in nanoseconds, of one clock.
//
//   reading    first + (pages under way, queued and wanted - 1) * next
//   computing  a + c * position for each block: what its own tokens cost, and their attention to
//              all before them
//
// Both are learned from what reading and computing took lately. Blocks late in a prompt cost most
// to compute and the same to read, so a prompt's stored blocks are computed up to one of them and
// read from there on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvmem::policy {

// How long a store takes for its pages.
class ReadCost {
 public:
  // After so long without a read, what is known may have become wrong.
  static constexpr std::uint64_t kFreshNs = 1'000'000'000;

  struct Estimate {
    double first_ns = 0;  // until the first of the pages asked for now
    double page_ns = 0;   // for each one after it
    double ns(std::uint64_t pages) const {
      return pages == 0 ? 0 : first_ns + static_cast<double>(pages - 1) * page_ns;
    }
  };

  void begins(std::uint64_t now_ns);
  // The read that began at `begin_ns`.
  void ends(std::uint64_t begin_ns, std::uint64_t now_ns);

  bool is_known() const { return first_ns_ > 0; }
  bool is_stale(std::uint64_t now_ns) const {
    return in_flight_ == 0 && now_ns - last_ns_ >= kFreshNs;
  }
  // Behind what is under way and `queued` pages more.
  Estimate estimate(std::uint64_t queued, std::uint64_t now_ns) const;

 private:
  std::uint64_t in_flight_ = 0;
  std::uint64_t last_ns_ = 0;  // the last read's end; or, if nothing was under way, its begin
  bool is_first_ = true;       // none has ended since something is under way
  bool is_first_known_ = false;
  double first_ns_ = 0;       // from idle to the first page; 0: not known
  double pages_ = 0;          // that ended while others were under way, and
  double pages_took_ns_ = 0;  // how long they took; both fade
};

// How long an engine takes to compute blocks of a model.
class ComputeCost {
 public:
  // Blocks [first, first + count) of a prompt took `ns`.
  void took(std::uint64_t first, std::uint64_t count, std::uint64_t took_ns);
  bool is_known() const { return weight_ > 0; }
  double ns(std::uint64_t block) const {
    return block_ns_ + position_ns_ * (static_cast<double>(block) + 0.5);
  }

 private:
  double weight_ = 0;
  double x_ = 0, xx_ = 0, y_ = 0, xy_ = 0;  // sums of least squares; they fade
  double block_ns_ = 0, position_ns_ = 0;
};

enum class RestoreKind : std::uint8_t { kRead, kCompute, kSplit };

struct RestoreChoice {
  RestoreKind kind = RestoreKind::kRead;
  std::size_t compute_end = 0;  // stored blocks before it are computed, those from it on are read
  double ns = 0;                // as chosen, as far as it is known,
  double read_ns = 0;           // and if all were read
  double compute_ns = 0;        // or computed
};

// `is_stored`: of the blocks at the start of a prompt, which have to be read or computed; the
// others are in memory. `overlaps`: the engine computes while others are read. `before`: the kind
// of the last choice, which stays unless another is sooner by a fifth.
RestoreChoice choose_restore(std::span<const bool> is_stored, std::uint64_t pages_per_block,
                             const ReadCost::Estimate& read, const ComputeCost& compute,
                             bool overlaps, RestoreKind before);

}  // namespace kvmem::policy
