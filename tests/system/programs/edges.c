/* Every call on a large mapping does what the kernel does. Runs alone, too: then it is checked
 * against the kernel itself. usage: edges [SEED [FILE]] */
#include <fcntl.h>
#include <malloc.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "pattern.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

static sigjmp_buf g_fault;
static volatile int g_signal;

static void on_fault(int number) {
  g_signal = number;
  siglongjmp(g_fault, 1);
}
/* The signal that reading (or writing) a byte raises, or 0. */
static int fault_of(volatile unsigned char* p, int writes) {
  g_signal = 0;
  if (sigsetjmp(g_fault, 1) == 0) {
    if (writes) {
      *p = *p;
    } else {
      (void)*p;
    }
  }
  return g_signal;
}
#define READS(p) (fault_of((unsigned char*)(p), 0) == 0)
#define WRITES(p) (fault_of((unsigned char*)(p), 1) == 0)

static unsigned char* map_filled(size_t size, uint64_t version) {
  unsigned char* p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(p != MAP_FAILED, "mmap");
  require_managed(p);
  fill(p, 0, size & ~(size_t)7, version);
  return p;
}

static void alignments(void) {
  for (size_t alignment = 8; alignment <= 8 * MIB; alignment *= 2) {
    for (size_t extra = 0; extra < 3; ++extra) {
      const size_t size = 33 * MIB + extra * 1234567;
      void* p = NULL;
      REQUIRE(posix_memalign(&p, alignment, size) == 0, "posix_memalign %zu", alignment);
      REQUIRE((uintptr_t)p % alignment == 0, "posix_memalign %zu gave %p", alignment, p);
      REQUIRE(malloc_usable_size(p) >= size, "usable size");
      fill(p, 0, size & ~(size_t)7, 1);
      void* q = aligned_alloc(alignment, size / alignment * alignment + alignment);
      REQUIRE(q != NULL && (uintptr_t)q % alignment == 0, "aligned_alloc %zu gave %p", alignment,
              q);
      void* r = memalign(alignment, size);
      REQUIRE(r != NULL && (uintptr_t)r % alignment == 0, "memalign %zu gave %p", alignment, r);
      check(p, 0, size & ~(size_t)7, 1, "aligned");
      ((unsigned char*)p)[size - 1] = 1;
      free(p);
      free(q);
      free(r);
    }
  }
  void* p = (void*)1;
  REQUIRE(posix_memalign(&p, 3, 40 * MIB) == EINVAL && p == (void*)1, "odd alignment");
  REQUIRE(posix_memalign(&p, 24, 40 * MIB) == EINVAL, "alignment 24");
  REQUIRE(posix_memalign(&p, 4, 40 * MIB) == EINVAL, "alignment 4");
  p = valloc(40 * MIB);
  REQUIRE(p != NULL && (uintptr_t)p % OS_PAGE == 0, "valloc");
  free(p);
  p = pvalloc(40 * MIB + 1);
  REQUIRE(p != NULL && malloc_usable_size(p) >= 40 * MIB + OS_PAGE, "pvalloc");
  free(p);
  printf("ok alignments from 8 bytes to 8 MiB\n");
}

static void sizes_and_errno(void) {
  volatile size_t huge = SIZE_MAX / 2 + 10, half = SIZE_MAX / 2;
  errno = 0;
  REQUIRE(malloc(huge) == NULL && errno == ENOMEM, "malloc of too much");
  errno = 0;
  REQUIRE(calloc(half, 4) == NULL && errno == ENOMEM, "calloc that overflows");
  errno = 0;
  REQUIRE(reallocarray(NULL, half, 4) == NULL && errno == ENOMEM, "reallocarray that overflows");
  errno = 77;
  unsigned char* p = malloc(40 * MIB + 3);
  REQUIRE(errno == 77, "malloc changed errno");
  p[40 * MIB + 2] = 1;
  free(p);
  REQUIRE(errno == 77, "free changed errno");
  for (int i = 0; i < 3; ++i) {
    p = calloc(5, 9 * MIB);
    REQUIRE(errno == 77, "calloc changed errno");
    check_zero(p, 0, 45 * MIB, "calloc");
    fill(p, 0, 45 * MIB, 1);
    free(p);
  }
  /* The last OS page of a mapping of odd length is whole. */
  p = map_filled(40 * MIB + 100, 2);
  check_zero(p + 40 * MIB + 104, 0, OS_PAGE - 104, "rest of the last page");
  REQUIRE(munmap(p, 40 * MIB + 100) == 0, "munmap");
  REQUIRE(mmap(NULL, 0, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED &&
              errno == EINVAL,
          "mmap of nothing");
  printf("ok sizes, overflow, errno\n");
}

static void partial_unmap(void) {
  const size_t size = 64 * MIB;
  unsigned char* p = map_filled(size, 3);
  REQUIRE(munmap(p, 5 * OS_PAGE) == 0, "head");
  REQUIRE(munmap(p + size - 3 * OS_PAGE, 3 * OS_PAGE) == 0, "tail");
  REQUIRE(munmap(p + 10 * MIB + OS_PAGE, 7 * MIB) == 0, "middle");
  REQUIRE(munmap(p + 31 * MIB, OS_PAGE) == 0, "one OS page");
  REQUIRE(munmap(p + 40 * MIB, 4 * MIB) == 0, "two whole pages");
  REQUIRE(munmap(p + 40 * MIB, 4 * MIB) == 0, "again: no error");
  REQUIRE(munmap(p + 1, OS_PAGE) == -1 && errno == EINVAL, "odd address");
  REQUIRE(munmap(p + PAGE, 0) == -1 && errno == EINVAL, "empty range");
  check(p, 5 * OS_PAGE, 10 * MIB + OS_PAGE, 3, "before the hole");
  check(p, 17 * MIB + OS_PAGE, 31 * MIB, 3, "after the hole");
  check(p, 31 * MIB + OS_PAGE, 40 * MIB, 3, "after one OS page");
  check(p, 44 * MIB, size - 3 * OS_PAGE, 3, "to the tail");
  REQUIRE(!READS(p) && !READS(p + 5 * OS_PAGE - 1), "head is gone");
  REQUIRE(!READS(p + 12 * MIB) && !READS(p + 17 * MIB + OS_PAGE - 1), "hole is gone");
  REQUIRE(!READS(p + 31 * MIB) && !READS(p + 42 * MIB) && !READS(p + size - 1), "the rest is gone");
  /* Into the hole, at a fixed address. */
  unsigned char* in = mmap(p + 12 * MIB, 3 * OS_PAGE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  REQUIRE(in == p + 12 * MIB, "MAP_FIXED into a hole");
  check_zero(in, 0, 3 * OS_PAGE, "MAP_FIXED");
  fill(in, 0, 3 * OS_PAGE, 4);
  in = mmap(p + 40 * MIB, PAGE, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  REQUIRE(in == p + 40 * MIB, "MAP_FIXED_NOREPLACE into a hole: %p", (void*)in);
  fill(in, 0, PAGE, 5);
  REQUIRE(mmap(p + 50 * MIB, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
               0) == MAP_FAILED &&
              errno == EEXIST,
          "MAP_FIXED_NOREPLACE over memory");
  /* Over memory that is there. */
  unsigned char* over = mmap(p + 47 * MIB + OS_PAGE, 3 * MIB, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  REQUIRE(over == p + 47 * MIB + OS_PAGE, "MAP_FIXED over memory");
  check_zero(over, 0, 3 * MIB, "MAP_FIXED over memory");
  check(p, 44 * MIB, 47 * MIB + OS_PAGE, 3, "beside MAP_FIXED");
  check(p, 50 * MIB + OS_PAGE, size - 3 * OS_PAGE, 3, "behind MAP_FIXED");
  check(in, 0, PAGE, 5, "the fixed mapping");
  REQUIRE(munmap(p, size) == 0, "all");
  REQUIRE(!READS(p + 20 * MIB) && !READS(p + 12 * MIB) && !READS(p + 48 * MIB), "all is gone");
  printf("ok partial munmap, MAP_FIXED over and into it\n");
}

static void dontneed(void) {
  const size_t size = 48 * MIB;
  unsigned char* p = map_filled(size, 6);
  REQUIRE(madvise(p + 4 * MIB, 8 * MIB, MADV_DONTNEED) == 0, "whole pages");
  REQUIRE(madvise(p + 20 * MIB + OS_PAGE, 5 * MIB, MADV_DONTNEED) == 0, "parts of pages");
  REQUIRE(madvise(p + 30 * MIB, 100, MADV_DONTNEED) == 0, "length is rounded up");
  check(p, 0, 4 * MIB, 6, "before");
  check_zero(p + 4 * MIB, 0, 8 * MIB, "MADV_DONTNEED of whole pages");
  check(p, 12 * MIB, 20 * MIB + OS_PAGE, 6, "between");
  check_zero(p + 20 * MIB + OS_PAGE, 0, 5 * MIB, "MADV_DONTNEED of parts");
  check(p, 25 * MIB + OS_PAGE, 30 * MIB, 6, "behind");
  check_zero(p + 30 * MIB, 0, OS_PAGE, "MADV_DONTNEED of 100 bytes");
  check(p, 30 * MIB + OS_PAGE, size, 6, "the rest");
  fill(p, 0, size, 7);
  check(p, 0, size, 7, "written again");
  REQUIRE(madvise(p, size, MADV_FREE) == 0, "MADV_FREE");
  for (size_t at = 0; at < size; at += OS_PAGE) {
    const uint64_t word = *(volatile uint64_t*)(p + at);
    REQUIRE(word == 0 || word == pattern(at, 7), "MADV_FREE: neither old nor zero at %zu", at);
  }
  fill(p, 0, size, 8);
  for (int i = 0; i < 5; ++i) {
    REQUIRE(madvise(p, size, MADV_DONTNEED) == 0, "all of it");
    check_zero(p, 0, size, "MADV_DONTNEED of all");
    fill(p, 0, size, 8);
  }
  static const int harmless[] = {MADV_NORMAL,   MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, 20, 21,
                                 MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP,   MADV_DODUMP};
  for (size_t i = 0; i < sizeof harmless / sizeof *harmless; ++i) {
    REQUIRE(madvise(p + 6 * MIB, 7 * MIB + OS_PAGE, harmless[i]) == 0, "advice %d", harmless[i]);
  }
  REQUIRE(madvise(p, size, MADV_POPULATE_READ) == 0 || errno == EINVAL, "populate");
  REQUIRE(madvise(p + 1, OS_PAGE, MADV_DONTNEED) == -1 && errno == EINVAL, "odd address");
  REQUIRE(madvise(p, size, 12345) == -1 && errno == EINVAL, "no such advice");
  REQUIRE(madvise(p, 0, MADV_DONTNEED) == 0, "nothing");
  REQUIRE(madvise(p, PAGE, MADV_REMOVE) == -1 && errno == EINVAL,
          "MADV_REMOVE is for shared memory");
  REQUIRE(posix_madvise(p, size, POSIX_MADV_DONTNEED) == 0, "posix");
  REQUIRE(posix_madvise(p, size, POSIX_MADV_WILLNEED) == 0, "posix");
  check(p, 0, size, 8, "advice");
  REQUIRE(munmap(p + 10 * MIB, PAGE) == 0, "hole");
  REQUIRE(madvise(p, size, MADV_DONTNEED) == -1 && errno == ENOMEM, "a hole is ENOMEM");
  check_zero(p, 0, 10 * MIB, "MADV_DONTNEED across a hole, before");
  check_zero(p + 12 * MIB, 0, size - 12 * MIB, "MADV_DONTNEED across a hole, behind");
  munmap(p, size);
  printf("ok MADV_DONTNEED, MADV_FREE, other advice\n");
}

/* What only ordinary memory can do, to more than fits into DRAM at once. */
static void ordinary_memory(void) {
  const size_t size = 192 * MIB;
  unsigned char* p = map_filled(size, 21);
  REQUIRE(madvise(p, size, 9999) == -1 && errno == EINVAL, "an advice that there is not");
  REQUIRE(madvise(p, 0, 9999) == -1 && errno == EINVAL, "for nothing");
  require_managed(p);
  require_managed(p + size / 2);
  REQUIRE(madvise(p, size, MADV_KEEPONFORK) == 0, "MADV_KEEPONFORK");
  REQUIRE(madvise(p, size, MADV_WIPEONFORK) == 0, "MADV_WIPEONFORK");
  check(p, 0, size, 21, "after MADV_WIPEONFORK");
  const pid_t child = fork();
  REQUIRE(child >= 0, "fork");
  if (child == 0) {
    check_zero(p, 0, size, "wiped");
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child && status == 0, "child: %x", status);
  check(p, 0, size, 21, "after the fork");
  REQUIRE(munmap(p, size) == 0, "munmap");

  p = map_filled(size, 22);
  REQUIRE(mprotect(p, size, PROT_READ | PROT_WRITE | PROT_EXEC) == 0, "executable");
  check(p, 0, size, 22, "executable");
  unsigned char* q = mremap(p, size, size + 64 * MIB, MREMAP_MAYMOVE);
  REQUIRE(q != MAP_FAILED, "one mapping, as before");
  check(q, 0, size, 22, "moved");
  REQUIRE(munmap(q, size + 64 * MIB) == 0, "munmap");
  printf("ok more ordinary memory than DRAM\n");
}

static void protections(void) {
  const size_t size = 48 * MIB;
  unsigned char* p = map_filled(size, 9);
  REQUIRE(mprotect(p + 8 * MIB, 4 * MIB, PROT_READ) == 0, "whole pages, read");
  REQUIRE(mprotect(p + 16 * MIB, 4 * MIB, PROT_NONE) == 0, "whole pages, none");
  REQUIRE(mprotect(p + 25 * MIB, 2 * OS_PAGE, PROT_READ) == 0, "guard, read");
  REQUIRE(mprotect(p + 29 * MIB, OS_PAGE, PROT_NONE) == 0, "guard, none");
  REQUIRE(!WRITES(p + 8 * MIB) && !WRITES(p + 12 * MIB - 1) && READS(p + 8 * MIB), "read-only");
  REQUIRE(!READS(p + 16 * MIB) && !READS(p + 20 * MIB - 1), "none");
  REQUIRE(WRITES(p + 8 * MIB - 1) && WRITES(p + 12 * MIB) && WRITES(p + 20 * MIB), "beside");
  REQUIRE(READS(p + 25 * MIB) && !WRITES(p + 25 * MIB), "guard, read");
  REQUIRE(!READS(p + 29 * MIB) && WRITES(p + 29 * MIB - 1) && WRITES(p + 29 * MIB + OS_PAGE),
          "guard");
  check(p, 0, 16 * MIB, 9, "contents");
  check(p, 20 * MIB, 29 * MIB, 9, "contents");
  check(p, 29 * MIB + OS_PAGE, size, 9, "contents");
  REQUIRE(mprotect(p, size, PROT_READ | PROT_WRITE) == 0, "back");
  check(p, 0, size, 9, "contents after all");
  fill(p, 0, size, 10);
  REQUIRE(mprotect(p + 40 * MIB, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) == 0, "exec");
  check(p, 0, size, 10, "exec");
  REQUIRE(mprotect(p, size, PROT_READ) == 0, "all read-only");
  REQUIRE(madvise(p, 3 * MIB, MADV_DONTNEED) == 0, "MADV_DONTNEED of read-only memory");
  check_zero(p, 0, 3 * MIB, "MADV_DONTNEED of read-only memory");
  check(p, 3 * MIB, size, 10, "read-only");
  REQUIRE(!WRITES(p + 3 * MIB - 1) && !WRITES(p), "still read-only");
  REQUIRE(mprotect(p + 1, OS_PAGE, PROT_READ) == -1 && errno == EINVAL, "odd address");
  REQUIRE(munmap(p + 20 * MIB, PAGE) == 0, "hole");
  REQUIRE(mprotect(p, size, PROT_READ) == -1 && errno == ENOMEM, "a hole is ENOMEM");
  munmap(p, size);
  printf("ok mprotect\n");
}

static void locking(void) {
  const size_t size = 40 * MIB;
  unsigned char* p = map_filled(size, 11);
  REQUIRE(mlock(p + 3 * MIB + 5, 9 * MIB) == 0 || errno == ENOMEM || errno == EPERM, "mlock");
  REQUIRE(mlock2(p, PAGE, 1 /* MLOCK_ONFAULT */) == 0 || errno == ENOMEM || errno == EPERM,
          "mlock2");
  check(p, 0, size, 11, "locked");
  REQUIRE(munlock(p, size) == 0, "munlock");
  REQUIRE(munmap(p + 10 * MIB, PAGE) == 0, "hole");
  REQUIRE(mlock(p, size) == -1 && errno == ENOMEM, "a hole is ENOMEM");
  munmap(p, size);
  printf("ok mlock, munlock\n");
}

static void remapping(void) {
  const size_t size = 40 * MIB;
  unsigned char* p = map_filled(size, 12);
  REQUIRE(mremap(p, size, size, 0) == p, "same size");
  REQUIRE(mremap(p, size, 36 * MIB + OS_PAGE, 0) == p, "shrink");
  REQUIRE(!READS(p + 36 * MIB + OS_PAGE) && READS(p + 36 * MIB), "shrunk");
  unsigned char* q = mremap(p, 36 * MIB + OS_PAGE, 80 * MIB, MREMAP_MAYMOVE);
  REQUIRE(q != MAP_FAILED, "grow");
  check(q, 0, 36 * MIB + OS_PAGE, 12, "grown");
  check_zero(q + 36 * MIB + OS_PAGE, 0, 44 * MIB - OS_PAGE, "new part");
  REQUIRE(q == p || !READS(p), "the old place is gone");
  fill(q, 0, 80 * MIB, 13);
  unsigned char* target = mmap(NULL, 90 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(
      mremap(q, 80 * MIB, 80 * MIB, MREMAP_MAYMOVE | MREMAP_FIXED, target + PAGE) == target + PAGE,
      "to a fixed place");
  check(target + PAGE, 0, 80 * MIB, 13, "at the fixed place");
  REQUIRE(!READS(q), "the old place is gone");
  /* And onto a region. */
  p = map_filled(size, 14);
  REQUIRE(mremap(target + PAGE, 4 * MIB, 4 * MIB, MREMAP_MAYMOVE | MREMAP_FIXED, p + 9 * MIB) ==
              p + 9 * MIB,
          "onto a region");
  check(p, 0, 9 * MIB, 14, "before what was moved in");
  check(p + 9 * MIB, 0, 4 * MIB, 13, "what was moved in");
  check(p, 13 * MIB, size, 14, "behind what was moved in");
  /* A part of a region, out of it. */
  q = mremap(p + 20 * MIB, 3 * MIB, 5 * MIB, MREMAP_MAYMOVE);
  REQUIRE(q != MAP_FAILED, "a part");
  for (size_t at = 0; at < 3 * MIB; at += 8) {
    REQUIRE(*(uint64_t*)(q + at) == pattern(20 * MIB + at, 14), "a part, at %zu", at);
  }
  check_zero(q + 3 * MIB, 0, 2 * MIB, "a part, grown");
  check(p, 23 * MIB, size, 14, "behind the part");
  REQUIRE(!READS(p + 20 * MIB), "the part is gone");
  munmap(q, 5 * MIB);
  q = mremap(p + 30 * MIB, 4 * MIB, 4 * MIB, MREMAP_MAYMOVE | 4 /* MREMAP_DONTUNMAP */);
  if (q != MAP_FAILED) {
    for (size_t at = 0; at < 4 * MIB; at += 8) {
      REQUIRE(*(uint64_t*)(q + at) == pattern(30 * MIB + at, 14), "MREMAP_DONTUNMAP, at %zu", at);
    }
    check_zero(p + 30 * MIB, 0, 4 * MIB, "MREMAP_DONTUNMAP leaves zeroes");
    munmap(q, 4 * MIB);
  }
  REQUIRE(mremap(p + 1, PAGE, PAGE, 0) == MAP_FAILED && errno == EINVAL, "odd address");
  munmap(p, size);
  munmap(target, 90 * MIB);
  printf("ok mremap\n");
}

static void unlike_mappings(void) {
  /* None of these may become a region; all must work. */
  unsigned char* p =
      mmap(NULL, 40 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(p != MAP_FAILED && !is_managed(p), "shared anonymous");
  const pid_t child = fork();
  if (child == 0) {
    p[5] = 42;
    _exit(0);
  }
  waitpid(child, NULL, 0);
  REQUIRE(p[5] == 42, "shared with a child");
  munmap(p, 40 * MIB);
  p = mmap(NULL, 40 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(p != MAP_FAILED && !READS(p), "reserved");
  REQUIRE(mprotect(p + PAGE, PAGE, PROT_READ | PROT_WRITE) == 0 && WRITES(p + PAGE), "committed");
  munmap(p, 40 * MIB);
  p = mmap(NULL, 40 * MIB, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(p != MAP_FAILED && WRITES(p), "executable");
  munmap(p, 40 * MIB);
  p = mmap(NULL, 40 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  REQUIRE(p != MAP_FAILED && WRITES(p), "stack");
  munmap(p, 40 * MIB);
  printf("ok mappings that are none of kvmem's business\n");
}

static void file_mappings(const char* path) {
  const int file = open(path, O_RDONLY);
  struct stat s;
  REQUIRE(file >= 0 && fstat(file, &s) == 0, "%s", path);
  const size_t size = (size_t)s.st_size, whole = size & ~(size_t)7;
  for (int kind = 0; kind < 2; ++kind) {
    const int flags = kind == 0 ? MAP_SHARED | MAP_POPULATE : MAP_PRIVATE;
    unsigned char* p = mmap(NULL, size, PROT_READ, flags, file, 0);
    REQUIRE(p != MAP_FAILED, "mmap");
    require_managed(p);
    unsigned char* second = mmap(NULL, size - PAGE, PROT_READ, flags, file, (off_t)PAGE);
    REQUIRE(second != MAP_FAILED, "mmap of a part");
    REQUIRE(posix_madvise(p, size, POSIX_MADV_WILLNEED) == 0, "willneed");
    REQUIRE(munmap(p, 7 * OS_PAGE) == 0, "llama.cpp unmaps the head");
    check(p, 7 * OS_PAGE, whole, 9, "file");
    for (size_t at = size & ~(OS_PAGE - 1); at < size; ++at) {
      unsigned char wanted[8];
      const uint64_t word = pattern(at & ~(size_t)7, 9);
      memcpy(wanted, &word, 8);
      REQUIRE(p[at] == wanted[at & 7], "last byte %zu", at);
    }
    for (size_t at = size; at % OS_PAGE != 0; ++at) REQUIRE(p[at] == 0, "beyond the end: %zu", at);
    for (size_t at = 0; at < whole - PAGE; at += 8) {
      REQUIRE(*(uint64_t*)(second + at) == pattern(at + PAGE, 9), "second mapping at %zu", at);
    }
    REQUIRE(!READS(p) && !WRITES(p + PAGE), "head gone, read-only");
    REQUIRE(madvise(p + PAGE, 10 * MIB, MADV_DONTNEED) == 0, "dontneed");
    check(p, PAGE, 20 * MIB, 9, "file after dontneed");
    REQUIRE(munmap(p + 30 * MIB + OS_PAGE, 5 * MIB) == 0, "hole");
    check(p, 20 * MIB, 30 * MIB + OS_PAGE, 9, "before the hole");
    check(p, 35 * MIB + OS_PAGE, whole, 9, "behind the hole");
    REQUIRE(!READS(p + 33 * MIB), "hole");
    if (kind == 0) {
      REQUIRE(mprotect(p + 40 * MIB, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES,
              "a shared mapping of a file that is open for reading");
    } else {
      REQUIRE(mprotect(p + 40 * MIB, 3 * MIB, PROT_READ | PROT_WRITE) == 0, "private, writable");
      p[40 * MIB] ^= 1;
      REQUIRE(second[38 * MIB] != p[40 * MIB], "a private write stays private");
      p[40 * MIB] ^= 1;
    }
    check(p, 35 * MIB + OS_PAGE, whole, 9, "after mprotect");
    unsigned char* q = mremap(p + 44 * MIB, 3 * MIB, 3 * MIB, MREMAP_MAYMOVE | MREMAP_FIXED,
                              mmap(NULL, 4 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REQUIRE(q != MAP_FAILED, "mremap of a part of a file");
    for (size_t at = 0; at < 3 * MIB; at += 8) {
      REQUIRE(*(uint64_t*)(q + at) == pattern(at + 44 * MIB, 9), "moved at %zu", at);
    }
    munmap(q, 4 * MIB);
    REQUIRE(munmap(p + 7 * OS_PAGE, size - 7 * OS_PAGE) == 0, "all");
    REQUIRE(munmap(second, size - PAGE) == 0, "second");
  }
  /* Beyond the end of the file. */
  unsigned char* p = mmap(NULL, size + 3 * PAGE, PROT_READ, MAP_PRIVATE, file, 0);
  REQUIRE(p != MAP_FAILED && READS(p), "longer than the file");
  REQUIRE(fault_of(p + size + PAGE, 0) == SIGBUS, "beyond the end is SIGBUS");
  munmap(p, size + 3 * PAGE);
  REQUIRE(mmap(NULL, size, PROT_READ, MAP_PRIVATE, 99, 0) == MAP_FAILED && errno == EBADF,
          "no file");
  close(file);
  const int directory = open("/", O_RDONLY);
  REQUIRE(mmap(NULL, size, PROT_READ, MAP_PRIVATE, directory, 0) == MAP_FAILED && errno == ENODEV,
          "a directory");
  close(directory);
  printf("ok file mappings\n");
}

int main(int argc, char** argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  take_seed(argc, argv, 1);
  struct sigaction action = {.sa_handler = on_fault};
  sigaction(SIGSEGV, &action, NULL);
  sigaction(SIGBUS, &action, NULL);
  alignments();
  sizes_and_errno();
  partial_unmap();
  dontneed();
  protections();
  ordinary_memory();
  locking();
  remapping();
  unlike_mappings();
  if (argc > 2) file_mappings(argv[2]);
  return 0;
}
