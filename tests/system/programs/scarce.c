/* Threads write and read stripes of one buffer that is larger than DRAM, and one compares a mapped
 * file with what read(2) says, whatever happens to the machine's memory meanwhile. Now and then all
 * of them rest for a moment, while the buffer is written to the kernel in part (a pipe) and the
 * process forks: the child checks every byte, changes some and checks again. usage: scarce MIB
 * THREADS SECONDS FIRST_CHILD FILE [SEED], FIRST_CHILD in seconds.
 *
 * Each second a line "visits N children M" goes to standard output. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "pattern.h"

#define STRIPES 16 /* of a page; thread t owns those that are t modulo the number of threads */

static unsigned char* g_buffer;
static size_t g_pages;
static unsigned g_threads;
static time_t g_deadline;
static unsigned char* g_versions; /* [page * threads + thread], written by its thread alone */
/* (Otherwise eight readers leave no moment to rest.) */
static pthread_rwlock_t g_rest = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static _Atomic size_t g_visits;

static void check_stripe(size_t page, unsigned stripe, unsigned char version, const char* what) {
  const size_t begin = page * PAGE + stripe * (PAGE / STRIPES), end = begin + PAGE / STRIPES;
  if (version == 0) {
    check_zero(g_buffer, begin, end, what);
  } else {
    check(g_buffer, begin, end, version, what);
  }
}

static void visit(size_t page, unsigned self, int writes, const char* what) {
  unsigned char* version = &g_versions[page * g_threads + self];
  const unsigned char next = (unsigned char)(*version % 255 + 1);
  for (unsigned s = self; s < STRIPES; s += g_threads) {
    check_stripe(page, s, *version, what);
    const size_t begin = page * PAGE + s * (PAGE / STRIPES);
    if (writes) fill(g_buffer, begin, begin + PAGE / STRIPES, next);
  }
  if (writes) *version = next;
}

static void* work(void* argument) {
  const unsigned self = (unsigned)(uintptr_t)argument;
  uint64_t random = g_seed * 1000003 + self;
  for (size_t rounds = 0; time(NULL) < g_deadline; ++rounds) {
    /* Half of the steps walk in order, as a model does; half jump. */
    const size_t page = rounds % 2 == 0 ? rounds / 2 % g_pages : next_random(&random) % g_pages;
    pthread_rwlock_rdlock(&g_rest);
    visit(page, self, next_random(&random) % 3 != 0, "own stripe");
    pthread_rwlock_unlock(&g_rest);
    atomic_fetch_add(&g_visits, 1);
  }
  return NULL;
}

static void* compare_file(void* path) {
  static unsigned char copy[OS_PAGE];
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  struct stat st;
  REQUIRE(fd >= 0 && fstat(fd, &st) == 0, "%s", (char*)path);
  const size_t pages = (size_t)st.st_size / OS_PAGE;
  const unsigned char* file = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  REQUIRE(file != MAP_FAILED, "mmap");
  require_managed(file);
  uint64_t random = g_seed;
  while (time(NULL) < g_deadline) {
    const size_t at = next_random(&random) % pages * OS_PAGE;
    REQUIRE(pread(fd, copy, OS_PAGE, (off_t)at) == (ssize_t)OS_PAGE, "pread");
    REQUIRE(memcmp(copy, file + at, OS_PAGE) == 0, "the file's byte %zu", at);
  }
  munmap((void*)file, (size_t)st.st_size);
  close(fd);
  return NULL;
}

static void check_all(const char* what) {
  for (size_t page = 0; page < g_pages; ++page) {
    for (unsigned s = 0; s < STRIPES; ++s)
      check_stripe(page, s, g_versions[page * g_threads + s % g_threads], what);
  }
}

/* The kernel reads a page of the buffer for us, as it would for write(2) to a file. */
static void check_through_kernel(size_t page) {
  int ends[2];
  static unsigned char copy[OS_PAGE];
  REQUIRE(pipe(ends) == 0, "pipe");
  for (unsigned s = 0; s < STRIPES; ++s) {
    const size_t at = page * PAGE + s * (PAGE / STRIPES);
    const unsigned char version = g_versions[page * g_threads + s % g_threads];
    REQUIRE(write(ends[1], g_buffer + at, OS_PAGE) == (ssize_t)OS_PAGE, "write");
    REQUIRE(read(ends[0], copy, OS_PAGE) == (ssize_t)OS_PAGE, "read");
    for (size_t i = 0; i < OS_PAGE; i += 8) {
      uint64_t found;
      memcpy(&found, copy + i, 8);
      REQUIRE(found == (version == 0 ? 0 : pattern(at + i, version)),
              "through the kernel: byte %zu", at + i);
    }
  }
  close(ends[0]);
  close(ends[1]);
}

static void child(unsigned number) {
  uint64_t random = g_seed + number;
  check_all("child");
  for (int i = 0; i < 24; ++i) {
    const size_t page = next_random(&random) % g_pages;
    for (unsigned t = 0; t < g_threads; ++t) visit(page, t, 1, "child's own");
  }
  check_all("child, at its end");
  _exit(0);
}

int main(int argc, char** argv) {
  REQUIRE(argc >= 6, "usage: scarce MIB THREADS SECONDS FIRST_CHILD FILE [SEED]");
  const size_t size = strtoull(argv[1], NULL, 0) * MIB;
  g_threads = (unsigned)atoi(argv[2]);
  take_seed(argc, argv, 6);
  g_pages = size / PAGE;
  const time_t begin = time(NULL);
  g_deadline = begin + atoi(argv[3]);
  g_buffer = malloc(size);
  g_versions = calloc(g_pages, g_threads);
  REQUIRE(g_buffer != NULL && g_versions != NULL, "malloc");
  require_managed(g_buffer);
  pthread_t threads[64];
  for (unsigned t = 0; t < g_threads; ++t) {
    REQUIRE(pthread_create(&threads[t], NULL, work, (void*)(uintptr_t)t) == 0, "thread");
  }
  pthread_t comparer;
  REQUIRE(pthread_create(&comparer, NULL, compare_file, argv[5]) == 0, "thread");
  unsigned children = 0;
  uint64_t random = g_seed;
  while (time(NULL) < g_deadline) {
    sleep(1);
    pthread_rwlock_wrlock(&g_rest);
    check_through_kernel(next_random(&random) % g_pages);
    const int forks = time(NULL) - begin >= atoi(argv[4]);
    const pid_t pid = forks ? fork() : 0;
    if (forks && pid == 0) child(children);
    pthread_rwlock_unlock(&g_rest);
    if (forks) {
      int status;
      REQUIRE(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0, "child %u", children);
      ++children;
    }
    printf("visits %zu children %u\n", atomic_load(&g_visits), children);
    fflush(stdout);
  }
  for (unsigned t = 0; t < g_threads; ++t) pthread_join(threads[t], NULL);
  pthread_join(comparer, NULL);
  check_all("end");
  /* What is made now is made of what memory there is. */
  unsigned char* late = malloc(64 * MIB);
  REQUIRE(late != NULL, "malloc");
  require_managed(late);
  fill(late, 0, 64 * MIB, 1);
  check(late, 0, 64 * MIB, 1, "late");
  free(late);
  free(g_buffer);
  printf("ok scarce: %zu page visits, %u children, every byte as written\n", atomic_load(&g_visits),
         children);
  return 0;
}
