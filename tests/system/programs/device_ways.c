// The ways by which a program comes to a call of the CUDA driver, and whose it gets.
//
// usage: device_ways WAY
//
// Prints the name of the library that the call is in. Exits 1 where a way is not open at all.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void* (*lookup)(void*, const char*);
typedef void* (*versioned_lookup)(void*, const char*, const char*);

static const char* const kCall = "cuMemAlloc_v2";

static void fail(const char* what) {
  const char* why = dlerror();
  fprintf(stderr, "device_ways: %s: %s\n", what, why != NULL ? why : "not found");
  exit(1);
}
static void* open_with(const char* file, int mode) {
  void* library = dlopen(file, mode);
  if (library == NULL) fail(file);
  return library;
}
static void* driver(void) { return open_with("libcuda.so.1", RTLD_NOW); }

static void* by_lookup(void* found) {
  if (found == NULL) fail("dlsym");
  return ((lookup)found)(driver(), kCall);
}

static void* by_plugin(int mode) {
  void* plugin = open_with("libdevice_ways.so", RTLD_NOW | mode);
  return ((void* (*)(const char*))dlsym(plugin, "driver_call"))(kCall);
}

static void* found_by(const char* way) {
  if (strcmp(way, "dlsym") == 0) return dlsym(driver(), kCall);
  if (strcmp(way, "default") == 0) return by_lookup(dlvsym(RTLD_DEFAULT, "dlsym", "GLIBC_2.34"));
  if (strcmp(way, "default-old") == 0)
    return by_lookup(dlvsym(RTLD_DEFAULT, "dlsym", "GLIBC_2.2.5"));
  if (strcmp(way, "next") == 0) return by_lookup(dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34"));
  if (strcmp(way, "program") == 0) {
    return by_lookup(dlvsym(open_with(NULL, RTLD_NOW), "dlsym", "GLIBC_2.34"));
  }
  if (strcmp(way, "twice") == 0) {
    void* found = dlvsym(RTLD_DEFAULT, "dlvsym", "GLIBC_2.34");
    if (found == NULL) fail("dlvsym");
    return by_lookup(((versioned_lookup)found)(RTLD_NEXT, "dlsym", "GLIBC_2.34"));
  }
  if (strcmp(way, "plugin") == 0) return by_plugin(0);
  if (strcmp(way, "deepbind") == 0) return by_plugin(RTLD_DEEPBIND);
  if (strcmp(way, "apart") == 0) {
    void* library = dlmopen(LM_ID_NEWLM, "libcuda.so.1", RTLD_NOW);
    if (library == NULL) fail("dlmopen");
    (void)open_with("libdevice_ways.so", RTLD_NOW | RTLD_DEEPBIND);  // a second thing to say
    return dlsym(library, kCall);
  }
  // Not the driver's: who asks from behind gets what stands behind, and all else is as it was.
  if (strcmp(way, "behind") == 0) {
    void* plugin = open_with("libdevice_ways.so", RTLD_NOW);
    return ((void* (*)(void))dlsym(plugin, "next_dlsym"))();
  }
  if (strcmp(way, "libc") == 0) {
    if (dlvsym(RTLD_DEFAULT, "strtod", "GLIBC_2.99") != NULL) exit(1);
    if (dlvsym(RTLD_DEFAULT, "strtod", "GLIBC_2.2.5") != dlsym(RTLD_DEFAULT, "strtod")) exit(1);
    return dlvsym(RTLD_DEFAULT, "strtod", "GLIBC_2.2.5");
  }
  exit(2);
}

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  void* found = found_by(argv[1]);
  Dl_info info;
  if (found == NULL || dladdr(found, &info) == 0) fail(argv[1]);
  const char* slash = strrchr(info.dli_fname, '/');
  puts(slash != NULL ? slash + 1 : info.dli_fname);
  return 0;
}
