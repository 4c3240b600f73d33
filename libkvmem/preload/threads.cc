// pthread_exit, for the sake of a main thread that ends before the others.
#include <dlfcn.h>
#include <pthread.h>

#include "region/host.h"

extern "C" __attribute__((visibility("default"), noreturn)) void pthread_exit(void* result) {
  kvmem::host::thread_exits();
  reinterpret_cast<void (*)(void*)>(dlsym(RTLD_NEXT, "pthread_exit"))(result);
  __builtin_unreachable();
}
