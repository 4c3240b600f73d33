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

/* A KV pool: the keys and values of many sequences as plain strided tensors, whose addresses never
 * change. Memory comes in small pages as a sequence grows, mapped ahead of it; sequences that begin
 * alike share pages. On a GPU (the CUDA driver's virtual memory management; a GPU of compute
 * capability 8.0 or later) a pool is the engine's alone, and sequences that no step has named
 * lately are parked in host memory; on the host it is a region, whose cold pages kvmemd moves.
 *
 * The engine starts work on a sequence after kvmem_pool_step or kvmem_seq_extend has named it, for
 * no more tokens than it said, and before the next step and whatever parks, cuts or closes it. That
 * work need not have ended, but for kvmem_pool_destroy: pages that leave a sequence are unmapped
 * when it has. A new sequence may get the place and the memory of a closed one at once: on another
 * stream its work is to be ordered after the old one's. Memory behind a sequence's tokens, up to
 * the end of their page, may be read and written, and new memory holds anything; beyond that an
 * access faults or reaches what is another's.
 *
 * Any thread, but one step at a time; not while this thread captures a stream. Beside the errors
 * above:
 *
 *   -EINVAL  no such sequence is open, or it cannot have that length; the pool of a parent process
 *   -ENOMEM  pages were not to be had; all is as it was
 *   -ENOSPC  all of the pool's sequences are open
 *   -EBUSY   the sequence is pinned, or the GPU's work cannot be waited for now; all is as it was
 *   -EIO     the driver or the kernel refused, or what was parked has changed: the sequence is to
 *            be closed
 */
enum kvmem_pool_layout {
  KVMEM_PER_LAYER = 0, /* a layer's keys, and its values, are one dense tensor; a sequence grows by
                          a page for each of them */
  KVMEM_PACKED = 1     /* a token's keys and values of all layers lie together; a sequence grows by
                          one page: least waste, for kernels that take a token stride */
};
#define KVMEM_ON_HOST (-1)

struct kvmem_pool_options {
  size_t size; /* of this struct, bytes */
  uint32_t layers;
  uint32_t kv_heads;      /* of this rank */
  uint32_t head_dim;      /* elements */
  uint32_t element_bytes; /* 1, 2, 4 or 8 */
  uint64_t tokens_max;    /* of a sequence */
  uint64_t sequences_max; /* open at once */
  uint32_t layout;        /* enum kvmem_pool_layout */
  int32_t device;         /* a CUDA device's ordinal, or KVMEM_ON_HOST */
  uint64_t bytes_max;     /* of memory, that sequences may have together; 0: as much as the GPU has,
                             or as the addresses hold. On the host quotas count it. */
  const char* tag;        /* shown by kvmemctl; at most 63 bytes are kept; may be NULL */
};

/* Reserves addresses, and starts a thread. -EINVAL: KVMEM_VERBOSE=1 says what is wrong with the
 * geometry. -ENODEV: no CUDA driver is loaded and initialised (cuInit), or no such device;
 * -ENOTSUP: the device has no virtual memory management. */
struct kvmem_pool;
int kvmem_pool_create(const struct kvmem_pool_options* options,
                      struct kvmem_pool** pool) KVMEM_NOEXCEPT;

/* Its memory and addresses go. REQUIRES: the engine's work on it is done, and no other call is
 * under way. NULL: nothing happens. */
void kvmem_pool_destroy(struct kvmem_pool* pool) KVMEM_NOEXCEPT;

/* A layer's keys or values: element e of head h of token t of sequence s is at
 * address + s * sequence_stride + t * token_stride + h * head_stride + e * element_bytes. */
struct kvmem_view {
  size_t size;              /* of this struct, bytes */
  uint64_t address;         /* a device's, or a pointer */
  uint64_t sequence_stride; /* bytes, as the others */
  uint64_t token_stride;
  uint64_t head_stride;
};
int kvmem_pool_view(struct kvmem_pool* pool, uint32_t layer, int is_value,
                    struct kvmem_view* view) KVMEM_NOEXCEPT;

/* A sequence is named by its index in the tensors; of no tokens, at first. */
int kvmem_seq_open(struct kvmem_pool* pool, uint32_t* sequence) KVMEM_NOEXCEPT;
int kvmem_seq_close(struct kvmem_pool* pool, uint32_t sequence) KVMEM_NOEXCEPT;
/* It has `tokens` tokens now, in all: no fewer than before; no more. What others share stays
 * theirs, and pages of what was cut stay until somebody needs them. */
int kvmem_seq_extend(struct kvmem_pool* pool, uint32_t sequence, uint64_t tokens) KVMEM_NOEXCEPT;
int kvmem_seq_truncate(struct kvmem_pool* pool, uint32_t sequence, uint64_t tokens) KVMEM_NOEXCEPT;
/* A new sequence of the first `tokens` tokens of another. Full pages are shared; of the last one,
 * if it is not full, there is a copy, made in the order of `stream` (a CUstream, NULL: the default
 * one; on the host: at once). */
int kvmem_seq_fork(struct kvmem_pool* pool, uint32_t sequence, uint64_t tokens, void* stream,
                   uint32_t* child) KVMEM_NOEXCEPT;

/* Says before each step of the engine which sequences it touches and how many tokens they have
 * after it; `tokens` NULL: one more each. All of them, or none. This is also how kvmem knows which
 * sequences are in use; those that are not make room. -EINVAL also where it names one twice. Two to
 * three times a look at as many lengths, 3 to 7 us for 256 sequences (tests/bench/run.sh pool),
 * unless memory has to be waited for. */
int kvmem_pool_step(struct kvmem_pool* pool, const uint32_t* sequences, const uint64_t* tokens,
                    size_t count) KVMEM_NOEXCEPT;

/* Its memory may go to slower places, as far as no other sequence has it, until it is named again.
 * kvmem_seq_prefetch brings it back in the background, kvmem_seq_resume before it returns (on the
 * host: begins to). A pinned sequence is not parked; on the host that keeps the daemon from nothing
 * but this advice. */
int kvmem_seq_park(struct kvmem_pool* pool, uint32_t sequence) KVMEM_NOEXCEPT;
int kvmem_seq_resume(struct kvmem_pool* pool, uint32_t sequence) KVMEM_NOEXCEPT;
int kvmem_seq_prefetch(struct kvmem_pool* pool, uint32_t sequence) KVMEM_NOEXCEPT;
int kvmem_seq_pin(struct kvmem_pool* pool, uint32_t sequence, int is_pinned) KVMEM_NOEXCEPT;

/* Whether `count` more sequences of `tokens` tokens each would find room now, with none parked for
 * them; on the host: within bytes_max, wherever the daemon has it. 1 or 0, or an error. For
 * schedulers that pick what fits; 0 is said a little too often rather than too late. */
int kvmem_pool_fits(struct kvmem_pool* pool, uint64_t tokens, uint64_t count) KVMEM_NOEXCEPT;
/* So many tokens will be added soon, to any sequences: a GPU's pages are made now, in the
 * background. The last call counts. */
int kvmem_pool_predict(struct kvmem_pool* pool, uint64_t tokens) KVMEM_NOEXCEPT;

struct kvmem_pool_statistics {
  size_t size; /* of this struct, bytes; on return, bytes filled in */
  uint64_t page_bytes;
  uint64_t growth_bytes;    /* what a sequence grows by */
  uint64_t open;            /* sequences */
  uint64_t parked;          /* of them; on the host the daemon counts (kvmemctl) */
  uint64_t bytes;           /* of memory in pages; a shared one counts once */
  uint64_t shared_bytes;    /* of it, in pages of several sequences */
  uint64_t spare_bytes;     /* of it, left by closed sequences for the next */
  uint64_t steps;           /* since the start, as all that follows */
  uint64_t grown_pages;     /* that steps needed beyond those before */
  uint64_t late_pages;      /* of them, that were not mapped ahead */
  uint64_t late_creates;    /* pages a GPU's driver had to make while somebody waited */
  uint64_t reclaimed_pages; /* unmapped for others, that no sequence needed */
  uint64_t parked_pages;
  uint64_t resumed_pages;
};
/* Looks at every page. */
int kvmem_pool_stats(struct kvmem_pool* pool, struct kvmem_pool_statistics* stats) KVMEM_NOEXCEPT;

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
