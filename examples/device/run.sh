#!/usr/bin/env bash
# A CUDA engine with half the device memory it needs: alone, on a device that is too small, and the
# same under kvmem. On a GPU where there is one, else on the software driver, whose speed means
# nothing. Exits 0 only if the results are the same.
#
# usage: examples/device/run.sh [BUILD_DIR]     default: build/release, built if need be
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-}
if [ -z "$build" ]; then
  build=$root/build/release
  CUDA_HOME=$("$root/tests/cuda_home.sh")
  export CUDA_HOME
  log=$(mktemp)
  if ! (cd "$root" && cmake --preset release && cmake --build --preset release --target kvmem softgpu device_engine) \
    >"$log" 2>&1; then
    tail -20 "$log" >&2
    echo "device: the build failed; see $log" >&2
    exit 1
  fi
  rm -f "$log"
fi
build=$(realpath "$build")
engine=$build/bin/device_engine
[ -x "$engine" ] || { echo "device: $engine is not built: no cuda.h was found" >&2; exit 77; }

layers=16 mib=32
if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then
  echo "driver: the machine's ($(nvidia-smi --query-gpu=name --format=csv,noheader | head -1))"
  mib=256
else
  echo "driver: softgpu, in software: there is no GPU here"
  export LD_LIBRARY_PATH=$build/lib/softgpu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
needs=$(((layers + 1) * mib))
half=$((needs / 2))
show() { sed 's/^/  /' <<<"$1"; }

echo "alone, with all the memory it needs ($needs MiB):"
alone=$("$engine" $layers $mib)
show "$alone"
if [ "$mib" = 32 ]; then
  echo "alone, on a device with $half MiB:"
  small=$(SOFTGPU=memory=$((half << 20)) "$engine" $layers $mib 2>&1) && { echo "device: it should not fit" >&2; exit 1; }
  show "$small"
  export SOFTGPU=memory=$((half << 20))
fi
echo "under kvmem, with $half MiB of the device's memory, the rest in host memory at the same addresses:"
ours=$(LD_PRELOAD=$build/lib/libkvmem.so KVMEM_DEVICE=1 KVMEM_HBM=${half}M KVMEM_GPU_CAPACITY=$((needs + 64))M \
  "$engine" $layers $mib)
show "$ours"

[ "${alone##*result }" = "${ours##*result }" ] || { echo "device: the results differ" >&2; exit 1; }
echo "the same result"
