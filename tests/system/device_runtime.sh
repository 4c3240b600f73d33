#!/usr/bin/env bash
# Unmodified engines of the CUDA runtime on the software GPU, with and without kvmem, in each form the
# runtime is linked: every byte right, nothing leaked, large allocations as regions, and the capacity
# they were told. Exits 77 where there was no nvcc to build them.
#
# usage: device_runtime.sh BUILD_DIR PROGRAMS
set -euo pipefail

build=$(realpath "$1")
programs=$2
export LD_LIBRARY_PATH=$build/lib/softgpu
fail() {
  echo "device_runtime: $*" >&2
  exit 1
}
preloaded() { # ENGINE ARGUMENTS...
  LD_PRELOAD=$build/lib/libkvmem.so KVMEM_DEVICE=1 KVMEM_SOCKET=/nonexistent "$@"
}

for form in shared static per_thread; do
  engine=$programs/runtime_engine_$form
  if [ ! -x "$engine" ]; then
    echo "device_runtime: $engine is not built: no nvcc was found" >&2
    exit 77
  fi
  for seed in 1 2 3; do
    said=$(SOFTGPU=seed=$seed,late_us=$((300 * seed)),memory=$((512 << 20)) "$engine" "$seed" 12 512) || fail "$form, seed $seed, without kvmem: $said"
  done
  echo "ok $form, without kvmem: $said"
  LD_PRELOAD=$build/lib/libkvmem.so KVMEM_SOCKET=/nonexistent "$engine" 1 6 >/dev/null ||
    fail "$form: fails with the device path off"
  for seed in 1 2 3; do
    said=$(SOFTGPU=seed=$seed,late_us=$((300 * seed)),memory=$((512 << 20)) KVMEM_HBM=512M preloaded "$engine" "$seed" 18 512) || fail "$form, seed $seed: $said"
  done
  [[ $said =~ ^alloc\ ([0-9]+)\ create\ ([0-9]+)\ map\ ([0-9]+)\  ]] || fail "$form says $said"
  # What is below 2 MiB is the driver's: a third of some 60 allocations.
  ((BASH_REMATCH[1] < 40)) || fail "$form: ${BASH_REMATCH[1]} calls of cuMemAlloc reached the driver"
  ((BASH_REMATCH[3] > 200)) || fail "$form: only ${BASH_REMATCH[3]} pages were mapped"
  # 512 MiB are 256 pages, used again and again; given back for others' memory once, and made anew. Some
  # are the engine's own.
  ((BASH_REMATCH[2] <= 560)) || fail "$form: ${BASH_REMATCH[2]} pages were created"
  echo "ok $form: $said"
  # Less on the device than the engine is told: what it holds beyond that is host memory.
  for hbm in 40M 20M; do # 60 % and 30 % of what two threads hold at most
    for seed in 1 2 3; do
      said=$(SOFTGPU=seed=$seed,late_us=$((300 * seed)) KVMEM_HBM=$hbm KVMEM_GPU_CAPACITY=512M preloaded "$engine" "$seed" 18 512) ||
        fail "$form, HBM $hbm, seed $seed: $said"
    done
    ((${said##*advised } > 10)) || fail "$form, HBM $hbm: pages were hardly ever asked to move: $said"
    echo "ok $form, HBM $hbm: $said"
  done
done
