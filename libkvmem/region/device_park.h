// Parking: this process's GPU memory in host regions, and the gate closed, until it is woken.
//
// The keeper's thread only.
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

// Frees what a region's pages are stored in; null: nothing is.
void give_up_bank(unsigned char* bank, std::size_t size_bytes);

}  // namespace kvmem::device
