/* softgpu: a CUDA driver in software, a drop-in libcuda.so.1. Strict where hardware is lenient,
 * late where hardware is usually fast: what misuses the driver is caught here and not on a GPU.
 * Memory is host memory at the addresses the driver hands out, a memfd per handle; kernels are host
 * functions found by name. Its speed says nothing about a GPU; its counts of calls do. What it
 * enforces stands rule by rule in mutations.txt, each with the test that holds it.
 *
 * Not enforced: the processor reaches what only the device was given access to, and the other way
 * round, since both are one process with one set of page tables here.
 *
 * The environment variable SOFTGPU is read at cuInit(): "key=value,...", sizes in bytes:
 *   memory       of the device (default 8 GiB), shared by nobody
 *   granularity  65536 or 2097152 (default)
 *   late_us      asynchronous work starts up to so many microseconds late (default 200; 0: at once)
 *   seed         which order and which delays (default 1)
 *   refuse_numa  bit mask of NUMA nodes on which cuMemCreate is refused
 *   fail         ENTRY:N:CODE, as softgpu_fail() (may be given several times)
 *
 * Beside it stands a CUDA runtime in software (runtime.cc), where nvcc is found: NVIDIA's own does
 * not run on a driver that is not NVIDIA's.
 *
 * What follows is for tests: exported by the same library, found by dlsym(). Any thread. */
#ifndef KVMEM_TESTS_SOFTGPU_SOFTGPU_H_
#define KVMEM_TESTS_SOFTGPU_SOFTGPU_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Calls of an entry ("cuMemCreate", without version or stream suffix) since the last reset. */
uint64_t softgpu_calls(const char* entry);
void softgpu_reset_calls(void);

/* The n-th call of `entry` from now on (1: the next) does nothing and returns `result`. 0: those
 * still to fail are forgotten. */
void softgpu_fail(const char* entry, uint64_t n, int result);

enum softgpu_kind {
  SOFTGPU_RESERVATIONS,
  SOFTGPU_HANDLES, /* physical memory, mapped or not */
  SOFTGPU_MAPPINGS,
  SOFTGPU_DEVICE_BYTES,
  SOFTGPU_STREAMS,
  SOFTGPU_EVENTS,
  SOFTGPU_GRAPHS, /* and executables */
};
/* What is alive now. */
uint64_t softgpu_live(enum softgpu_kind kind);

/* What runs in place of a kernel: called once a launch, for the whole grid, on the device's thread.
 * `params` as given to cuLaunchKernel. */
struct softgpu_launch {
  unsigned grid[3], block[3];
  unsigned shared_bytes;
};
typedef void (*softgpu_body)(const struct softgpu_launch* launch, void** params);

/* The program exports one as `NAME_softgpu` for each kernel NAME, mangled where the kernel's name
 * is. The body has any other name, or none outside its file: in a program of the CUDA runtime NAME
 * itself is the host's stub, which launches the kernel. */
struct softgpu_kernel {
  softgpu_body body;
  size_t param_count;
  size_t param_bytes[32];
};

#ifdef __cplusplus
}
#endif
#endif
