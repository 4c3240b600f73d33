/* What every program here checks bytes by: the 8-byte word at a position of a buffer is a function
 * of the position, a version and the seed, so that a page that is stale, zeroed, torn or another's
 * is seen. A failed check prints what and where, and ends the program with status 1. */
#ifndef PATTERN_H
#define PATTERN_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define PAGE (2 * MIB)
#define OS_PAGE ((size_t)4096)

static uint64_t g_seed = 1;

static inline uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ull;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebull;
  return x ^ x >> 31;
}
static inline uint64_t pattern(uint64_t position, uint64_t version) {
  return mix(position * 0x9e3779b97f4a7c15ull + version * 0xd1342543de82ef95ull + g_seed);
}
static inline uint64_t next_random(uint64_t* state) { return mix(*state += 0x9e3779b97f4a7c15ull); }

#define REQUIRE(condition, ...)                                                                  \
  do {                                                                                           \
    if (!(condition)) {                                                                          \
      fprintf(stderr, "%s:%d: [pid %d] not so: %s: ", __FILE__, __LINE__, getpid(), #condition); \
      fprintf(stderr, __VA_ARGS__);                                                              \
      fprintf(stderr, " (errno %d)\n", errno);                                                   \
      _exit(1);                                                                                  \
    }                                                                                            \
  } while (0)

/* `base` is where position 0 is; both ends multiples of 8. */
static inline void fill(void* base, size_t begin, size_t end, uint64_t version) {
  volatile uint64_t* words = (volatile uint64_t*)base;
  for (size_t i = begin / 8; i < end / 8; ++i) words[i] = pattern(i * 8, version);
}
static inline void check(const void* base, size_t begin, size_t end, uint64_t version,
                         const char* what) {
  const volatile uint64_t* words = (const volatile uint64_t*)base;
  for (size_t i = begin / 8; i < end / 8; ++i) {
    const uint64_t found = words[i], wanted = pattern(i * 8, version);
    REQUIRE(found == wanted, "%s: byte %zu (page %zu) holds %016llx, not %016llx, version %llu",
            what, i * 8, i * 8 / PAGE, (unsigned long long)found, (unsigned long long)wanted,
            (unsigned long long)version);
  }
}
static inline void check_zero(const void* base, size_t begin, size_t end, const char* what) {
  const volatile uint64_t* words = (const volatile uint64_t*)base;
  for (size_t i = begin / 8; i < end / 8; ++i) {
    REQUIRE(words[i] == 0, "%s: byte %zu is %016llx, not zero", what, i * 8,
            (unsigned long long)words[i]);
  }
}

/* Whether kvmem serves an address: its arena's mappings are memfds, shared, or read-only copies. */
static inline int is_managed(const void* p) {
  FILE* maps = fopen("/proc/thread-self/maps", "r") /* main may be over */;
  char line[512];
  int found = 0;
  REQUIRE(maps != NULL, "/proc/self/maps");
  while (fgets(line, sizeof line, maps) != NULL) {
    unsigned long long begin, end;
    if (sscanf(line, "%llx-%llx", &begin, &end) != 2) continue;
    if ((uintptr_t)p >= begin && (uintptr_t)p < end) found = strstr(line, "memfd:") != NULL;
  }
  fclose(maps);
  return found;
}
/* Under a daemon the large allocations of a test must be regions, or it tests nothing. */
static inline void require_managed(const void* p) {
  const char* expected = getenv("KVMEM_TEST_MANAGED");
  if (expected == NULL) return;
  REQUIRE(is_managed(p) == (*expected == '1'), "%p is %s region", p, is_managed(p) ? "a" : "no");
}

static inline void take_seed(int argc, char** argv, int index) {
  g_seed = argc > index ? strtoull(argv[index], NULL, 0) : 1;
  printf("seed %llu\n", (unsigned long long)g_seed);
  fflush(stdout);
}

#endif
