#include "policy/victim.h"

#include <algorithm>

namespace kvmem::policy {

double victim_score(const Victim& victim) {
  double score = std::max(victim.next_use, 1.0);
  switch (victim.refetch) {
    case model::Refetch::kFree:
      // No read and no write, but a fault and 2 MiB to zero: about 1/8 of a read.
      score *= 8;
      break;
    case model::Refetch::kRead:
      break;
    case model::Refetch::kWrite:
      score /= 2;
      break;
  }
  // A page kept on a guess must look a third worse than one that was seen: trading equals for
  // equals gains nothing, and the order of the streamed ones is known.
  if (victim.presumed) score *= 0.75;
  // What stays should lie evenly among what streams, so that reading goes on while resident pages
  // are used. 0.75 * 2 = 1.5: of two pages used in turn, the one in the midst of residents goes
  // instead if it was used within the last third of a round; that costs at most a third of a read,
  // once.
  score *= 1 + victim.crowd;
  if (victim.unused) score *= 2;
  // Advice outweighs any estimate but not a whole queue of them.
  if (victim.advice == model::Advice::kHot) score /= 16;
  if (victim.advice == model::Advice::kCold) score *= 16;
  return score;
}

}  // namespace kvmem::policy
