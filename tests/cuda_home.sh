#!/usr/bin/env bash
# Prints a folder of CUDA 13, with its headers: $CUDA_HOME or /usr/local/cuda where they have one, else
# the headers and the compiler from PyPI, kept in ${XDG_CACHE_HOME:-~/.cache}/kvmem/cuda. Needs python3
# with venv, and a package index the first time. Exits 1, with a line on standard error, if there is none.
set -euo pipefail

for home in ${CUDA_HOME:+"$CUDA_HOME"} /usr/local/cuda; do
  if [ -e "$home/include/cuda.h" ]; then
    echo "$home"
    exit 0
  fi
done

venv=${XDG_CACHE_HOME:-$HOME/.cache}/kvmem/cuda
find_home() {
  local home
  home=$(find "$venv" -path '*/include/cuda.h' 2>/dev/null | head -n 1)
  home=${home%/include/cuda.h}
  if [ -n "$home" ] && [ -e "$home/include/crt/host_defines.h" ] && [ -x "$home/bin/nvcc" ]; then echo "$home"; fi
}

mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock 9
if [ -z "$(find_home)" ]; then
  rm -rf "$venv"
  if ! python3 -m venv "$venv" >"$venv.log" 2>&1 ||
    ! "$venv/bin/pip" install -q --no-deps nvidia-cuda-{runtime,crt,nvcc}'==13.0.*' \
      nvidia-nvvm'==13.0.*' >>"$venv.log" 2>&1; then
    echo "cuda_home.sh: no cuda.h here and none from PyPI; see $venv.log" >&2
    exit 1
  fi
fi
home=$(find_home)
if [ -z "$home" ]; then
  echo "cuda_home.sh: NVIDIA's packages have not what was expected of them" >&2
  exit 1
fi
# The names that a toolkit has, for its linker.
[ -e "$home/lib64" ] || ln -s lib "$home/lib64"
[ -e "$home/lib/libcudart.so" ] || ln -s libcudart.so.13 "$home/lib/libcudart.so"
echo "$home"
