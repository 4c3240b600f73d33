// A library of device_ways', opened while it runs.
#include <dlfcn.h>

void* driver_call(const char* name);
void* next_dlsym(void);

void* driver_call(const char* name) { return dlsym(dlopen("libcuda.so.1", RTLD_NOW), name); }

// It stands behind what is preloaded: the next is the loader's own.
void* next_dlsym(void) { return dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34"); }
