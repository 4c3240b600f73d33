/* realloc and mremap, up and down, across the threshold. usage: resizes ROUNDS [SEED] */
#include <malloc.h>
#include <sys/mman.h>

#include "pattern.h"

static size_t size_of_round(uint64_t* random) {
  /* From nothing to 96 MiB, often near the threshold of 32 MiB and near page ends. */
  switch (next_random(random) % 5) {
    case 0:
      return next_random(random) % 100000 + 8;
    case 1:
      return 32 * MIB - 64 + next_random(random) % 128;
    case 2:
      return PAGE * (next_random(random) % 48) + next_random(random) % 64 + 1;
    default:
      return next_random(random) % (96 * MIB) + 8;
  }
}

int main(int argc, char** argv) {
  REQUIRE(argc >= 2, "usage: resizes ROUNDS [SEED]");
  const int rounds = atoi(argv[1]);
  take_seed(argc, argv, 2);
  uint64_t random = g_seed;
  unsigned char* p = NULL;
  size_t size = 0;
  for (int i = 0; i < rounds; ++i) {
    const size_t next = size_of_round(&random);
    unsigned char* q = next_random(&random) % 2 ? realloc(p, next) : reallocarray(p, 1, next);
    REQUIRE(q != NULL, "realloc to %zu", next);
    REQUIRE(malloc_usable_size(q) >= next, "usable size");
    const size_t kept = (size < next ? size : next) & ~(size_t)7;
    check(q, 0, kept, (uint64_t)i, "realloc keeps");
    fill(q, 0, next & ~(size_t)7, (uint64_t)i + 1);
    q[next - 1] = q[next - 1];
    p = q;
    size = next;
  }
  void* nothing = realloc(p, 0); /* glibc frees */
  REQUIRE(nothing == NULL, "realloc to nothing");
  printf("ok realloc: %d sizes\n", rounds);

  /* Down and up again within one region: what was given up must not be taken for there. */
  p = malloc(100 * MIB);
  REQUIRE(p != NULL, "malloc");
  require_managed(p);
  fill(p, 0, 40 * MIB, 1);
  p = realloc(p, 40 * MIB);
  REQUIRE(p != NULL, "realloc down");
  p = realloc(p, 100 * MIB);
  REQUIRE(p != NULL, "realloc up again");
  check(p, 0, 40 * MIB, 1, "down and up");
  fill(p, 0, 100 * MIB, 2);
  check(p, 0, 100 * MIB, 2, "written after down and up");
  free(p);
  printf("ok realloc down and up again\n");

  size = 40 * MIB;
  p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(p != MAP_FAILED, "mmap");
  fill(p, 0, size, 1);
  for (int i = 1; i < rounds; ++i) {
    const size_t next = (size_of_round(&random) + OS_PAGE) & ~(OS_PAGE - 1);
    unsigned char* q = mremap(p, size, next, MREMAP_MAYMOVE);
    REQUIRE(q != MAP_FAILED, "mremap from %zu to %zu", size, next);
    check(q, 0, size < next ? size : next, (uint64_t)i, "mremap keeps");
    if (next > size) check_zero(q + size, 0, next - size, "mremap adds zeroes");
    fill(q, 0, next, (uint64_t)i + 1);
    p = q;
    size = next;
  }
  REQUIRE(munmap(p, size) == 0, "munmap");
  printf("ok mremap: %d sizes\n", rounds);
  return 0;
}
