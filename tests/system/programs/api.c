/* The C API. usage: api served | api unarmed (linked, no daemon) */
#include <kvmem.h>

#include "pattern.h"

static void unarmed(void) {
  void* p = malloc(40 * MIB);
  REQUIRE(p != NULL && !is_managed(p), "only preloading intercepts");
  fill(p, 0, 40 * MIB, 1);
  free(p);
  void* region = (void*)1;
  REQUIRE(kvmem_region_create(40 * MIB, NULL, &region) == -ENOTCONN, "no daemon");
  REQUIRE(region == (void*)1, "untouched");
  printf("ok api without a daemon: -ENOTCONN\n");
}

static void served(void) {
  const struct kvmem_region_options options = {.size = sizeof options, .tag = "a test's region"};
  const size_t size = 20 * MIB + 5;
  void* region = NULL;
  errno = 77;
  REQUIRE(kvmem_region_create(size, &options, &region) == 0, "create");
  REQUIRE((uintptr_t)region % KVMEM_PAGE_BYTES == 0, "alignment");
  unsigned char states[11];
  REQUIRE(kvmem_residency(region, size, states) == 0, "residency");
  for (int i = 0; i < 11; ++i) REQUIRE(states[i] == KVMEM_FRESH, "page %d is %d", i, states[i]);
  fill(region, 0, 4 * MIB, 1);
  REQUIRE(kvmem_residency(region, size, states) == 0, "residency");
  for (int i = 0; i < 11; ++i) {
    REQUIRE(states[i] == (i < 2 ? KVMEM_RESIDENT : KVMEM_FRESH) || states[i] == KVMEM_FILLING,
            "page %d is %d", i, states[i]);
  }
  for (int advice = KVMEM_NORMAL; advice <= KVMEM_PREFETCH; ++advice) {
    REQUIRE(kvmem_advise(region, size, (enum kvmem_advice)advice) == 0, "advice %d", advice);
  }
  struct kvmem_statistics stats = {.size = sizeof stats};
  REQUIRE(kvmem_stats(&stats) == 0, "stats");
  REQUIRE(stats.regions >= 1 && stats.is_connected == 1, "stats");
  REQUIRE(stats.managed_bytes == stats.fresh_bytes + stats.resident_bytes + stats.stored_bytes +
                                     stats.origin_bytes + stats.filling_bytes + stats.lost_bytes,
          "bytes by state are all bytes");
  REQUIRE(stats.size == sizeof stats, "size");
  struct {
    struct kvmem_statistics s;
    char more[64];
  } larger = {.s = {.size = sizeof larger}};
  REQUIRE(kvmem_stats(&larger.s) == 0 && larger.s.size == sizeof larger.s, "a newer caller");
  check(region, 0, 4 * MIB, 1, "contents");
  REQUIRE(kvmem_region_destroy((char*)region + 4096) == -EINVAL, "not a start");
  REQUIRE(kvmem_region_destroy(region) == 0, "destroy");
  REQUIRE(kvmem_region_destroy(region) == -EINVAL, "twice");
  REQUIRE(kvmem_region_create(size, NULL, &region) == 0, "create");
  free(region);
  REQUIRE(errno == 77, "errno changed");
  printf("ok api: create, advise, residency, stats, destroy\n");
}

int main(int argc, char** argv) {
  void* p = NULL;
  REQUIRE(argc == 2, "usage: api served|unarmed");
  REQUIRE(kvmem_version() == KVMEM_VERSION, "version");
  REQUIRE(kvmem_region_create(0, NULL, &p) == -EINVAL, "nothing");
  REQUIRE(kvmem_region_create(PAGE, NULL, NULL) == -EINVAL, "nowhere");
  REQUIRE(kvmem_region_destroy(&p) == -EINVAL && kvmem_region_destroy(NULL) == -EINVAL,
          "no region");
  REQUIRE(kvmem_advise(&p, 8, KVMEM_HOT) == -ENOMEM, "no region");
  REQUIRE(kvmem_advise(&p, 8, (enum kvmem_advice)99) == -EINVAL, "no advice");
  REQUIRE(kvmem_stats(NULL) == -EINVAL, "no stats");
  for (int e = -200; e < 10; ++e) REQUIRE(kvmem_strerror(e) != NULL, "text");
  if (strcmp(argv[1], "served") == 0) {
    served();
  } else {
    unarmed();
  }
  return 0;
}
