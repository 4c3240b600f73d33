/* Several regions, the first with a part given up, outlive a daemon that is killed: whoever brings
 * them back must bring back all. usage: resumes SECONDS [SEED] */
#include <sys/mman.h>
#include <time.h>

#include "pattern.h"

int main(int argc, char** argv) {
  REQUIRE(argc >= 2, "usage: resumes SECONDS [SEED]");
  const time_t deadline = time(NULL) + atoi(argv[1]);
  take_seed(argc, argv, 2);
  const size_t first_size = 64 * MIB, hole = 24 * MIB, hole_end = 32 * MIB, size = 128 * MIB;
  unsigned char* first =
      mmap(NULL, first_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(first != MAP_FAILED, "mmap");
  require_managed(first);
  REQUIRE(munmap(first + hole, hole_end - hole) == 0, "munmap");
  unsigned char* second = malloc(size);
  REQUIRE(second != NULL, "malloc");
  require_managed(second);
  uint64_t version = 1;
  for (; version == 1 || time(NULL) < deadline; ++version) {
    fill(first, 0, hole, version);
    fill(first, hole_end, first_size, version);
    fill(second, 0, size, version);
    check(first, 0, hole, version, "below the hole");
    check(first, hole_end, first_size, version, "above the hole");
    check(second, 0, size, version, "the second region");
  }
  require_managed(first);
  require_managed(second);
  REQUIRE(munmap(first, first_size) == 0, "munmap");
  free(second);
  printf("ok resumes: %llu rounds\n", (unsigned long long)version);
  return 0;
}
