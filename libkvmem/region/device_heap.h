// Device heap: what an engine allocates on its GPUs, as device regions; behind cuMemAlloc and its
// kin. Each GPU has two pools, of its own memory and of host memory, made at the first allocation
// there or when the engine first asks how much there is.
//
// Any thread. Nothing here starts, loads or asks anything before that.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "region/device.h"
#include "region/gate.h"

namespace kvmem::device {

// The size from which an allocation is worth a region; SIZE_MAX: none, the device path is off.
// Constant after install().
extern std::size_t g_threshold_bytes __attribute__((visibility("hidden")));
void install();
// In a child of fork, where the driver does not work any more: nothing is held back.
void forget();
inline bool is_on() { return g_threshold_bytes != SIZE_MAX; }

// Every call of the engine that starts work passes it; who edits page tables closes it.
extern Gate g_gate __attribute__((visibility("hidden")));

// As cuMemAlloc. CUDA_ERROR_NOT_SUPPORTED: kvmem cannot serve, make the real call.
CUresult allocate(CUdeviceptr* out, std::size_t size_bytes);
// As cuMemAllocAsync: what was freed on the same stream is used again without waiting. `stream` is
// one stream to every thread, or kNoStream. With several GPUs a stream may be another one's than
// the current: not served.
CUresult allocate_on(CUstream stream, CUdeviceptr* out, std::size_t size_bytes);
inline const CUstream kNoStream = reinterpret_cast<CUstream>(~std::uintptr_t{0});

struct Found {
  CUdeviceptr begin = 0;
  std::size_t size_bytes = 0;   // as asked for
  CUcontext context = nullptr;  // current when it was allocated
  CUdevice device = 0;
};
// False: not in a region.
bool find(CUdeviceptr at, Found* out);

// As cuMemFree: waits for the current context's work. False: `at` is not where a region begins.
// Addresses and memory go when the gate has been closed; a thread of kvmem's sees to that, so that
// no thread of the engine's waits for more than it would have.
bool release(CUdeviceptr at, CUresult* result);

// As cuMemFreeAsync: nothing waits. False: `at` is not where a region begins.
bool release_on(CUstream stream, CUdeviceptr at);
// A stream ends, and its handle may become another one's.
void forget_stream(CUstream stream);

// The pages that [at, at + size_bytes) touches go to `place`, with what is in them; as many as
// there is room for. The engine waits meanwhile, if it has work to start: 64 pages at a time.
// kNotFound: not in one region; kUnsupported: fixed, or there is no such place; kNoMemory: no room
// for all; kBusy: the engine's work came first, ask again.
// `*moved` counts those that went, no more than `pages_max`. REQUIRES: not inside the gate.
Status move(CUdeviceptr at, std::size_t size_bytes, DevicePlace place, std::uint32_t* moved,
            std::uint32_t pages_max = UINT32_MAX);

// The longest piece of [at, at + size_bytes), from its start, that lies in one place: what a copy
// across both would do is not defined, so copies are made piece by piece. Cheap while nothing is in
// host memory. REQUIRES: inside the gate, until the copy has been started.
std::size_t piece(CUdeviceptr at, std::size_t size_bytes);

// The region around `at` stays where it is for good: a graph has a copy of it, which is made in one
// piece, and by what was behind the addresses when it was recorded. REQUIRES: inside the gate.
void fix(CUdeviceptr at);

// The region around `at` is the device's own memory from now on and stays there, because others are
// given it: a handle or a descriptor of it, after which what they reach could not be exchanged.
// What is in host memory comes to the device first. Nobody gets its pages after it. CUDA_SUCCESS
// also where `at` is in no region; CUDA_ERROR_OUT_OF_MEMORY: the device has no room for it;
// CUDA_ERROR_NOT_SUPPORTED: it cannot move, or not soon enough. REQUIRES: not inside the gate.
CUresult share(CUdeviceptr at);
// Nothing came of it.
void unshare(CUdeviceptr at);
// The driver gives no legacy IPC handle of memory that is mapped by hand. If that is why it gave
// none of `at`: says which setting helps.
void explain_ipc(CUdeviceptr at);

// Where each 2 MiB page is that [at, at + size_bytes) touches, a byte for each: `device`, `host`,
// `stored` or `lost`; where a device's pages are smaller, the first of them that is found farthest
// away. kNotFound: not in one region.
struct PageNames {
  unsigned char device, host, stored, lost;
};
Status residency(CUdeviceptr at, std::size_t size_bytes, const PageNames& names,
                 unsigned char* states);

// Gives back to the driver what waits to be used again. False: there was nothing.
bool shrink();

// A library (null: the program) is opened in a way that leads past kvmem: says so, as far as there
// is anything to pass by.
void passes_by(const char* file, const char* how);

// What the driver says of the current device's memory, as it would be if the device had what
// KVMEM_HBM grants and KVMEM_GPU_CAPACITY adds, and the pools held nothing.
void adjust_info(std::size_t* free_bytes, std::size_t* total_bytes);

}  // namespace kvmem::device
