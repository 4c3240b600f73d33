#!/usr/bin/env bash
# In the test machine, whose disk does not read one sector in the page of the store's first slot: an engine loses
# the page that is there, by SIGBUS, and no other, and no byte of the others is wrong; the log names it, and the
# slot is not used again.
#
# With --disk-error 2088: behind 8 KiB of superblocks, 8 KiB of the segment's, 4 KiB of the record's and 1 MiB of
# the page.
#
# usage: disk_error.sh BUILD_DIR
set -euo pipefail

build=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "disk_error: $*" >&2
  cat "$work/out" "$work/err" "$log" >&2 || true
  exit 1
}

log=/dev/null code=0
KVMEM_TEST_MANAGED=1 "$build/bin/kvmemctl" run --private --keep -v --dram 64MiB --store /dev/nvme0n1 \
  --json-report "$work/report" --kvmemd "$build/bin/kvmemd" --library "$build/lib/libkvmem.so" -- \
  "$build/programs/losses" 80 2 >"$work/out" 2>"$work/err" || code=$?
log=$(sed -n 's/^kvmem: private daemon .*, log //p' "$work/err")
[ $code = 0 ] || fail "the engine's status is $code"
[ "$(grep -c '^lost page' "$work/out")" = 1 ] || fail "it did not lose one page"
page=$(sed -n 's/^lost page //p' "$work/out")
[ "$(grep -c 'cannot be had' "$log")" = 1 ] || fail "the log does not name one page"
grep -q "page $page of region .* cannot be had: .*; the engine gets SIGBUS" "$log" ||
  fail "the log does not name page $page"
python3 - "$work/report" <<'PYTHON' || fail "the report says otherwise"
import json, sys
report = json.load(open(sys.argv[1]))
store = next(t for t in report["tiers"] if t["name"] == "nvme")
counters = report["counters"]
found = {"pages_lost": counters["pages_lost"], "store_corrupt": counters["store_corrupt"],
         "store_write_errors": counters["store_write_errors"], "quarantined": store["quarantined"]}
print(found, "demotions", counters["demotions"], file=sys.stderr)
sys.exit(found != {"pages_lost": 1, "store_corrupt": 1, "store_write_errors": 0, "quarantined": 1})
PYTHON
grep 'cannot be had' "$log"
tail -n 1 "$work/out"
