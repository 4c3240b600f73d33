// Frequency: how often each page is accessed, from the few accesses that are seen. What Order
// learns is where a page stands among the others; what is asked here is accesses a second, which
// can be compared between pages that have no order, and between tiers of which both are mapped.
//
// Of each page two sums are kept, both halved every half-life: accesses seen, and the time in which
// one would have been seen (exposure). Every source says the same in these terms:
//   touched after being unmapped for t     one access in t
//   unmapped for t and not touched         none in t: also true while it is not over yet
//   missed after being absent for t        as touched
//   accessed bit set after t               at least one in t: as many as are expected then (an EM
//                                          step), which where it is always set says little
//   accessed bit clear after t             none in t
// For accesses at random moments their ratio is the rate that explains the observations best.
// Accesses at regular ones, a page once a token, come twice as soon after a random moment as at
// random ones of the same rate; unmapping it again when it was touched avoids that (the second t is
// a whole interval).
//
// A page that was observed little is taken to be as usual as it was observed little: kPriorAccesses
// accesses are added to those seen, with the exposure that they take at the rate of all pages
// together. Rates of pages differ by orders of magnitude, and that exposure would hide a hot page,
// of which much is seen in no time: it is added in the share that the added accesses have in all.
// So no access seen gives what is usual, and ten of them are believed whatever is usual.
//
// A page that becomes hot would long carry the time in which it was not. So an access that comes so
// soon that another rate explains it better makes what was known before it fade at once, the more
// the better the other explains it: any rate within kSpread e-folds, to which one page in 1 /
// kChange is thought to change between two accesses that are seen. By half at most, since one page
// in a hundred is accessed within 1/100 of the usual wait by chance. The other direction needs no
// such rule: time passes by itself. (tests/bench/run.sh heat --sampling, phase, at one sample a
// page and second and a half-life of 8 s: noticed after 4.5 s, without it 10.2 s.)
//
// 4 bytes a page: logarithms of both sums, in steps of 0.07 %, rounded up or down by lot, so that
// many small observations are not lost. Observations are O(1); advance() is O(pages), four times a
// half-life. Time is handed in. Owned by one thread. A sample is best left open until it is
// touched: of samples that are given up early only those that came soon are touched, which looks
// like a change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "heat/page_ids.h"
#include "heat/random.h"

namespace kvmem::heat {

class Frequency {
 public:
  static constexpr double kPriorAccesses = 0.1;
  static constexpr double kSpread = 10;
  static constexpr double kChange = 0.25;

  // REQUIRES: half_life_ns > 0.
  explicit Frequency(std::uint64_t half_life_ns, std::uint64_t seed = 1)
      : half_life_ns_(half_life_ns), random_(seed) {}

  // Ids below `pages` may be used.
  void resize(std::size_t pages) { pages_.resize(pages); }
  std::size_t size() const { return pages_.size(); }
  // Pages [first, first + count) are as if never observed.
  void forget(PageId first, std::uint32_t count);

  // It had no mapping, or no bytes, for `ns`, and was then accessed. `told_ns` of those have been
  // told by untouched_for().
  void touched_after(PageId id, std::uint64_t ns, std::uint64_t told_ns = 0);
  // It had none for `ns`, or for so much longer than was told, and was not.
  void untouched_for(PageId id, std::uint64_t ns) { observe(id, 0, ns); }
  // Its accessed bit was cleared `ns` ago.
  void scanned(PageId id, std::uint64_t ns, bool accessed);

  // What was observed fades. REQUIRES: now_ns is no less than it was.
  void advance(std::uint64_t now_ns);

  // Accesses a second, as expected now.
  double per_second(PageId id) const;
  // How far off that may well be: the posterior's standard deviation.
  double deviation(PageId id) const;
  // Accesses seen, faded. 0: all that is known is that none was, or nothing.
  double seen(PageId id) const;
  // Seconds in which an access would have been seen, faded.
  double exposure_s(PageId id) const;
  // Of all pages that are observed at all, the rate: what a page is taken to have that is not.
  double usual_per_second() const;

  std::size_t metadata_bytes() const { return pages_.capacity() * sizeof(Page); }

 private:
  struct Page {
    std::uint16_t accesses = 0;  // packed: 0 is none
    std::uint16_t exposure = 0;  // packed
  };
  static_assert(sizeof(Page) == 4);

  void observe(PageId id, double accesses, std::uint64_t ns);
  std::uint16_t pack(double value, double least);

  std::vector<Page> pages_;
  std::uint64_t half_life_ns_;
  Random random_;
  std::uint64_t faded_ns_ = 0;  // up to when; 0: not begun
  double all_accesses_ = 0;     // of all pages, faded
  double all_exposure_ns_ = 0;
};

}  // namespace kvmem::heat
