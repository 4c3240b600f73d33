// Parking: this process's GPU memory in host regions, and the gate closed, until it is woken.
//
// The keeper's thread only, but for the banks.
#pragma once

#include <cstddef>

#include "base/status.h"

namespace kvmem::device {

// Stores all pages that may move of regions whose tag is `only` (empty: of all), and gives the
// memory back to the driver. OK: the gate is closed, until wake(). kBusy: the engine is at work, or
// began to be; any error: all is as it was.
Status park(const char* only, const char* why);
// More of it. REQUIRES: parked. After an error, too, the process stays parked.
Status park_more(const char* only, const char* why);
// Every page back, then the gate opens. Waits for as long as others leave no room.
void wake();

// Memory for what is stored: a host region, or without a daemon the process's own. No child of a
// fork has a use for it. Any thread. Null: there is none.
unsigned char* make_bank(std::size_t size_bytes, const char* tag);
// Frees it; null: nothing is stored.
void give_up_bank(unsigned char* bank, std::size_t size_bytes);

}  // namespace kvmem::device
