/* What a launch costs its caller, or a small copy ("copy"), or an allocation and its free
 * ("alloc"): one line, the median and the 99th percentile over batches of 1000, ns a call. For a
 * libcuda.so.1 that does nothing (bench_launch_driver.c): the function and the addresses are none.
 */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BATCHES 2000
#define BATCHES_ALLOC 100 /* of what may be probed, where one takes microseconds */
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
  CUdeviceptr made = 0;
  const char* const what = argc > 1 ? argv[1] : "launch";
  const int copies = strcmp(what, "copy") == 0, allocates = strcmp(what, "alloc") == 0;
  const int batches = allocates ? BATCHES_ALLOC : BATCHES;
  for (int b = 0; b < batches; ++b) {
    const double begin = now_ns();
    for (int i = 0; i < CALLS; ++i) {
      if (allocates) {
        (void)cuMemAlloc(&made, 1 << 20);
        (void)cuMemFree(made);
      } else if (copies) {
        (void)cuMemcpyDtoDAsync(2 << 20, 4 << 20, 4096, 0);
      } else {
        (void)cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, params, 0);
      }
    }
    took[b] = (now_ns() - begin) / CALLS;
  }
  qsort(took, batches, sizeof took[0], compare);
  printf("%.3f %.3f\n", took[batches / 2], took[batches * 99 / 100]);
  return 0;
}
