/* Writes a buffer once, then goes around in its first half, which is larger than DRAM, until it is
 * told to end by a signal or its standard input. usage: half MIB */
#include <poll.h>

#include "pattern.h"

int main(int argc, char** argv) {
  REQUIRE(argc >= 2, "usage: half MIB");
  const size_t size = strtoull(argv[1], NULL, 0) * MIB;
  unsigned char* const buffer = malloc(size);
  REQUIRE(buffer != NULL, "malloc");
  require_managed(buffer);
  size_t rounds = 0;
  for (size_t at = 0; at < size; at += PAGE) fill(buffer, at, at + OS_PAGE, rounds);
  printf("written\n");
  fflush(stdout);
  struct pollfd input = {.fd = 0, .events = POLLIN};
  while (poll(&input, 1, 0) == 0) {
    for (size_t at = 0; at < size / 2; at += PAGE) {
      check(buffer, at, at + OS_PAGE, rounds, "the half in use");
      fill(buffer, at, at + OS_PAGE, rounds + 1);
    }
    ++rounds;
  }
  for (size_t at = 0; at < size; at += PAGE) {
    check(buffer, at, at + OS_PAGE, at < size / 2 ? rounds : 0, "end");
  }
  free(buffer);
  printf("ok half: %zu rounds\n", rounds);
  return 0;
}
