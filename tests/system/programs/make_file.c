/* Writes FILE of SIZE bytes of pattern, version 9. usage: make_file FILE SIZE [SEED] */
#include "pattern.h"

int main(int argc, char** argv) {
  REQUIRE(argc >= 3, "usage: make_file FILE SIZE [SEED]");
  const uint64_t size = strtoull(argv[2], NULL, 0);
  g_seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;
  FILE* out = fopen(argv[1], "wb");
  REQUIRE(out != NULL, "%s", argv[1]);
  for (uint64_t at = 0; at < size; at += 8) {
    const uint64_t word = pattern(at, 9);
    const size_t n = size - at < 8 ? (size_t)(size - at) : 8;
    REQUIRE(fwrite(&word, 1, n, out) == n, "write");
  }
  REQUIRE(fclose(out) == 0, "close");
  return 0;
}
