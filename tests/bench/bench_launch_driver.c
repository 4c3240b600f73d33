/* A libcuda.so.1 that does nothing, so that what a call costs is what stands before it. */
#include <cuda.h>
#include <string.h>

CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared, CUstream stream, void** params,
                        void** extra) {
  (void)f, (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared, (void)stream;
  (void)params, (void)extra;
  return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  (void)to, (void)from, (void)bytes, (void)stream;
  return CUDA_SUCCESS;
}

/* Functions that do something begin with a push, which the kernel emulates below a uprobe; another
 * first instruction it steps through, which takes ten times as long in a virtual machine. */
#if defined(__x86_64__)
#define BEGIN_WITH_A_PUSH __asm__ volatile("" ::: "rbx")
#else
#define BEGIN_WITH_A_PUSH (void)0
#endif

CUresult cuMemAlloc(CUdeviceptr* made, size_t bytes) {
  BEGIN_WITH_A_PUSH;
  *made = 2 << 20;
  (void)bytes;
  return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr gone) {
  BEGIN_WITH_A_PUSH;
  (void)gone;
  return CUDA_SUCCESS;
}
