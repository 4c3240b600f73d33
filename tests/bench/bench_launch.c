/* What a launch costs its caller, or with an argument a small copy: one line, the median and the
 * 99th percentile over batches of 1000, ns a call. For a libcuda.so.1 that does nothing
 * (bench_launch_driver.c): the function and the addresses are none. */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define BATCHES 2000
#define CALLS 1000

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

int main(int argc, char** argv) {
  static double took[BATCHES];
  CUfunction function = (CUfunction)took; /* never followed: the driver does nothing */
  unsigned long value[20] = {0};
  void* params[20];
  for (int i = 0; i < 20; ++i) params[i] = &value[i];
  (void)argv;
  for (int b = 0; b < BATCHES; ++b) {
    const double begin = now_ns();
    for (int i = 0; i < CALLS; ++i) {
      if (argc > 1) {
        (void)cuMemcpyDtoDAsync(2 << 20, 4 << 20, 4096, 0);
      } else {
        (void)cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, params, 0);
      }
    }
    took[b] = (now_ns() - begin) / CALLS;
  }
  qsort(took, BATCHES, sizeof took[0], compare);
  printf("%.3f %.3f\n", took[BATCHES / 2], took[BATCHES * 99 / 100]);
  return 0;
}
