// Rights of this process.
#pragma once

#include "base/status.h"

namespace kvmem::os {

// Gives up every capability for good, unless the process is root's: what an ordinary user's daemon
// was lent for its start it has no further use for. `keeps_nice`: but for CAP_SYS_NICE, should it
// have that, with which pages move between memory nodes. REQUIRES: no other thread yet.
Status drop_capabilities(bool keeps_nice);

// Whether it may move pages that other processes have mapped too: CAP_SYS_NICE.
bool may_move_shared_pages();

}  // namespace kvmem::os
