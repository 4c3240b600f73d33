// Which page to give up: the one whose absence costs least per unit of time. A page expected back
// in `next_use` page uses costs a read then, and a write now if it is dirty:
//   score = next_use / cost, highest first
// For pages that come around in turn this is "the one just used" (what MIN does); for pages with
// frequencies it is "the rarest". Pure.
#pragma once

#include "model/moves.h"
#include "model/page.h"

namespace kvmem::policy {

struct Victim {
  double next_use = 0;  // expected, in page uses
  model::Refetch refetch = model::Refetch::kRead;
  model::Advice advice = model::Advice::kNormal;
  double crowd = 0;       // 0..1: the pages used just before and after it are resident as well
  bool presumed = false;  // mapped: its last use was not seen
  bool unused = false;    // sampled or fetched ahead, and not used when it should have been
};

// Larger goes first; always > 0.
double victim_score(const Victim& victim);

}  // namespace kvmem::policy
