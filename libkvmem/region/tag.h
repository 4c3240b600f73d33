// The tag: what an engine calls the memory that it allocates next, for kvmemctl.
#pragma once

namespace kvmem {

// Of the calling thread: what it has set, else KVMEM_TAG, else the program's name. Never null, at
// most 63 bytes.
const char* tag();
// Null or empty: back to the process's.
void set_tag(const char* text);

}  // namespace kvmem
