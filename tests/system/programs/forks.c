/* fork as without kvmem. usage: forks MIB [SEED [FILE]]; FILE is mapped as a model would be. */
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "pattern.h"

static unsigned char* g_buffer;
static size_t g_size;

static void reap(pid_t child, const char* what) {
  int status = 0;
  REQUIRE(child > 0 && waitpid(child, &status, 0) == child, "%s: fork", what);
  REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: child ended with %#x", what, status);
  printf("ok fork: %s\n", what);
  fflush(stdout);
}

static void child_reads(void) {
  const pid_t child = fork();
  if (child == 0) {
    check(g_buffer, 0, g_size, 1, "child reads");
    _exit(0);
  }
  reap(child, "a child reads what its parent wrote");
}

static void child_writes(void) {
  const pid_t child = fork();
  if (child == 0) {
    for (size_t at = 0; at < g_size; at += PAGE) fill(g_buffer, at, at + OS_PAGE, 2);
    for (size_t at = 0; at < g_size; at += PAGE) {
      check(g_buffer, at, at + OS_PAGE, 2, "child sees its own writes");
      check(g_buffer, at + OS_PAGE, at + PAGE, 1, "child keeps the rest of the page");
    }
    _exit(0);
  }
  reap(child, "a child writes");
  check(g_buffer, 0, g_size, 1, "parent after its child's writes");
}

static void parent_writes(void) {
  int go[2];
  REQUIRE(pipe(go) == 0, "pipe");
  const pid_t child = fork();
  if (child == 0) {
    char byte;
    REQUIRE(read(go[0], &byte, 1) == 1, "wait");
    check(g_buffer, 0, g_size, 1, "child after its parent's writes");
    _exit(0);
  }
  for (size_t at = 0; at < g_size; at += PAGE) fill(g_buffer, at + PAGE / 2, at + PAGE, 3);
  REQUIRE(write(go[1], "", 1) == 1, "go");
  for (size_t at = 0; at < g_size; at += PAGE) {
    check(g_buffer, at, at + PAGE / 2, 1, "parent, unwritten half");
    check(g_buffer, at + PAGE / 2, at + PAGE, 3, "parent, written half");
  }
  reap(child, "a child does not see what its parent writes later");
  fill(g_buffer, 0, g_size, 1);
  close(go[0]);
  close(go[1]);
}

static void both_write_and_grandchild(void) {
  const pid_t child = fork();
  if (child == 0) {
    for (size_t at = 0; at < g_size; at += 2 * PAGE) fill(g_buffer, at, at + PAGE, 4);
    const pid_t grandchild = fork();
    if (grandchild == 0) {
      for (size_t at = 0; at < g_size; at += PAGE) {
        check(g_buffer, at, at + PAGE, at / PAGE % 2 == 0 ? 4 : 1, "grandchild");
      }
      fill(g_buffer, 0, g_size, 5);
      check(g_buffer, 0, g_size, 5, "grandchild's own");
      _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(grandchild, &status, 0) == grandchild && status == 0, "grandchild %#x", status);
    for (size_t at = 0; at < g_size; at += PAGE) {
      check(g_buffer, at, at + PAGE, at / PAGE % 2 == 0 ? 4 : 1, "child after grandchild");
    }
    _exit(0);
  }
  fill(g_buffer, 0, g_size, 6);
  check(g_buffer, 0, g_size, 6, "parent while its child writes");
  reap(child, "parent, child and grandchild write at once");
  check(g_buffer, 0, g_size, 6, "parent at last");
  fill(g_buffer, 0, g_size, 1);
}

static void child_execs(void) {
  const pid_t child = fork();
  if (child == 0) {
    execl("/bin/true", "true", (char*)NULL);
    _exit(127);
  }
  reap(child, "fork and exec");
  check(g_buffer, 0, g_size, 1, "parent after exec");
}

static void child_exits_at_once(void) {
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) _exit(0);
    REQUIRE(waitpid(child, NULL, 0) == child, "wait");
  }
  check(g_buffer, 0, g_size, 1, "parent after children that exit at once");
  printf("ok fork: 20 children that exit at once\n");
}

static void child_allocates_and_frees(void) {
  const pid_t child = fork();
  if (child == 0) {
    unsigned char* more = malloc(48 * MIB);
    REQUIRE(more != NULL, "malloc in a child");
    fill(more, 0, 48 * MIB, 7);
    check(more, 0, 48 * MIB, 7, "child's own allocation");
    free(more);
    free(g_buffer);
    more = malloc(g_size);
    REQUIRE(more != NULL, "malloc in a child");
    check_zero(more, 0, g_size, "child's fresh allocation");
    _exit(0);
  }
  reap(child, "a child allocates, and frees what it inherited");
  check(g_buffer, 0, g_size, 1, "parent after its child's free");
}

static void dont_fork(void) {
  unsigned char* p = malloc(40 * MIB);
  REQUIRE(p != NULL, "malloc");
  fill(p, 0, 40 * MIB, 8);
  REQUIRE(madvise(p, 40 * MIB, MADV_DONTFORK) == 0 || ((uintptr_t)p & 4095) != 0, "madvise");
  const pid_t child = fork();
  if (child == 0) {
    check(g_buffer, 0, PAGE, 1, "the other region");
    _exit(0);
  }
  reap(child, "MADV_DONTFORK on one region leaves the other");
  check(p, 0, 40 * MIB, 8, "parent, MADV_DONTFORK");
  free(p);
}

static volatile int g_stop;
static volatile uint64_t g_rounds; /* that are complete */
static unsigned char* g_other;

static void* write_on(void* unused) {
  (void)unused;
  for (uint64_t n = 1; !g_stop; ++n) {
    for (size_t at = 0; at < 40 * MIB; at += OS_PAGE) *(volatile uint64_t*)(g_other + at) = n;
    g_rounds = n;
  }
  return NULL;
}

static void fork_while_writing(void) {
  g_other = calloc(1, 40 * MIB);
  REQUIRE(g_other != NULL, "calloc");
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, write_on, NULL) == 0, "thread");
  for (int i = 0; i < 10; ++i) {
    const uint64_t complete = g_rounds;
    const pid_t child = fork();
    if (child == 0) {
      /* The kernel copies page by page while the thread goes on, so pages may differ by a round
       * or two; but none is older than what was complete, and none changes any more. */
      static uint64_t before[40 * MIB / OS_PAGE];
      for (size_t i = 0; i < 40 * MIB / OS_PAGE; ++i) {
        before[i] = *(volatile uint64_t*)(g_other + i * OS_PAGE);
        REQUIRE(before[i] >= complete && before[i] <= g_rounds + 1, "page %zu: round %llu of %llu",
                i, (unsigned long long)before[i], (unsigned long long)complete);
      }
      usleep(2000);
      for (size_t i = 0; i < 40 * MIB / OS_PAGE; ++i) {
        REQUIRE(*(volatile uint64_t*)(g_other + i * OS_PAGE) == before[i], "page %zu moved on", i);
      }
      _exit(0);
    }
    int status = 0;
    REQUIRE(child > 0 && waitpid(child, &status, 0) == child && status == 0, "child %#x", status);
  }
  g_stop = 1;
  pthread_join(thread, NULL);
  free(g_other);
  printf("ok fork: ten snapshots of memory that a thread is writing\n");
}

static void file_mapping(const char* path) {
  const int file = open(path, O_RDONLY);
  struct stat s;
  REQUIRE(file >= 0 && fstat(file, &s) == 0, "%s", path);
  const size_t size = (size_t)s.st_size;
  for (int shared = 0; shared < 2; ++shared) {
    const unsigned char* p =
        mmap(NULL, size, PROT_READ, shared ? MAP_SHARED : MAP_PRIVATE, file, 0);
    REQUIRE(p != MAP_FAILED, "mmap");
    require_managed(p);
    const pid_t child = fork();
    if (child == 0) {
      check(p, 0, size & ~(size_t)7, 9, "child reads its parent's file mapping");
      REQUIRE(munmap((void*)p, size) == 0, "munmap in a child");
      _exit(0);
    }
    check(p, 0, size & ~(size_t)7, 9, "parent reads its file mapping");
    reap(child, "a file mapping");
    REQUIRE(munmap((void*)p, size) == 0, "munmap");
  }
  close(file);
}

int main(int argc, char** argv) {
  REQUIRE(argc >= 2, "usage: forks MIB [SEED [FILE]]");
  g_size = strtoull(argv[1], NULL, 0) * MIB;
  take_seed(argc, argv, 2);
  g_buffer = malloc(g_size);
  REQUIRE(g_buffer != NULL, "malloc");
  require_managed(g_buffer);
  fill(g_buffer, 0, g_size, 1);
  child_reads();
  child_writes();
  parent_writes();
  both_write_and_grandchild();
  child_execs();
  child_exits_at_once();
  child_allocates_and_frees();
  dont_fork();
  fork_while_writing();
  if (argc > 3) file_mapping(argv[3]);
  check(g_buffer, 0, g_size, 1, "the end");
  free(g_buffer);
  return 0;
}
