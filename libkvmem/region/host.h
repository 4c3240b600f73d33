// Host regions, as engine threads see them: each call does what the kernel's call of the same name
// would have done to the engine's memory, had kvmem not been there.
//
// Any thread. Results are 0, an address or -errno; nothing here sets errno. Calls may wait for the
// daemon (bounded), or, where they must first bring a stored page back, for as long as a touch of
// that page would have waited.
#pragma once

#include <cstddef>
#include <cstdint>

#include "region/arena.h"
#include "wire/protocol.h"

namespace kvmem::host {

// The size at and above which an allocation is worth a region: g_settings.threshold_bytes when
// intercepting, else never. Read on the path of every malloc().
extern std::size_t g_threshold_bytes __attribute__((visibility("hidden")));

// Once, before anything else: reads the environment (main's third argument).
void install(char* const* environment);

// A fresh zero-filled region, 2 MiB aligned, for malloc and friends (`is_heap`: release() frees
// it) or for mmap. nullptr: kvmem cannot serve, pass through.
void* allocate(std::size_t size_bytes, bool is_heap, const char* tag = nullptr);
// As allocate(is_heap), with the reason: 0, or -errno of kvmem_region_create. Quotas count
// `bytes_max`, if that is not 0: touching much more of it, at a time, raises SIGBUS.
int create(std::size_t size_bytes, std::size_t bytes_max, const char* tag, void** out);
// A read-only region whose bytes are the file's, in place of mmap(nullptr, size_bytes, PROT_READ,
// flags, fd, offset). nullptr: pass through. REQUIRES: offset is a multiple of 2 MiB.
void* map_file(std::size_t size_bytes, int flags, int fd, std::uint64_t offset);

// REQUIRES of the following: touches_arena(address, size_bytes).

// Frees what allocate(is_heap) returned. False: not such a pointer.
bool release(void* p);
// Bytes asked for, or 0 when `p` is no heap region.
std::size_t size_of(const void* p);
// Within the region's pages: changes the size in place. False: it does not fit.
bool resize_in_place(void* p, std::size_t size_bytes);

// Whole pages of one region. At [address, address + size_bytes) lies from now on what lies at
// `source` in the beginning, until it is called with `source` = `address`. The engine touches none
// of this meanwhile. -ENOSPC: too much lies at several addresses; -ENOTCONN: it is no daemon's.
int alias(std::uint64_t address, std::size_t size_bytes, std::uint64_t source);
// What lies there in the beginning, wherever it lies now, is zeroes again and takes no memory.
int drop_pages(std::uint64_t address, std::size_t size_bytes);
// What lies there in the beginning, wherever it lies now, is advised on.
int advise_pages(std::uint64_t address, std::size_t size_bytes, wire::Advice advice);

int unmap(std::uint64_t address, std::uint64_t size_bytes);
int protect(std::uint64_t address, std::uint64_t size_bytes, int prot);
int advise(std::uint64_t address, std::uint64_t size_bytes, int advice);
int lock(std::uint64_t address, std::uint64_t size_bytes, int flags);  // mlock2's
int unlock(std::uint64_t address, std::uint64_t size_bytes);
// A MAP_FIXED mapping inside the arena. Address or -errno.
long map_fixed(std::uint64_t address, std::uint64_t size_bytes, int prot, int flags, int fd,
               std::uint64_t offset);
// mremap where the old range or the fixed target is in the arena. Address or -errno.
long remap(std::uint64_t old_address, std::uint64_t old_bytes, std::uint64_t new_bytes, int flags,
           std::uint64_t new_address);

// The calling thread is in pthread_exit.
void thread_exits();
// An agent may have been started after the main thread left; see region/last_thread.cc.
void keep_descriptors();
// In a child of fork: its one thread is its main thread.
void forget_last_thread();

// Around fork, in this order; see region/fork.cc.
void fork_prepare();
void fork_parent();
void fork_child();
// The child handler's allocations must not wait for a lock of the parent's allocator: called
// before and after the child starts its agent.
extern void (*g_child_allocator)(bool is_on);

}  // namespace kvmem::host
