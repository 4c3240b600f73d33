// Calls by which others get at an engine's memory, beside its addresses: another process, a network
// card, a multicast object. What they are given is the device's own memory and stays there.
//
// All have the driver's own names, by label, as in cuda_copy.cc.
#include <cuda.h>

#include "preload/cuda.h"
#include "region/device_heap.h"

namespace {

using kvmem::preload::Real;

// `call` gives others the memory around `at`.
template <class Call>
CUresult give(CUdeviceptr at, Call call) {
  if (!kvmem::device::is_on()) return call();
  if (const CUresult bad = kvmem::device::share(at); bad != CUDA_SUCCESS) return bad;
  const CUresult result = call();
  if (result != CUDA_SUCCESS) kvmem::device::unshare(at);
  return result;
}

}  // namespace

KVMEM_EXPORTED_CALL(kvmem_range_handle, "cuMemGetHandleForAddressRange", 5, void*, CUdeviceptr,
                    std::size_t, CUmemRangeHandleType, unsigned long long) {
  static constinit Real real("cuMemGetHandleForAddressRange");
  return give(b, [&] { return real(a, b, c, d, e); });
}

KVMEM_EXPORTED_CALL(kvmem_retain_handle, "cuMemRetainAllocationHandle", 2,
                    CUmemGenericAllocationHandle*, void*) {
  static constinit Real real("cuMemRetainAllocationHandle");
  return give(reinterpret_cast<CUdeviceptr>(b), [&] { return real(a, b); });
}

KVMEM_EXPORTED_CALL(kvmem_multicast_bind, "cuMulticastBindAddr", 5, CUmemGenericAllocationHandle,
                    std::size_t, CUdeviceptr, std::size_t, unsigned long long) {
  static constinit Real real("cuMulticastBindAddr");
  return give(c, [&] { return real(a, b, c, d, e); });
}

// Who sets it is about to let another device write there, whether or not the driver can do it.
KVMEM_EXPORTED_CALL(kvmem_pointer_set, "cuPointerSetAttribute", 3, const void*, CUpointer_attribute,
                    CUdeviceptr) {
  static constinit Real real("cuPointerSetAttribute");
  if (b == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS && kvmem::device::is_on()) {
    if (const CUresult bad = kvmem::device::share(c); bad != CUDA_SUCCESS) return bad;
  }
  return real(a, b, c);
}

// Of memory that is mapped by hand there is no such handle.
KVMEM_EXPORTED_CALL(kvmem_ipc_handle, "cuIpcGetMemHandle", 2, CUipcMemHandle*, CUdeviceptr) {
  static constinit Real real("cuIpcGetMemHandle");
  const CUresult result = real(a, b);
  if (result != CUDA_SUCCESS && kvmem::device::is_on()) kvmem::device::explain_ipc(b);
  return result;
}

namespace kvmem::preload {

Hooks share_hooks() {
  static const Hook table[] = {
      {"cuMemGetHandleForAddressRange", "cuMemGetHandleForAddressRange",
       reinterpret_cast<void*>(&kvmem_range_handle), 11070},
      {"cuMemRetainAllocationHandle", "cuMemRetainAllocationHandle",
       reinterpret_cast<void*>(&kvmem_retain_handle), 11000},
      {"cuMulticastBindAddr", "cuMulticastBindAddr", reinterpret_cast<void*>(&kvmem_multicast_bind),
       12010},
      {"cuPointerSetAttribute", "cuPointerSetAttribute",
       reinterpret_cast<void*>(&kvmem_pointer_set), 6000},
      {"cuIpcGetMemHandle", "cuIpcGetMemHandle", reinterpret_cast<void*>(&kvmem_ipc_handle), 4010},
  };
  return {table, sizeof table / sizeof table[0]};
}

}  // namespace kvmem::preload
