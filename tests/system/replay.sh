#!/usr/bin/env bash
# A made-up trace replayed with real bytes against a daemon: no block has a wrong byte, what is found is
# what the simulator says of the same policy and capacity, and a restarted daemon has what was stored.
#
# usage: replay.sh BUILD_DIR
set -euo pipefail

build=$(realpath "$1")
root=$(cd "$(dirname "$0")/../.." && pwd)
out=$(mktemp -d "$build/replay.XXXXXX")
trap 'rm -rf "$out"' EXIT

# One request at a time: then both serve them in the same order.
"$root/examples/replay/replay.py" --build "$build" --on "$build" --out "$out" --generate 5 --requests 150 \
  --threads 1 --policy kvmem,s3fifo --dram 1GiB --store 2GiB --block-bytes 1MiB
python3 - "$out" <<'PYTHON'
import json, sys
report = json.load(open(sys.argv[1] + "/replay.json"))
for run in report["runs"]:
    name = run["policy"]
    assert run["requests"] == 150 and run["mismatched_blocks"] == 0, name
    assert abs(run["prefix_hit_pct"] - run["simulator_hit_pct"]) < 0.01, (name, run["prefix_hit_pct"], run["simulator_hit_pct"])
    assert run["blocks_asked"] > 3000 and run["bytes_restored"] > 0, name
    assert run["after_restart"]["blocks_found"] > 500 and run["after_restart"]["read_errors"] == 0, name
assert open(sys.argv[1] + "/replay.svg").read().count("<polyline") == 12
print("ok")
PYTHON
