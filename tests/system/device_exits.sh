#!/bin/bash
# Engines that end while their threads, and kvmem's, are inside the driver: as many as asked for,
# without kvmem and with it, pages on the move. Each has to end well.
#
# usage: device_exits.sh BUILD_DIR TIMES
set -u
build=$1 times=$2
export LD_LIBRARY_PATH=$build/lib/softgpu
for ((n = 0; n < times; n++)); do
  wait_us=$((n * 7919 % 30000))
  "$build/programs/device_exits" $wait_us || { echo "without kvmem, $wait_us us: status $?"; exit 1; }
  KVMEM_DEVICE=1 KVMEM_SOCKET=/nonexistent KVMEM_HBM=14M KVMEM_GPU_CAPACITY=64M LD_PRELOAD=$build/lib/libkvmem.so \
    "$build/programs/device_exits" $wait_us || { echo "with kvmem, $wait_us us: status $?"; exit 1; }
done
echo "ok $((2 * times)) ends"
