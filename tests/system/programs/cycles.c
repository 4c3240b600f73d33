/* Large allocations come and go without anything growing. usage: cycles COUNT [SEED] */
#include <dirent.h>
#include <sys/mman.h>

#include "pattern.h"

static long count_entries(const char* path) {
  long count = 0;
  DIR* dir = opendir(path);
  REQUIRE(dir != NULL, "%s", path);
  while (readdir(dir) != NULL) ++count;
  closedir(dir);
  return count;
}
static long count_lines(const char* path) {
  long count = 0;
  FILE* file = fopen(path, "r");
  REQUIRE(file != NULL, "%s", path);
  for (int c; (c = fgetc(file)) != EOF;) count += c == '\n';
  fclose(file);
  return count;
}
static long status_kib(const char* key) {
  char line[256];
  long value = -1;
  FILE* file = fopen("/proc/self/status", "r");
  REQUIRE(file != NULL, "status");
  while (fgets(line, sizeof line, file) != NULL) {
    if (strncmp(line, key, strlen(key)) == 0) value = atol(line + strlen(key) + 1);
  }
  fclose(file);
  return value;
}
/* Descriptors of every thread: kvmem's agent has a table of its own. */
static long descriptors(void) {
  long count = 0;
  DIR* tasks = opendir("/proc/self/task");
  for (struct dirent* d; (d = readdir(tasks)) != NULL;) {
    char path[600];
    if (d->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "/proc/self/task/%s/fd", d->d_name);
    count += count_entries(path);
  }
  closedir(tasks);
  return count;
}

int main(int argc, char** argv) {
  REQUIRE(argc >= 2, "usage: cycles COUNT [SEED]");
  const int count = atoi(argv[1]);
  take_seed(argc, argv, 2);
  uint64_t random = g_seed;
  unsigned char* keep = malloc(34 * MIB);
  require_managed(keep);
  fill(keep, 0, 34 * MIB, 1);
  long fds = 0, maps = 0, rss = 0;
  for (int i = 0; i < count; ++i) {
    if (i == count / 10) {
      fds = descriptors();
      maps = count_lines("/proc/self/maps");
      rss = status_kib("VmRSS:");
    }
    const size_t size = 32 * MIB + next_random(&random) % (64 * MIB);
    if (i % 2 == 0) {
      unsigned char* p = malloc(size);
      REQUIRE(p != NULL, "malloc");
      require_managed(p);
      p[0] = p[size / 2] = p[size - 1] = 1;
      free(p);
    } else {
      unsigned char* p =
          mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      REQUIRE(p != MAP_FAILED && p[size / 3] == 0, "mmap");
      require_managed(p);
      p[size / 3] = 1;
      REQUIRE(munmap(p, size) == 0, "munmap");
    }
  }
  const long more_fds = descriptors() - fds, more_maps = count_lines("/proc/self/maps") - maps;
  const long more_kib = status_kib("VmRSS:") - rss;
  printf("after %d cycles, against %d: %+ld descriptors, %+ld mappings, %+ld KiB resident\n", count,
         count / 10, more_fds, more_maps, more_kib);
  REQUIRE(more_fds <= 0 && more_maps <= 4 && more_kib <= 4096, "growth");
  check(keep, 0, 34 * MIB, 1, "what stayed");
  free(keep);
  printf("ok %d cycles without growth\n", count);
  return 0;
}
