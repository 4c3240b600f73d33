/* kernels: what kvmem does to pages on a GPU, and its twins on the CPU, bit for bit the same.
 *
 * One launch works on up to KVMEM_BATCH_PAGES pages, named by address in the launch's parameters:
 * nothing is set up in memory first. Pages are multiples of 4 KiB, aligned to 16 bytes, and do not
 * overlap. An address may be device memory or host memory that the device reaches.
 *
 * The hash of a page is the sum, modulo 2^64, of mix(word i + (i + 1) * KVMEM_HASH_STEP) over its
 * little-endian 64-bit words, `mix` being one-to-one: a page that differs in one word always has
 * another hash, any other one with probability 1 - 2^-64. A sum, so that the words may come in any
 * order; not for data that somebody has chosen with intent.
 *
 * Kernel (one block of threads works on a part of a page; grid: parts x pages):
 *   kvmem_copy       (struct kvmem_batch)               from[i] to to[i]: gather and scatter
 *   kvmem_fill       (struct kvmem_batch, value)        every word of to[i]
 *   kvmem_hash       (struct kvmem_batch, sums)         of from[i]: what the b-th of its n blocks
 * has found is in sums[i * n + b] kvmem_copy_hash  (struct kvmem_batch, sums)         both: the
 * hash of what was written
 */
#ifndef KVMEM_KERNELS_KERNELS_H_
#define KVMEM_KERNELS_KERNELS_H_

/* NOLINTBEGIN(readability-identifier-naming, modernize-*): C's names. */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVMEM_BATCH_PAGES 64u
#define KVMEM_HASH_STEP 0x9e3779b97f4a7c15u

struct kvmem_batch {
  uint64_t to[KVMEM_BATCH_PAGES];
  uint64_t from[KVMEM_BATCH_PAGES];
  uint64_t page_bytes;
  uint64_t count;
};

#ifdef __CUDACC__
#define KVMEM_EVERYWHERE __host__ __device__
#else
#define KVMEM_EVERYWHERE
#endif

/* What word `i` of a page adds to its hash. */
static inline KVMEM_EVERYWHERE uint64_t kvmem_hash_word(uint64_t word, uint64_t i) {
  uint64_t x = word + (i + 1) * KVMEM_HASH_STEP;
  x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
  x = (x ^ x >> 29) * 0xff51afd7ed558ccdu;
  return x ^ x >> 32;
}

/* The twins. Any thread. */
uint64_t kvmem_twin_hash(const void* page, size_t page_bytes);
/* Returns the hash of what was written. */
uint64_t kvmem_twin_copy_page(void* to, const void* from, size_t page_bytes);
void kvmem_twin_copy(const struct kvmem_batch* batch);
void kvmem_twin_fill(const struct kvmem_batch* batch, uint64_t value);

/* The kernels, compiled: a fatbinary to load; null where there was no compiler when this was
 * built. */
extern const unsigned char* const kvmem_kernels_image;

#ifdef __cplusplus
}
#endif

/* NOLINTEND(readability-identifier-naming, modernize-*) */
#endif
