/* kvmem: memory for LLM engines that lives on more than one tier.
 *
 * An engine needs none of this: LD_PRELOAD=libkvmem.so makes its large allocations regions. An
 * engine that knows what it will touch next says so here and gains more.
 *
 * A region is a range of ordinary memory, in pages of 2 MiB. A page that is not in DRAM is brought
 * back when it is touched; the thread that touched it waits. free() also frees a region.
 *
 * Every function may be called from any thread, at any time after the library was loaded, but not
 * from a signal handler. None changes errno. They return 0 or a negative errno value:
 *   -EINVAL    an argument is wrong
 *   -ENOMEM    no memory, address space or quota; or part of a range is no region
 *   -ENOTSUP   kvmem is switched off (KVMEM=off)
 *   -ENOTCONN  no daemon can be reached now; what exists stays valid
 *   -EAGAIN    no thread could be started; or see kvmem_advise
 */
#ifndef KVMEM_H
#define KVMEM_H

/* NOLINTBEGIN(readability-identifier-naming, modernize-*): C's names. */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define KVMEM_NOEXCEPT noexcept
#else
#define KVMEM_NOEXCEPT
#endif

#define KVMEM_VERSION 0x000100u /* 0.1.0: major 16 bits, minor 8, patch 8 */
#define KVMEM_PAGE_BYTES ((size_t)2 << 20)

/* Of the library that is loaded, in the form of KVMEM_VERSION. */
uint32_t kvmem_version(void) KVMEM_NOEXCEPT;

/* A static English text for a negative errno value that a function here returned. Never NULL. */
const char* kvmem_strerror(int error) KVMEM_NOEXCEPT;

/* Structs that grow begin with their size; set it to sizeof and zero the rest. */
struct kvmem_region_options {
  size_t size;     /* of this struct, bytes */
  const char* tag; /* shown by kvmemctl; at most 63 bytes are kept; may be NULL */
};

/* Makes a region of `size_bytes` zero bytes, aligned to 2 MiB, readable and writable, and stores
 * its address. `options` may be NULL. Unlike malloc under preload this never falls back to other
 * memory: without a daemon it returns -ENOTCONN. */
int kvmem_region_create(size_t size_bytes, const struct kvmem_region_options* options,
                        void** address) KVMEM_NOEXCEPT;

/* Frees a region. -EINVAL: `address` is not the start of one. */
int kvmem_region_destroy(void* address) KVMEM_NOEXCEPT;

/* What the calling thread allocates from now on is called `tag` by kvmemctl, which can also park it
 * by that name; at most 63 bytes are kept. NULL: by the process's (KVMEM_TAG, else the program's
 * name) again. */
void kvmem_set_tag(const char* tag) KVMEM_NOEXCEPT;

/* Gives this process's GPU memory back to the driver, of what is called `tag` (NULL: all), until
 * its next call that needs the GPU: that one waits until every page is back, with the same bytes,
 * and for as long as other processes leave no room. Meanwhile they are in host regions, or without
 * a daemon in ordinary memory. What a captured graph copies stays. Returns once it is done.
 * -ENOTSUP: no GPU memory is managed here; -EAGAIN: the GPU is at work, or a stream is captured. */
int kvmem_park(const char* tag) KVMEM_NOEXCEPT;

/* Advice is a hint; only KVMEM_PIN can fail for want of quota. */
enum kvmem_advice {
  KVMEM_NORMAL = 0,     /* forget earlier advice */
  KVMEM_HOT = 1,        /* will be used often */
  KVMEM_COLD = 2,       /* will not be used soon */
  KVMEM_SEQUENTIAL = 3, /* will be read in ascending order */
  KVMEM_PIN = 4,        /* keep in DRAM until unpinned */
  KVMEM_UNPIN = 5,
  KVMEM_PREFETCH = 6 /* bring back now, in the background */
};

/* For the pages that [address, address + size_bytes) touches.
 *
 * In memory of a GPU (cuMemAlloc and its kin, with KVMEM_DEVICE=1) the range lies within one
 * allocation, and pages move before this returns, once the work that was started is done: with HOT,
 * PIN and PREFETCH into the GPU's own memory, with COLD into host memory at the same address. Not
 * while the calling thread captures a stream. PIN: -EAGAIN if the engine was too busy; it stays
 * until COLD is said of it, UNPIN means nothing. */
int kvmem_advise(const void* address, size_t size_bytes, enum kvmem_advice advice) KVMEM_NOEXCEPT;

/* Where a page is. */
enum kvmem_page_state {
  KVMEM_FRESH = 0,    /* never written: zeroes, no memory */
  KVMEM_RESIDENT = 1, /* in DRAM; GPU memory: in the GPU's own */
  KVMEM_WRITING = 2,  /* in DRAM, being written out */
  KVMEM_STORED = 3,   /* in the page store; GPU memory: parked */
  KVMEM_ORIGIN = 4,   /* in the file it came from */
  KVMEM_FILLING = 5,  /* on its way to DRAM */
  KVMEM_LOST = 6,     /* no valid copy is left: access raises SIGBUS */
  KVMEM_HOST = 8,     /* GPU memory: in host memory, at the GPU's address */
  KVMEM_PLAIN = 255   /* ordinary memory of this process, no longer managed */
};

/* Writes one byte, an enum kvmem_page_state, for each page that [address, address + size_bytes)
 * touches. The answer may be out of date when it arrives. */
int kvmem_residency(const void* address, size_t size_bytes, unsigned char* states) KVMEM_NOEXCEPT;

struct kvmem_statistics {
  size_t size;             /* of this struct, bytes; on return, bytes filled in */
  uint64_t regions;        /* that exist */
  uint64_t managed_bytes;  /* of regions, served by the daemon */
  uint64_t plain_bytes;    /* of regions, turned into ordinary memory */
  uint64_t fresh_bytes;    /* managed_bytes by state: */
  uint64_t resident_bytes; /*   resident and writing */
  uint64_t stored_bytes;
  uint64_t origin_bytes;
  uint64_t filling_bytes;
  uint64_t lost_bytes;
  uint32_t is_connected; /* 1: a daemon answers */
  uint32_t reserved;
};

/* Counts this process's regions; walks every page's entry (about 2 ns a page). */
int kvmem_stats(struct kvmem_statistics* stats) KVMEM_NOEXCEPT;

/* The block cache: immutable blocks of KV cache that kvmemd keeps in DRAM and in its page store,
 * across engines of one user, their restarts and its own. An engine that gets a prompt asks which
 * of its leading blocks are there, uses those where they lie, computes the rest and puts it. */

/* Stands for all tokens from the start of the prompt to the block's end: a hash of 128 bits,
 * chained from the block before it. */
struct kvmem_block_name {
  uint64_t word[2];
};

struct kvmem_cache_options {
  size_t size; /* of this struct, bytes */
  /* Of whatever else decides a block's bytes: the model and its revision, the layout, data type and
   * share of a rank. Caches of another identity have other blocks. */
  uint64_t identity[2];
  size_t block_bytes; /* of each block: at most 64 MiB; whole 2 MiB waste nothing */
};

/* Connects to the daemon's cache. One handle serves all threads of the process, one at a time; a
 * child of fork() opens its own. A daemon that has been restarted is found again by the next call,
 * and has the blocks that were stored. -ENOTCONN: no daemon; -EUSERS, -EINVAL: refused. */
struct kvmem_cache;
int kvmem_cache_open(const struct kvmem_cache_options* options,
                     struct kvmem_cache** cache) KVMEM_NOEXCEPT;

/* Ends all that has begun; no other call may be under way. NULL: nothing happens. */
void kvmem_cache_close(struct kvmem_cache* cache) KVMEM_NOEXCEPT;

/* How many of the `count` (at most 16,384) blocks of a prompt, from its start, can be had. What is
 * there may be gone when this returns. */
int kvmem_cache_contains(struct kvmem_cache* cache, const struct kvmem_block_name* names,
                         size_t count, size_t* found) KVMEM_NOEXCEPT;

struct kvmem_cache_request {
  size_t size;                          /* of this struct, bytes */
  const struct kvmem_block_name* names; /* of all blocks of the prompt, also those to be computed */
  size_t count;                         /* at most 16,384 */
  uint64_t time_ms;                     /* by any clock that never goes back; 0: the daemon's */
  uint32_t input_tokens;                /* of the prompt; 0: not known */
  uint32_t output_tokens;               /* of the answer; 0: not known yet */
  uint32_t tail_is_partial;             /* 1: the last block is not full, so nobody continues it */
  uint32_t overlaps; /* for kvmem_cache_plan: 1: it computes while other blocks are read */
};

/* A prompt is served: decides what the cache keeps, and brings what it has of the prompt's start
 * into DRAM. Returns once that is there: `*found` blocks, their addresses in blocks[0] and up
 * (`count` elements). They can be read, by this process, until kvmem_cache_end(cache, *request);
 * bytes never change meanwhile, not even when the daemon dies. 0 blocks: nothing has to be ended,
 * `*request` is 0. */
int kvmem_cache_begin(struct kvmem_cache* cache, const struct kvmem_cache_request* options,
                      const void** blocks, size_t* found, uint64_t* request) KVMEM_NOEXCEPT;
int kvmem_cache_end(struct kvmem_cache* cache, uint64_t request) KVMEM_NOEXCEPT;

/* As kvmem_cache_begin, for an engine that would rather compute a block again than wait longer for
 * it to be read. Returns at once: of the `*found` leading blocks that there are, those in DRAM have
 * their addresses in blocks[]. The others have NULL there. Those of them before `*compute_end` are
 * sooner computed than read, so the engine computes them (they need not be put); those from it on
 * are on their way, see kvmem_cache_wait. What reading takes is learned from the store, what
 * computing takes from kvmem_cache_computed; until both are known all is read. A choice once made
 * stays until the other is sooner by a fifth; `kvmemctl explain cache` shows the last one.
 * Pages are in DRAM until kvmem_cache_end, 0 blocks, and `*request` as for kvmem_cache_begin. */
int kvmem_cache_plan(struct kvmem_cache* cache, const struct kvmem_cache_request* options,
                     const void** blocks, size_t* found, size_t* compute_end,
                     uint64_t* request) KVMEM_NOEXCEPT;

/* Waits until the rest of a plan has been read, other calls of the handle meanwhile. `*found` and
 * blocks[] as the plan had room for; NULL, or no longer found: the engine computes it. 0 blocks, as
 * for a `request` of 0: nothing has to be ended any more. -ENOTCONN: the daemon is gone, and what
 * the plan had no address for has to be computed. */
int kvmem_cache_wait(struct kvmem_cache* cache, uint64_t request, const void** blocks,
                     size_t* found) KVMEM_NOEXCEPT;

/* The engine has computed blocks [first, first + count) of a prompt in `microseconds`, with nothing
 * else to do: the GPU's time, not the queue's. What kvmem_cache_plan goes by. */
int kvmem_cache_computed(struct kvmem_cache* cache, size_t first, size_t count,
                         uint64_t microseconds) KVMEM_NOEXCEPT;

/* Copies a computed block of a prompt that has begun into the cache. What is there under the name
 * already stays. Waits while the store takes what has to leave DRAM. Nothing is lost by an error:
 * -ENOSPC: the cache does not keep it (its prompt has not begun, or it is not worth it); -ENOMEM:
 * all of DRAM is leased. */
int kvmem_cache_put(struct kvmem_cache* cache, const struct kvmem_block_name* name,
                    const void* bytes) KVMEM_NOEXCEPT;

struct kvmem_cache_statistics {
  size_t size;       /* of this struct, bytes */
  uint64_t requests; /* that began */
  uint64_t asked;    /* blocks in their prompts */
  uint64_t found;    /* of them, blocks that were lent */
  uint64_t restored; /* of these, blocks that had to be read from the store */
  uint64_t puts;     /* blocks that were put, or known already */
  uint64_t refused;  /* that were not taken */
};

/* What this handle has done so far. */
int kvmem_cache_stats(struct kvmem_cache* cache,
                      struct kvmem_cache_statistics* stats) KVMEM_NOEXCEPT;

#ifdef __cplusplus
}
#endif

/* NOLINTEND(readability-identifier-naming, modernize-*) */
#endif
