// Keeper: the thread that sees to device regions while the engine does other things. It buries what
// was freed, brings to the device what is shared, parks the process (its GPUs' memory goes back to
// the driver, its bytes into host regions) and wakes it when a call comes, gives memory back to the
// ledger, and tells the daemon.
//
// It alone closes the gate for that: to an engine's thread, waiting for all that others have
// started could be waiting for itself.
//
//   awake   -> parking   the daemon asks, or the engine has been idle for KVMEM_PARK_AFTER
//   parking -> parked    the gate is closed, pages are stored, pools are empty
//   parking -> waking    a call is held at the gate; or there is no memory to store in
//   parked  -> waking    a call is held at the gate, or the daemon asks
//   waking  -> awake     all pages are back; the gate opens
//
// Any thread but the agent's where it says so: what a thread starts has its descriptors.
#pragma once

#include <cstdint>

#include "wire/protocol.h"

namespace kvmem::device {

void start_keeper();
// There are regions to bury, or to tell the daemon of.
void wake_keeper();
// The same, for an allocation that needs room: waits until the keeper has tried, or for
// `timeout_ns`.
void await_keeper(std::uint64_t timeout_ns);
// Counted up after each try.
bool any_freed();

// Agent thread: carries out kPark, kWake, kGiveBack, by asking the keeper. 0 or -errno.
int carry_out(const wire::AgentCommand& command);
// As kvmem_park(). REQUIRES: not inside the gate.
int park_and_wait(const char* only);
// Agent thread: the daemon is another one.
void tell_all();

}  // namespace kvmem::device
