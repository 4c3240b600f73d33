// The loader's calls by which an engine comes to the driver. Each goes on by a jump, so that the
// loader sees the true caller: from it RTLD_NEXT is counted and paths are searched.
//
// Two ways lead past kvmem, and are left to be what they are: a library opened with RTLD_DEEPBIND
// finds libc and the driver before kvmem, and one that dlmopen() loads apart has others of its own.
// That is said, once.
#include <dlfcn.h>
#include <string.h>

#include "cuda/loader.h"
#include "preload/cuda.h"
#include "region/device_heap.h"

#define KVMEM_INTERPOSED extern "C" __attribute__((visibility("default")))

namespace cuda = kvmem::cuda;
namespace device = kvmem::device;

namespace {

bool is_driver_name(const char* name) {
  return name[0] == 'c' && name[1] == 'u' && name[2] >= 'A' && name[2] <= 'Z';
}

__attribute__((noinline, cold)) void* find_driver_name(void* handle, const char* name) {
  return kvmem::preload::stand_before(name, cuda::real_dlsym()(handle, name));
}

bool is_lookup(const char* name) {
  return name[0] == 'd' && name[1] == 'l' &&
         (strcmp(name, "dlsym") == 0 || strcmp(name, "dlvsym") == 0);
}

// A lookup by version passes over this library, whose names carry none: what it finds is replaced
// if without a version it would be ours.
__attribute__((noinline, cold)) void* find_version(void* handle, const char* name,
                                                   const char* version) {
  void* found = cuda::real_dlvsym()(handle, name, version);
  if (found == nullptr) return nullptr;
  if (is_driver_name(name)) return kvmem::preload::stand_before(name, found);
  void* ours = strcmp(name, "dlsym") == 0 ? reinterpret_cast<void*>(&dlsym)
                                          : reinterpret_cast<void*>(&dlvsym);
  void* scope = handle == RTLD_NEXT ? RTLD_DEFAULT : handle;
  return cuda::real_dlsym()(scope, name) == ours ? ours : found;
}

}  // namespace

KVMEM_INTERPOSED void* dlsym(void* handle, const char* name) noexcept {
  if (__builtin_expect(is_driver_name(name), 0)) return find_driver_name(handle, name);
  return cuda::real_dlsym()(handle, name);
}

KVMEM_INTERPOSED void* dlvsym(void* handle, const char* name, const char* version) noexcept {
  if (__builtin_expect(is_driver_name(name) || is_lookup(name), 0) &&
      (handle != RTLD_NEXT || cuda::is_before_us(__builtin_return_address(0)))) {
    return find_version(handle, name, version);
  }
  return cuda::real_dlvsym()(handle, name, version);
}

KVMEM_INTERPOSED void* dlopen(const char* file, int mode) noexcept {
  if (__builtin_expect((mode & RTLD_DEEPBIND) != 0, 0)) {
    device::passes_by(file, " is opened with RTLD_DEEPBIND");
  }
  return cuda::real_dlopen()(file, mode);
}

KVMEM_INTERPOSED void* dlmopen(Lmid_t space, const char* file, int mode) noexcept {
  if (space != LM_ID_BASE) device::passes_by(file, " is loaded apart by dlmopen");
  return cuda::real_dlmopen()(space, file, mode);
}
