#!/usr/bin/env bash
# libkvmem.so needs libc alone, nothing newer than GLIBC_2.34, and exports its versioned API and the
# interposed names only.
#
# usage: exports.sh BUILD_DIR
set -euo pipefail

library=$(realpath "$1")/lib/libkvmem.so
fail() {
  echo "exports: $*" >&2
  exit 1
}
needed=$(readelf -dW "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort | tr '\n' ' ')
case $needed in
  "libc.so.6 " | "ld-linux-x86-64.so.2 libc.so.6 " | "ld-linux-aarch64.so.1 libc.so.6 ") ;;
  *) fail "it needs $needed" ;;
esac

newest=$(readelf -VW "$library" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
[ "$(printf '%s\nGLIBC_2.34\n' "$newest" | sort -V | tail -1)" = GLIBC_2.34 ] || fail "it needs $newest"

exported=$(readelf --dyn-syms -W "$library" | awk '$7 != "UND" && $5 != "LOCAL" && NR > 3 {print $8}' | sort | tr '\n' ' ')
wanted="KVMEM_1.0 aligned_alloc calloc free kvmem_advise@@KVMEM_1.0 kvmem_cache_begin@@KVMEM_1.0 \
kvmem_cache_close@@KVMEM_1.0 kvmem_cache_computed@@KVMEM_1.0 kvmem_cache_contains@@KVMEM_1.0 kvmem_cache_end@@KVMEM_1.0 kvmem_cache_open@@KVMEM_1.0 \
kvmem_cache_plan@@KVMEM_1.0 kvmem_cache_put@@KVMEM_1.0 kvmem_cache_stats@@KVMEM_1.0 kvmem_cache_wait@@KVMEM_1.0 kvmem_park@@KVMEM_1.0 kvmem_pool_create@@KVMEM_1.0 \
kvmem_pool_destroy@@KVMEM_1.0 kvmem_pool_fits@@KVMEM_1.0 kvmem_pool_predict@@KVMEM_1.0 kvmem_pool_stats@@KVMEM_1.0 kvmem_pool_step@@KVMEM_1.0 \
kvmem_pool_view@@KVMEM_1.0 kvmem_seq_close@@KVMEM_1.0 kvmem_seq_extend@@KVMEM_1.0 kvmem_seq_fork@@KVMEM_1.0 kvmem_seq_open@@KVMEM_1.0 \
kvmem_seq_park@@KVMEM_1.0 kvmem_seq_pin@@KVMEM_1.0 kvmem_seq_prefetch@@KVMEM_1.0 kvmem_seq_resume@@KVMEM_1.0 kvmem_seq_truncate@@KVMEM_1.0 \
kvmem_region_create@@KVMEM_1.0 \
kvmem_region_destroy@@KVMEM_1.0 kvmem_residency@@KVMEM_1.0 kvmem_set_tag@@KVMEM_1.0 kvmem_stats@@KVMEM_1.0 \
kvmem_strerror@@KVMEM_1.0 kvmem_version@@KVMEM_1.0 madvise malloc malloc_usable_size memalign mlock \
mlock2 mmap mmap64 mprotect mremap munlock munmap posix_madvise posix_memalign pthread_exit pvalloc realloc \
reallocarray valloc read pread pread64 readv preadv preadv64 preadv2 preadv64v2 __read_chk __pread_chk __pread64_chk "
# With the device path, the driver's calls that it stands before.
if grep -q '^KVMEM_CUDA_INCLUDE:PATH=/' "$1/CMakeCache.txt"; then
  wanted+="dlsym dlvsym dlopen dlmopen cuGetProcAddress cuGetProcAddress_v2 cuMemAlloc_v2 cuMemAllocPitch_v2 cuMemFree_v2 cuMemGetInfo_v2 \
cuMemGetAddressRange_v2 cuPointerGetAttribute cuPointerGetAttributes "
  wanted+="cuIpcGetMemHandle cuMemGetHandleForAddressRange cuMemRetainAllocationHandle cuMulticastBindAddr \
cuPointerSetAttribute cuMemCreate "
  wanted+="cuLaunch cuLaunchGrid cuLaunchGridAsync cuLaunchCooperativeKernelMultiDevice cuStreamDestroy_v2 "
  # Each with the form that has a stream of each thread's own.
  for name in cuMemcpy cuMemcpyHtoD_v2 cuMemcpyDtoH_v2 cuMemcpyDtoD_v2 cuMemsetD8_v2 cuMemsetD16_v2 cuMemsetD32_v2 \
    cuMemcpy2D_v2 cuMemcpy2DUnaligned_v2 cuMemcpy3D_v2 cuMemcpy3DPeer cuMemcpyPeer cuMemcpyAtoD_v2 cuMemcpyDtoA_v2 \
    cuMemsetD2D8_v2 cuMemsetD2D16_v2 cuMemsetD2D32_v2; do
    wanted+="$name ${name}_ptds "
  done
  for name in cuMemAllocAsync cuMemAllocFromPoolAsync cuMemFreeAsync cuMemcpyAsync cuMemcpyHtoDAsync_v2 cuMemcpyDtoHAsync_v2 cuMemcpyDtoDAsync_v2 cuMemsetD8Async \
    cuMemsetD16Async cuMemsetD32Async cuMemcpy2DAsync_v2 cuMemcpy3DAsync_v2 cuMemcpy3DPeerAsync cuMemcpyPeerAsync \
    cuMemcpyBatchAsync cuMemcpyBatchAsync_v2 cuMemcpy3DBatchAsync cuMemcpy3DBatchAsync_v2 cuMemBatchDecompressAsync cuLaunchHostFunc cuStreamAddCallback cuMemsetD2D8Async \
    cuMemsetD2D16Async cuMemsetD2D32Async cuLaunchKernel cuLaunchKernelEx cuLaunchCooperativeKernel cuGraphLaunch \
    cuGraphUpload cuStreamBatchMemOp cuStreamBatchMemOp_v2 cuStreamWaitValue32 cuStreamWaitValue32_v2 \
    cuStreamWaitValue64 cuStreamWaitValue64_v2 cuStreamWriteValue32 cuStreamWriteValue32_v2 cuStreamWriteValue64 \
    cuStreamWriteValue64_v2 cuStreamBeginCapture cuStreamBeginCapture_v2 cuStreamBeginCaptureToGraph \
    cuStreamEndCapture; do
    wanted+="$name ${name}_ptsz "
  done
fi
wanted=$(tr ' ' '\n' <<<"$wanted" | sed '/^$/d' | sort | tr '\n' ' ')
[ "$exported" = "$wanted" ] || fail "it exports $exported"

# A destructor would run while other threads still allocate.
readelf -rW "$library" | grep -q '__cxa_atexit' && fail "it registers destructors"
echo "ok needs $needed, nothing newer than $newest, exports $(wc -w <<<"$exported") names"
