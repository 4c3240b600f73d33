// KV_CHECK: an invariant of the daemon. A broken one stops the process: carrying on could hand
// an engine a wrong byte. Not for use in libkvmem, which passes calls through instead.
#pragma once

#include <cstdio>
#include <cstdlib>

#define KV_CHECK(condition)                                                                   \
  do {                                                                                        \
    if (__builtin_expect(!(condition), 0)) {                                                  \
      std::fprintf(stderr, "<2>kvmemd: broken invariant %s at %s:%d\n", #condition, __FILE__, \
                   __LINE__);                                                                 \
      std::abort();                                                                           \
    }                                                                                         \
  } while (0)
