/* Writes and reads a buffer that is larger than DRAM, whose disk does not give back everything. A
 * page that is lost is SIGBUS, from then on, whatever is read of it; all others have the bytes that
 * were written. usage: losses MIB ROUNDS */
#include <setjmp.h>
#include <signal.h>

#include "pattern.h"

static sigjmp_buf g_resume;
static void* volatile g_fault;

static void on_sigbus(int signal, siginfo_t* info, void* context) {
  (void)signal;
  (void)context;
  g_fault = info->si_addr;
  siglongjmp(g_resume, 1);
}

/* Whether it is there; then it has the bytes of `version` or, of version 0, zeroes. */
static int is_there(unsigned char* buffer, size_t page, uint64_t version) {
  const size_t begin = page * PAGE, end = begin + PAGE;
  if (sigsetjmp(g_resume, 1) != 0) {
    const size_t at = (size_t)((unsigned char*)g_fault - buffer);
    REQUIRE(at >= begin && at < end, "SIGBUS of page %zu for page %zu", at / PAGE, page);
    return 0;
  }
  if (version == 0) {
    check_zero(buffer, begin, end, "never written");
  } else {
    check(buffer, begin, end, version, "page");
  }
  return 1;
}

int main(int argc, char** argv) {
  REQUIRE(argc == 3, "usage: losses MIB ROUNDS");
  const size_t pages = strtoull(argv[1], NULL, 0) * MIB / PAGE;
  const uint64_t rounds = strtoull(argv[2], NULL, 0);
  unsigned char* const buffer = malloc(pages * PAGE);
  unsigned char* const is_lost = calloc(pages, 1);
  REQUIRE(buffer != NULL && is_lost != NULL, "malloc");
  require_managed(buffer);
  const struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
  REQUIRE(sigaction(SIGBUS, &action, NULL) == 0, "sigaction");
  size_t lost = 0;
  for (uint64_t version = 0; version <= rounds; ++version) {
    for (size_t page = 0; page < pages; ++page) {
      const int there = is_there(buffer, page, version);
      REQUIRE(!is_lost[page] || !there, "page %zu was lost, and is there", page);
      if (!there && !is_lost[page]) {
        printf("lost page %zu\n", page);
        is_lost[page] = 1;
        ++lost;
      }
      if (there && version < rounds) fill(buffer, page * PAGE, (page + 1) * PAGE, version + 1);
    }
  }
  free(buffer);
  printf("ok losses: %zu of %zu pages were lost, the others have every byte\n", lost, pages);
  return 0;
}
