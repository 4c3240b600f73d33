// A KV pool as a decoding engine sees it: 256 sequences of Llama-3-8B, one token each a step, with a
// pause between steps where the engine would compute.
//
// usage: bench_pool host|device STEPS PAUSE_US lockstep|spread
//
// Prints one JSON object: times of kvmem_pool_step in microseconds, the same look at 256 lengths without
// a pool, and how many of the pages that steps needed were there.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kvmem.h"

enum { kSequences = 256, kStepsMax = 100000 };

static double times[kStepsMax], bare[kStepsMax], fork_us[kSequences], extend_us[kSequences];

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void must(int error, const char* what) {
  if (error == 0) return;
  fprintf(stderr, "bench_pool: %s: %s\n", what, kvmem_strerror(error));
  exit(1);
}

static int by_size(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}
static double percentile(double* values, int count, double share) {
  qsort(values, (size_t)count, sizeof *values, by_size);
  return values[(int)((double)(count - 1) * share)];
}

// What a step cannot do without: a look at where each sequence is and how far its memory goes.
static int look(const uint32_t* rows, volatile uint64_t (*lengths)[8]) {
  int short_of = 0;
  for (int i = 0; i < kSequences; ++i) {
    volatile uint64_t* row = lengths[rows[i]];
    short_of += ++row[0] > row[1];
  }
  return short_of;
}

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const int on_device = strcmp(argv[1], "device") == 0;
  const int steps = atoi(argv[2]), pause_us = atoi(argv[3]);
  const int lockstep = strcmp(argv[4], "lockstep") == 0;
  if (steps < 1 || steps > kStepsMax) return 2;
  if (on_device) {
    void* driver = dlopen("libcuda.so.1", RTLD_NOW);
    int (*init)(unsigned) = driver == NULL ? NULL : (int (*)(unsigned))dlsym(driver, "cuInit");
    if (init == NULL || init(0) != 0) return 77;
  }
  struct kvmem_pool_options options = {
      sizeof options, 32, 8, 128, 2, 2048, kSequences + 8, KVMEM_PACKED,
      on_device ? 0 : KVMEM_ON_HOST, 0, "kv"};
  struct kvmem_pool* pool = NULL;
  must(kvmem_pool_create(&options, &pool), "kvmem_pool_create");

  uint32_t rows[kSequences];
  static uint64_t lengths[kSequences + 8][8];
  uint64_t total = 0;
  for (int i = 0; i < kSequences; ++i) {
    must(kvmem_seq_open(pool, &rows[i]), "kvmem_seq_open");
    const uint64_t tokens = lockstep ? 32 : (uint64_t)(17 + i * 7 % 31);
    const double begin = now_us();
    must(kvmem_seq_extend(pool, rows[i], tokens), "kvmem_seq_extend");
    extend_us[i] = now_us() - begin;
    total += tokens;
    lengths[rows[i]][1] = 1 << 20;
  }
  int missing = 0;
  uint64_t late_before = 0, creates_before = 0;
  struct kvmem_pool_statistics stats = {.size = sizeof stats};
  for (int n = -2; n < steps; ++n) {  // two to get under way
    if (n == 0) {
      must(kvmem_pool_stats(pool, &stats), "kvmem_pool_stats");
      late_before = stats.late_pages;
      creates_before = stats.grown_pages;
    }
    const double begin = now_us();
    must(kvmem_pool_step(pool, rows, NULL, kSequences), "kvmem_pool_step");
    const double middle = now_us();
    missing += look(rows, lengths);
    const double end = now_us();
    if (n >= 0) times[n] = middle - begin;
    if (n >= 0) bare[n] = end - middle;
    const struct timespec pause = {pause_us / 1000000, pause_us % 1000000 * 1000L};
    nanosleep(&pause, NULL);
  }
  must(kvmem_pool_stats(pool, &stats), "kvmem_pool_stats");
  const uint64_t grown = stats.grown_pages - creates_before, late = stats.late_pages - late_before;
  // A beam: forks of one sequence, each closed again.
  int forks = 0;
  for (; forks < 64; ++forks) {
    uint32_t child = 0;
    const double begin = now_us();
    must(kvmem_seq_fork(pool, rows[forks], 32, NULL, &child), "kvmem_seq_fork");
    fork_us[forks] = now_us() - begin;
    must(kvmem_seq_close(pool, child), "kvmem_seq_close");
  }
  kvmem_pool_destroy(pool);
  printf("{\"step_p50\":%.3f,\"step_p99\":%.3f,\"bare_p50\":%.3f,\"bare_p99\":%.3f,\"grown\":%llu,"
         "\"late\":%llu,\"late_creates\":%llu,\"extend_p50\":%.1f,\"extend_p99\":%.1f,\"fork_p50\":%.1f,"
         "\"fork_p99\":%.1f,\"missing\":%d,\"tokens\":%llu}\n",
         percentile(times, steps, 0.5), percentile(times, steps, 0.99), percentile(bare, steps, 0.5),
         percentile(bare, steps, 0.99), (unsigned long long)grown, (unsigned long long)late,
         (unsigned long long)stats.late_creates, percentile(extend_us, kSequences, 0.5),
         percentile(extend_us, kSequences, 0.99), percentile(fork_us, forks, 0.5),
         percentile(fork_us, forks, 0.99), missing, (unsigned long long)total);
  return 0;
}
