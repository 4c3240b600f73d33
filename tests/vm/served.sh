#!/usr/bin/env bash
# In the test machine: an unmodified program with more memory than DRAM may have keeps every byte, its pages
# going to the NVMe disk and back, once on 4 KiB pages and once on the kernel's huge pages.
#
# usage: served.sh BUILD_DIR
set -euo pipefail

system=$(cd "$(dirname "$0")/../system" && pwd)
served() { "$system/served.sh" "$1" 96MiB --store /dev/nvme0n1 "$1/programs/writers" 160 2 8; }
huge_pages() { awk -v field="HugePages_$1:" '$1 == field { print $2 }' /proc/meminfo; }

[ "$(huge_pages Total)" = 0 ]
served "$1"

echo 64 >/proc/sys/vm/nr_hugepages
[ "$(huge_pages Total)" = 64 ]
served "$1" &
runner=$!
least=64
while kill -0 $runner 2>/dev/null; do
  free=$(huge_pages Free)
  least=$((free < least ? free : least))
  sleep 0.5
done
wait $runner
# The budget's 48, but for the last that were free when it was looked.
[ "$least" -le 24 ] || { echo "served: $least of 64 huge pages were always free" >&2; exit 1; }
[ "$(huge_pages Free)" = 64 ] || { echo "served: huge pages are not given back" >&2; exit 1; }
echo "ok $(uname -r), on huge pages too, of which $least were free"
