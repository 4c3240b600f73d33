// Loader: the dynamic loader's own functions. kvmem stands before those that others call, and with
// that before its own references to them, whatever version they name.
//
// Any thread, at any time, also from inside an allocation.
#pragma once

#include <dlfcn.h>

namespace kvmem::cuda {

using DlSym = void* (*)(void* handle, const char* name);
using DlVsym = void* (*)(void* handle, const char* name, const char* version);
using DlOpen = void* (*)(const char* file, int mode);
using DlMopen = void* (*)(Lmid_t space, const char* file, int mode);
DlSym real_dlsym();
DlVsym real_dlvsym();
DlOpen real_dlopen();
DlMopen real_dlmopen();

// Whether the object with this code comes before kvmem's in the order of lookups, so that kvmem is
// among the next it may ask for.
bool is_before_us(const void* code);

}  // namespace kvmem::cuda
