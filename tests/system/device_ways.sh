#!/usr/bin/env bash
# By whatever way an engine comes to the driver: with kvmem it gets kvmem's calls, without it (or with
# the device path off) the driver's. Two ways lead past kvmem: that is said in one line.
#
# usage: device_ways.sh BUILD_DIR PROGRAMS
set -euo pipefail

build=$(realpath "$1")
engine=$2/device_ways
export LD_LIBRARY_PATH=$build/lib/softgpu KVMEM_SOCKET=/nonexistent
fail() {
  echo "device_ways: $*" >&2
  exit 1
}
expect() { # WAY ALONE WITH SAID
  local way=$1 alone=$2 with=$3 said=$4 found
  local preload=(LD_PRELOAD="$build/lib/libkvmem.so")
  found=$("$engine" "$way" 2>&1) || fail "$way, without kvmem: $found"
  [ "$found" = "$alone" ] || fail "$way, without kvmem: in $found"
  found=$(env "${preload[@]}" "$engine" "$way" 2>&1) || fail "$way, with the device path off: $found"
  [ "$found" = "$alone" ] || fail "$way, with the device path off: $found"
  found=$(env "${preload[@]}" KVMEM_DEVICE=1 "$engine" "$way" 2>&1) || fail "$way: $found"
  [ "$found" = "${said:+$said$'\n'}$with" ] || fail "$way: $found"
  echo "ok $way: $with${said:+, and says so}"
}

for way in dlsym default default-old next program twice plugin; do
  expect "$way" libcuda.so.1 libkvmem.so ""
done
expect behind libc.so.6 libc.so.6 ""
expect libc libc.so.6 libc.so.6 ""
sees_not=": kvmem does not see what it allocates"
expect deepbind libcuda.so.1 libcuda.so.1 "kvmem: libdevice_ways.so is opened with RTLD_DEEPBIND$sees_not"
expect apart libcuda.so.1 libcuda.so.1 "kvmem: libcuda.so.1 is loaded apart by dlmopen$sees_not"
