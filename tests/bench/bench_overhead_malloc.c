// malloc and free below the threshold, as programs use them: prints nanoseconds per pair, the
// median of several rounds. An unmodified program: overhead.py runs it with and without libkvmem.
//
// usage: bench_overhead_malloc small|mixed
//   small   64-byte blocks, one at a time: nothing but malloc and free
//   mixed   a window of live blocks of 16 B to 64 KiB, each written at both ends

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { kRounds = 41, kPairs = 200000, kWindow = 512 };

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_value(const void* a, const void* b) {
  const double x = *(const double*)a;
  const double y = *(const double*)b;
  return (x > y) - (x < y);
}

static void small_round(void) {
  for (int i = 0; i < kPairs; ++i) {
    char* volatile p = malloc(64);
    *p = 1;
    free(p);
  }
}

static void mixed_round(uint64_t* seed) {
  static char* live[kWindow];
  for (int i = 0; i < kPairs; ++i) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    const unsigned slot = (unsigned)(*seed >> 40) % kWindow;
    const size_t size = (size_t)16 << ((unsigned)(*seed >> 33) % 13);
    free(live[slot]);
    char* p = malloc(size);
    p[0] = p[size - 1] = 1;
    live[slot] = p;
  }
}

int main(int argc, char** argv) {
  const int small = argc > 1 && strcmp(argv[1], "small") == 0;
  double ns[kRounds];
  uint64_t seed = 7;
  for (int r = 0; r < kRounds; ++r) {
    const double start = now_ns();
    if (small) {
      small_round();
    } else {
      mixed_round(&seed);
    }
    ns[r] = (now_ns() - start) / kPairs;
  }
  qsort(ns, kRounds, sizeof ns[0], by_value);
  printf("%.4f\n", ns[kRounds / 2]);
  return 0;
}
