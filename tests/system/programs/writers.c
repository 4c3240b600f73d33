/* Threads write and read stripes of one buffer that is larger than DRAM, while its pages are
 * demoted and brought back. usage: writers MIB THREADS SECONDS [SEED] */
#include <pthread.h>
#include <time.h>

#include "pattern.h"

static unsigned char* g_buffer;
static size_t g_pages;
static unsigned g_threads;
static time_t g_deadline;
static unsigned char* g_versions; /* [page * threads + thread], written by its thread alone */

#define STRIPES 16 /* of a page; thread t owns those that are t modulo the number of threads */

static void* work(void* argument) {
  const unsigned self = (unsigned)(uintptr_t)argument;
  uint64_t random = g_seed * 1000003 + self;
  size_t rounds = 0;
  while (time(NULL) < g_deadline) {
    /* Half of the steps walk in order, as a model does; half jump. */
    const size_t page = rounds % 2 == 0 ? rounds / 2 % g_pages : next_random(&random) % g_pages;
    unsigned char* version = &g_versions[page * g_threads + self];
    const int writes = next_random(&random) % 3 != 0;
    for (unsigned s = self; s < STRIPES; s += g_threads) {
      const size_t begin = page * PAGE + s * (PAGE / STRIPES), end = begin + PAGE / STRIPES;
      if (*version == 0) {
        check_zero(g_buffer, begin, end, "never written");
      } else {
        check(g_buffer, begin, end, *version, "own stripe");
      }
      if (writes) fill(g_buffer, begin, end, *version % 255 + 1);
    }
    if (writes) *version = *version % 255 + 1;
    ++rounds;
  }
  return (void*)rounds;
}

int main(int argc, char** argv) {
  REQUIRE(argc >= 4, "usage: writers MIB THREADS SECONDS [SEED]");
  const size_t size = strtoull(argv[1], NULL, 0) * MIB;
  g_threads = (unsigned)atoi(argv[2]);
  take_seed(argc, argv, 4);
  g_pages = size / PAGE;
  g_deadline = time(NULL) + atoi(argv[3]);
  g_buffer = malloc(size);
  g_versions = calloc(g_pages, g_threads);
  REQUIRE(g_buffer != NULL && g_versions != NULL, "malloc");
  require_managed(g_buffer);
  pthread_t threads[64];
  for (unsigned t = 0; t < g_threads; ++t) {
    REQUIRE(pthread_create(&threads[t], NULL, work, (void*)(uintptr_t)t) == 0, "thread");
  }
  size_t total = 0;
  for (unsigned t = 0; t < g_threads; ++t) {
    void* rounds;
    pthread_join(threads[t], &rounds);
    total += (size_t)rounds;
  }
  for (size_t page = 0; page < g_pages; ++page) {
    for (unsigned s = 0; s < STRIPES; ++s) {
      const unsigned char version = g_versions[page * g_threads + s % g_threads];
      const size_t begin = page * PAGE + s * (PAGE / STRIPES), end = begin + PAGE / STRIPES;
      if (version == 0) {
        check_zero(g_buffer, begin, end, "end: never written");
      } else {
        check(g_buffer, begin, end, version, "end");
      }
    }
  }
  free(g_buffer);
  printf("ok writers: %zu page visits, every byte as written\n", total);
  return 0;
}
