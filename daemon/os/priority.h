// Priority: this process before those whose threads wait for it.
#pragma once

namespace kvmem::os {

// The calling thread, and those it starts later, run as soon as they are woken, as far as the
// kernel lets them: a higher weight (with CAP_SYS_NICE), and from Linux 6.12 on a slice so short
// that the scheduler takes the core from whoever computes at once, and not at the end of that one's
// own.
void go_first();

}  // namespace kvmem::os
