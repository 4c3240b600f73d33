#!/usr/bin/env bash
# The acceptance suite for real hardware: what this GPU and its driver do, fact by fact, as a report
# in JSON and one in Markdown. Takes less than 10 minutes. Needs a compiler, CMake, ninja, python3 and
# CUDA 13 (nvcc); PyTorch and transformers for one fact. Changes no setting of the GPU and leaves 2 GiB
# of its memory alone.
#
# usage: tests/gpu/run.sh [--out DIR] [--softgpu] [--build DIR] [--move GIB]
#   --out DIR     where the reports go; default: tests/gpu/results
#   --softgpu     on the software driver, quickly: that all of it runs, and figures that mean nothing
#   --build DIR   what is built already; default: build/gpu, built if need be
#   --move GIB    how much fact 10 moves; default: 16, or less where there is no room
#
# Exit status: 0 every fact that kvmem stands on holds; 1 one does not, or could not be asked; 2 command
# line, or the build failed; 77 there is no GPU.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
build='' softgpu='' out=$root/tests/gpu/results options=()
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; }
while [ $# -gt 0 ]; do
  case $1 in
    --softgpu) softgpu=yes options+=(--softgpu) ;;
    --out | --build | --move)
      [ $# -gt 1 ] || { usage >&2; exit 2; }
      case $1 in
        --out) out=$2 ;;
        --build) build=$2 ;;
        --move) options+=(--move "$2") ;;
      esac
      shift
      ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done

if [ -z "$softgpu" ] && ! python3 - 2>/dev/null <<'PY'; then
import ctypes, sys
cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
sys.exit(cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0)
PY
  echo "gpu: there is no GPU here; --softgpu runs the suite on the software driver"
  exit 77
fi

if [ -z "$build" ]; then
  build=$root/build/gpu
  if [ -z "${CUDA_HOME:-}" ] && nvcc=$(command -v nvcc); then
    CUDA_HOME=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
  fi
  CUDA_HOME=$("$root/tests/cuda_home.sh") || exit 2
  export CUDA_HOME
  arch=''
  [ -n "$softgpu" ] || arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
    sed -n '1s/^\([0-9]*\)\.\([0-9]\)$/\1\2/p') || true
  mkdir -p "$build"
  echo "gpu: building" >&2
  if ! (cd "$root" && cmake --preset gpu --compile-no-warning-as-error -DKVMEM_GPU_ARCH="$arch" &&
    cmake --build --preset gpu --target gpu_suite) >"$build/suite.log" 2>&1; then
    tail -30 "$build/suite.log" >&2
    echo "gpu: the build failed; see $build/suite.log" >&2
    exit 2
  fi
fi
if [ -z "$softgpu" ] && [ ! -e "$build/bin/gpu_kernels.fatbin" ]; then
  echo "gpu: there is no nvcc, and without it no kernels" >&2
  exit 2
fi
mkdir -p "$out"
exec python3 "$root/tests/gpu/report.py" --build "$(realpath "$build")" --out "$(realpath "$out")" \
  --limit $((570 - SECONDS)) "${options[@]}"
