// The least an interposed malloc can cost: malloc and free that jump to glibc's and do nothing
// else. overhead.py preloads it to tell the price of being called from the price of what is done.

#include <dlfcn.h>
#include <stddef.h>

static void* (*real_malloc)(size_t);
static void (*real_free)(void*);

__attribute__((constructor)) static void resolve(void) {
  *(void**)&real_malloc = dlsym(RTLD_NEXT, "malloc");
  *(void**)&real_free = dlsym(RTLD_NEXT, "free");
}

void* malloc(size_t size) {
  if (__builtin_expect(real_malloc == NULL, 0)) resolve();
  return real_malloc(size);
}

void free(void* p) {
  if (__builtin_expect(real_free == NULL, 0)) resolve();
  real_free(p);
}
