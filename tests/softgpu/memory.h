// Memory: reservations of addresses, physical handles, and what is mapped where. Enforces the
// driver's rules; asks no question about time (whether work still uses a mapping is found out by
// the work itself, as on a GPU). Any thread.
//
// handle       a memfd. Lives while something refers to it: its creator, an import, a mapping. Its
//              name says what it is, to a process that gets the descriptor alone.
// reservation  addresses that nothing else gets. PROT_NONE until memory is mapped and access given.
// mapping      one whole handle at one place of a reservation. One handle may be mapped at several.
// allocation   what cuMemAlloc gives: a reservation with its own mapped handle, out of reach of the
//              calls above. Another process may open it (legacy IPC): its memfd, by /proc.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace softgpu {

struct Physical {
  ~Physical();
  int fd = -1;
  std::size_t bytes = 0;
  CUmemAllocationProp prop{};
  bool imported = false;  // counted where it was created
  bool on_device() const { return prop.location.type == CU_MEM_LOCATION_TYPE_DEVICE; }
};

enum class Owner : std::uint8_t { kVmm, kAlloc, kHost, kIpc };

// Where a pointer points.
struct Place {
  CUdeviceptr base = 0;  // of the reservation, allocation or registered host range
  std::size_t bytes = 0;
  Owner owner = Owner::kVmm;
  std::shared_ptr<Physical> physical;  // null: nothing is mapped there
  CUdeviceptr mapping = 0;             // where that begins
  std::uint64_t id = 0;                // of the buffer, never used again
  bool sync_memops = false;
};

class Memory {
 public:
  static Memory& get();

  CUresult reserve(CUdeviceptr* out, std::size_t bytes, std::size_t alignment, CUdeviceptr hint);
  CUresult free_reservation(CUdeviceptr at, std::size_t bytes);

  CUresult create(CUmemGenericAllocationHandle* out, std::size_t bytes,
                  const CUmemAllocationProp& prop);
  CUresult retain(CUmemGenericAllocationHandle* out, CUdeviceptr at);
  CUresult release(CUmemGenericAllocationHandle handle);
  CUresult properties(CUmemGenericAllocationHandle handle, CUmemAllocationProp* out);
  CUresult export_fd(CUmemGenericAllocationHandle handle, int* out);
  CUresult import_fd(CUmemGenericAllocationHandle* out, int fd);

  CUresult map(CUdeviceptr at, std::size_t bytes, CUmemGenericAllocationHandle handle);
  CUresult unmap(CUdeviceptr at, std::size_t bytes);
  CUresult set_access(CUdeviceptr at, std::size_t bytes, const CUmemAccessDesc* desc,
                      std::size_t count);
  CUresult access(unsigned long long* flags, const CUmemLocation& location, CUdeviceptr at);

  CUresult alloc(CUdeviceptr* out, std::size_t bytes);
  // kAlloc and kHost alike.
  CUresult free(CUdeviceptr at, Owner owner);
  CUresult alloc_host(void** out, std::size_t bytes);
  CUresult register_host(void* at, std::size_t bytes);
  CUresult unregister_host(void* at);

  CUresult ipc_handle(CUipcMemHandle* out, CUdeviceptr at);
  CUresult ipc_open(CUdeviceptr* out, const CUipcMemHandle& handle);
  CUresult ipc_close(CUdeviceptr at);
  // Of an allocation, or of whole mappings of memory that was made for it.
  CUresult dma_buf(int* out, CUdeviceptr at, std::size_t bytes);

  CUresult set_sync_memops(CUdeviceptr at, bool on);
  bool find(CUdeviceptr at, Place* out);
  // False where part of the range is memory of the device and part is the host's: what a copy
  // across both does is documented nowhere.
  bool in_one_place(CUdeviceptr at, std::size_t bytes);
  std::size_t device_bytes();
  std::uint64_t live(int kind);

 private:
  struct Range {
    std::size_t bytes = 0;
    Owner owner = Owner::kVmm;
    bool registered = false;  // host memory of the caller's
    std::uint64_t id = 0;
    std::size_t mapped = 0;    // mappings in it
    std::uint64_t opened = 0;  // kIpc: times
    bool sync_memops = false;
  };
  struct Mapping {
    std::size_t bytes = 0;
    std::shared_ptr<Physical> physical;
    CUmemAccess_flags device = CU_MEM_ACCESS_FLAGS_PROT_NONE;
    CUmemAccess_flags host = CU_MEM_ACCESS_FLAGS_PROT_NONE;
  };
  struct Handle {
    std::shared_ptr<Physical> physical;
    std::uint64_t references = 0;
  };

  CUresult create_locked(std::shared_ptr<Physical>* out, std::size_t bytes,
                         const CUmemAllocationProp& prop);
  std::map<CUdeviceptr, Range>::iterator range_of(CUdeviceptr at);
  std::map<CUdeviceptr, Mapping>::iterator mapping_of(CUdeviceptr at);
  // Memory of the device at addresses of its own.
  CUresult place_locked(CUdeviceptr* out, std::shared_ptr<Physical> physical, const Range& range);
  // The mappings that tile [at, at + bytes) exactly; false where they do not.
  bool whole_mappings(CUdeviceptr at, std::size_t bytes);
  bool handle(CUmemGenericAllocationHandle handle, Handle** out);

  std::mutex mu_;
  std::map<CUdeviceptr, Range> ranges_;
  std::map<CUdeviceptr, Mapping> mappings_;
  std::unordered_map<CUmemGenericAllocationHandle, Handle> handles_;
  CUmemGenericAllocationHandle next_handle_ = 0x1000;
  std::uint64_t next_id_ = 1;
};

}  // namespace softgpu
