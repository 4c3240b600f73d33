#!/usr/bin/env bash
# In the test machine, whose disk is slow (--disk-throttle): a program with more memory than DRAM may have keeps
# every byte, and waits for it.
#
# usage: slow_disk.sh BUILD_DIR BYTES     BYTES: that the disk moves in a second
set -euo pipefail

moved() { awk '$3 == "nvme0n1" { print ($6 + $10) * 512 }' /proc/diskstats; } # bytes, read and written
before=$(moved)
begin=$(date +%s%N)
"$(dirname "$0")/../system/served.sh" "$1" 64MiB --store /dev/nvme0n1 "$1/programs/writers" 80 2 5
bytes=$(($(moved) - before))
ms=$((($(date +%s%N) - begin) / 1000000))
# What it may hurry ahead: a second's worth.
most=$((($2 / 1000) * (ms + 1000)))
[ $bytes -ge $((32 << 20)) ] || { echo "slow_disk: only $bytes bytes were moved" >&2; exit 1; }
[ $bytes -le $most ] || { echo "slow_disk: $bytes bytes in $ms ms: the disk was not slow" >&2; exit 1; }
echo "ok $bytes bytes in $ms ms"
