#!/usr/bin/env bash
# Runs an unmodified program under a private daemon with little DRAM. It must say "ok" and exit 0,
# its large allocations must have been regions (the programs check), and at its end the daemon must
# have every frame and session back.
#
# usage: served.sh BUILD_DIR DRAM [OPTION...] PROGRAM ARGS...
#   --restarts N     kill -9 the daemon N times at random moments while the program runs
#   --store DEVICE   instead of a file in the build folder
#   --cxl SIZE       of CXL memory, in which pages must have lain
# Exits 77 where this user may not have kernel-mode userfaults.
set -euo pipefail

build=$(realpath "$1") dram=$2
shift 2
restarts=0 store='' cxl=''
while [[ $1 == --* ]]; do
  case $1 in
    --restarts) restarts=$2 ;;
    --store) store=$2 ;;
    --cxl) cxl=$2 ;;
    *) echo "served: what is $1?" >&2; exit 2 ;;
  esac
  shift 2
done

fail() {
  echo "served: $*" >&2
  exit 1
}
if ! { [ -r /dev/userfaultfd ] && [ -w /dev/userfaultfd ]; } &&
  [ "$(cat /proc/sys/vm/unprivileged_userfaultfd 2>/dev/null || echo 0)" != 1 ] && [ "$(id -u)" != 0 ]; then
  echo "served: skipped, no permission for /dev/userfaultfd"
  exit 77
fi

# On the disk of the build folder: the store wants O_DIRECT, which tmpfs may not have.
work=$(mktemp -d "$build/served.XXXXXX")
trap 'rm -rf "$work"' EXIT
set -- "${@//@WORK@/$work}"

KVMEM_TEST_MANAGED=1 "$build/bin/kvmemctl" run --private -v --dram "$dram" ${cxl:+--cxl "$cxl"} --store "${store:-$work}" \
  --store-size 4GiB --json-report "$work/report.json" --kvmemd "$build/bin/kvmemd" \
  --library "$build/lib/libkvmem.so" -- "$@" >"$work/out" 2>"$work/err" &
runner=$!

# (A daemon that dies before it has ever served is not started again.)
tries=0
until [ "$restarts" = 0 ] || grep -q '^kvmem: private daemon' "$work/err" || [ $((++tries)) -gt 500 ]; do sleep 0.02; done
killed=0 last=
while [ "$killed" -lt "$restarts" ] && kill -0 $runner 2>/dev/null; do
  sleep "0.$((RANDOM % 9))$((RANDOM % 9))"
  # The daemon is a child of the runner's, or of its session leader; no other daemon is meant.
  daemon=$(pgrep -f -- "--store ${store:-$work/}" | while read -r p; do
    [ "$(cat "/proc/$p/comm" 2>/dev/null)" = kvmemd ] && echo "$p"; done | head -1 || true)
  # One that is dying can be killed again, and is restarted once.
  [ -n "$daemon" ] && [ "$daemon" != "$last" ] || continue
  kill -9 "$daemon" 2>/dev/null && killed=$((killed + 1)) last=$daemon
done
code=0
wait $runner || code=$?
cat "$work/out"
grep -v '^kvmem: ' "$work/err" >&2 || true
if [ "$code" != 0 ]; then
  grep '^kvmem: ' "$work/err" >&2 || true
  fail "exit status $code"
fi
grep -q '^ok ' "$work/out" || fail "it did not say ok"
[ "$killed" = "$restarts" ] || fail "it ended before the daemon was killed $restarts times, after $killed"

python3 - "$work/report.json" "$restarts" "$cxl" <<'PYTHON'
import json, sys
report, restarts = json.load(open(sys.argv[1])), int(sys.argv[2])
memory = [t for t in report["tiers"] if t["name"] in ("dram", "cxl")]
faults = []
if not report["run"]["served"]:
    faults.append("the daemon served nobody")
if report["engines"] or report["regions"]:
    faults.append("the daemon still has %d engines and %d regions" % (len(report["engines"]), len(report["regions"])))
for tier in memory:
    if tier["used_bytes"] != 0:
        faults.append("%d bytes of frames of %s did not come back" % (tier["used_bytes"], tier["name"]))
    if tier["name"] == "cxl":
        print("between DRAM and CXL memory: %d pages up, %d down, %d failed; %d of %d looks saw a use"
              % (tier["pages_to_dram"], tier["pages_to_cxl"], tier["place_failures"], tier["looks_used"], tier["looks"]))
        if tier["pages_to_dram"] == 0:
            faults.append("no page ever moved from CXL memory to DRAM")
if len(memory) != (2 if sys.argv[3] else 1):
    faults.append("the daemon knows of no CXL memory")
if report["counters"]["pages_lost"] or report["counters"]["store_corrupt"]:
    faults.append("pages were lost")
if restarts and report["run"]["daemon_restarts"] < restarts:
    faults.append("%d restarts of %d" % (report["run"]["daemon_restarts"], restarts))
for fault in faults:
    print("served:", fault, file=sys.stderr)
sys.exit(1 if faults else 0)
PYTHON
echo "ok every frame and session came back; the daemon was killed $killed times"
