#!/usr/bin/env bash
# However a run in the test machine ends, it says how, and leaves no machine behind.
#
# usage: tests/vm/ends.sh
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
fail() {
  echo "ends: $*" >&2
  exit 1
}
root=$("$here/packages.sh") || exit $?
work=$(mktemp -d "$(dirname "$root")/ends.XXXXXX")
trap 'rm -rf "$work"' EXIT

machines() { # those of this test, by their disk
  pgrep -f "filename=$work/disk" || true
}
no_machine() { # AFTER
  for _ in {1..100}; do
    [ -n "$(machines)" ] || return 0
    sleep 0.1
  done
  fail "after $1 there is still a machine"
}

code=0
"$here/run.sh" 6.12 --disk "$work/disk" --bind "$work" -- \
  bash -c "sleep 1000 & printf kept >'$work/file'; echo 'a  b'; echo '\$c' >/dev/stderr; exit 42" >"$work/out" || code=$?
[ $code = 42 ] || fail "a program that exits with 42: $code"
[ "$(cat "$work/out")" = $'a  b\n$c' ] || fail "its output: $(cat "$work/out")"
[ "$(cat "$work/file")" = kept ] || fail "what it wrote is not kept"
no_machine "its exit"

code=0
"$here/run.sh" 6.12 --disk "$work/disk" --timeout 25 -- sleep 1000 2>"$work/err" || code=$?
[ $code = 124 ] || fail "a program that hangs: $code"
grep -q 'not done after 25 s' "$work/err" || fail "a program that hangs: $(cat "$work/err")"
no_machine "the timeout"

for signal in TERM KILL; do
  "$here/run.sh" 6.12 --disk "$work/disk" -- sleep 1000 2>/dev/null &
  runner=$!
  for _ in {1..300}; do
    [ -z "$(machines)" ] || break
    sleep 0.1
  done
  [ -n "$(machines)" ] || fail "there was no machine"
  kill -$signal $runner
  code=0
  wait $runner 2>/dev/null || code=$?
  [ $code = $((128 + $(kill -l $signal))) ] || fail "$signal: $code"
  no_machine "$signal"
done
echo "ok exit status, output, timeout, signals"
