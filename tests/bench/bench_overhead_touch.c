// What a touch costs: fresh pages, then pages that were sent to the store. Prints one line a touch,
// "fresh NS", "pressed NS" or "restore NS". An unmodified program: overhead.py runs it with and
// without libkvmem, under a budget of half its memory: "fresh" pages find room, "pressed" ones come
// when the budget is spent and others have to be written out first.
//
// usage: bench_overhead_touch MIB

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int main(int argc, char** argv) {
  enum { kPage = 2 << 20 };
  const size_t pages = (argc > 1 ? strtoull(argv[1], NULL, 10) : 512) / 2;
  volatile char* block = aligned_alloc(kPage, pages * kPage);
  if (block == NULL) return 1;
  madvise((void*)block, pages * kPage, MADV_HUGEPAGE);  // the kernel's best; nothing to libkvmem
  for (size_t p = 0; p < pages; ++p) {
    const uint64_t start = now_ns();
    block[p * kPage] = 1;
    printf("%s %llu\n", p < pages * 4 / 10 ? "fresh" : "pressed",
           (unsigned long long)(now_ns() - start));
    memset((void*)(block + p * kPage), (int)p + 1, kPage);
  }
  // In an order that nothing can have learned.
  uint64_t seed = 1;
  for (size_t i = 0; i < pages; ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const size_t p = (size_t)(seed >> 33) % pages;
    const uint64_t start = now_ns();
    const char got = block[p * kPage + 4096];
    const uint64_t took = now_ns() - start;
    if (got != (char)(p + 1)) return 2;
    if (took > 5000) printf("restore %llu\n", (unsigned long long)took);  // the rest were resident
  }
  return 0;
}
