#!/usr/bin/env bash
# In the test machine: an unmodified program has its pages in DRAM, on the far node, in CXL memory where the
# kernel has it, and on the NVMe disk, all at once and on the move, and keeps every byte. Once on 4 KiB pages,
# once on huge pages, of which each node has some, and once while the daemon is killed.
#
# usage: cxl.sh BUILD_DIR [cxl]
set -euo pipefail

build=$1 with_cxl=${2:-}
system=$(cd "$(dirname "$0")/../system" && pwd)
nodes=/sys/devices/system/node
huge() { echo "$nodes/node$1/hugepages/hugepages-2048kB/$2"; }
fail() {
  echo "cxl: $*" >&2
  exit 1
}
served() { "$system/served.sh" "$build" 64MiB --store /dev/nvme0n1 "$@"; }

"$build/bin/kvmemd" --help | grep -q -- --cxl || fail "kvmemd knows of no --cxl"
served --cxl 48MiB "$build/programs/writers" 160 2 6

# The nearer node's pool is taken from first. Each has four pages to spare, to change places by: without
# them the kernel takes ordinary memory, and pages of the pools move with those of the program.
pools=('0 40' '1 24')
[ -z "$with_cxl" ] || pools=('0 40' '1 12' '2 8')
cxl=0
for pool in "${pools[@]}"; do
  read -r node pages <<<"$pool"
  echo "$pages" >"$(huge "$node" nr_hugepages)"
  [ "$(cat "$(huge "$node" free_hugepages)")" = "$pages" ] || fail "node $node has not $pages huge pages"
  [ "$node" = 0 ] || cxl=$((cxl + pages))
done
served --cxl "$((cxl * 2 - 8))MiB" "$build/programs/writers" 160 2 6 &
runner=$!
declare -A least
while kill -0 $runner 2>/dev/null; do
  for pool in "${pools[@]}"; do
    read -r node pages <<<"$pool"
    free=$(cat "$(huge "$node" free_hugepages)")
    [ "${least[$node]:-$pages}" -le "$free" ] || least[$node]=$free
  done
  sleep 0.3
done
wait $runner
for pool in "${pools[@]}"; do
  read -r node pages <<<"$pool"
  [ "${least[$node]:-$pages}" -lt "$pages" ] || fail "no huge page of node $node was ever used"
  [ "$(cat "$(huge "$node" free_hugepages)")" = "$pages" ] || fail "huge pages of node $node are not given back"
done

served --cxl 32MiB --restarts 2 "$build/programs/writers" 160 2 12
echo "ok $(uname -r): DRAM, ${#pools[@]} nodes, and the disk"
