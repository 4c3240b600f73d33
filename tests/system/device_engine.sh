#!/usr/bin/env bash
# Unmodified engines on the software GPU, with and without kvmem, by each way to the driver: every
# byte right, nothing leaked, large allocations as regions, and the capacity they were told.
#
# usage: device_engine.sh BUILD_DIR PROGRAMS
set -euo pipefail

build=$(realpath "$1")
programs=$2
export LD_LIBRARY_PATH=$build/lib/softgpu
fail() {
  echo "device_engine: $*" >&2
  exit 1
}
preloaded() { # ENGINE ARGUMENTS...
  LD_PRELOAD=$build/lib/libkvmem.so KVMEM_DEVICE=1 KVMEM_SOCKET=/nonexistent "$@"
}

for engine in "device_engine_linked linked" "device_engine dlsym" "device_engine resolver"; do
  read -r program mode <<<"$engine"
  "$programs/$program" "$mode" 1 10 >/dev/null || fail "$mode: fails without kvmem"
  LD_PRELOAD=$build/lib/libkvmem.so KVMEM_SOCKET=/nonexistent "$programs/$program" "$mode" 1 10 >/dev/null ||
    fail "$mode: fails with the device path off"
  for seed in 1 2 3 4 5; do
    said=$(SOFTGPU=seed=$seed KVMEM_HBM=512M preloaded "$programs/$program" "$mode" "$seed" 20 512) ||
      fail "$mode, seed $seed: $said"
  done
  [[ $said =~ ^alloc\ ([0-9]+)\ create\ ([0-9]+)\ map\ ([0-9]+)\  ]] || fail "$mode says $said"
  # 80 allocations and more, of which those below 2 MiB are the driver's.
  ((BASH_REMATCH[1] < 50)) || fail "$mode: ${BASH_REMATCH[1]} calls of cuMemAlloc reached the driver"
  ((BASH_REMATCH[3] > 200)) || fail "$mode: only ${BASH_REMATCH[3]} pages were mapped"
  # 512 MiB are 256 pages: made once, used again.
  ((BASH_REMATCH[2] <= 256)) || fail "$mode: ${BASH_REMATCH[2]} pages were created"
  echo "ok $mode: $said"
  # Less on the device than the engine is told: what it holds beyond that is host memory.
  for hbm in 40M 20M; do # 60 % and 30 % of what two threads hold at most
    for seed in 1 2 3; do
      said=$(SOFTGPU=seed=$seed KVMEM_HBM=$hbm KVMEM_GPU_CAPACITY=512M \
        preloaded "$programs/$program" "$mode" "$seed" 20 512) || fail "$mode, HBM $hbm, seed $seed: $said"
    done
    ((${said##*advised } > 10)) || fail "$mode, HBM $hbm: pages were hardly ever asked to move: $said"
    echo "ok $mode, HBM $hbm: $said"
  done
done
