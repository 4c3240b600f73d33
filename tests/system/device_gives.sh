#!/usr/bin/env bash
# An engine that gives others memory of its GPU: handles, descriptors; and what it is told where there
# can be none.
#
# usage: device_gives.sh BUILD_DIR PROGRAMS
set -euo pipefail

build=$(realpath "$1")
program=$2/device_gives
export LD_LIBRARY_PATH=$build/lib/softgpu
fail() {
  echo "device_gives: $*" >&2
  exit 1
}
preloaded() { # ENGINE ARGUMENTS...
  LD_PRELOAD=$build/lib/libkvmem.so KVMEM_DEVICE=1 KVMEM_SOCKET=/nonexistent "$@"
}

for seed in 1 2 3; do
  SOFTGPU=seed=$seed KVMEM_HBM=32M KVMEM_GPU_CAPACITY=128M preloaded "$program" || fail "seed $seed"
done

[ "$("$program" ipc)" = handle ] || fail "no IPC handle without kvmem"
said=$(preloaded "$program" ipc 2>&1)
[[ $said = *KVMEM_GPU_THRESHOLD=8388609*none ]] || fail "of a region it says $said"
said=$(KVMEM_GPU_THRESHOLD=8388609 preloaded "$program" ipc 2>&1)
[ "$said" = handle ] || fail "of what is left to the driver it says $said"
echo "ok"
