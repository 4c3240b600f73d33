#!/usr/bin/env bash
# Without a daemon an engine runs as if kvmem were not there, and one line says so; programs without
# large allocations say nothing at all.
#
# usage: pass_through.sh BUILD_DIR PROGRAMS_DIR
set -euo pipefail

build=$(realpath "$1") programs=$(realpath "$2")
library=$build/lib/libkvmem.so
work=$(mktemp -d "$build/pass.XXXXXX")
trap 'rm -rf "$work"' EXIT
export KVMEM_SOCKET=$work/nobody.sock KVMEM_TEST_MANAGED=0

fail() {
  echo "pass_through: $*" >&2
  [ ! -s "$work/err" ] || sed 's/^/  | /' "$work/err" >&2
  exit 1
}
# expect LINES COMMAND...: exit status 0 and LINES lines of kvmem's on standard error, no other.
expect() {
  local wanted=$1
  shift
  LD_PRELOAD=$library "$@" >"$work/out" 2>"$work/err" || fail "exit status $? of: $*"
  [ "$(grep -c '^kvmem: ' "$work/err" || true)" = "$wanted" ] || fail "not $wanted lines: $*"
  [ "$(wc -l <"$work/err")" = "$wanted" ] || fail "other lines: $*"
}

"$programs/make_file" "$work/file" 50000123
expect 1 "$programs/edges" 1 "$work/file"
grep -q "no kvmemd answers there" "$work/err" || fail "the line does not say why"
expect 1 "$programs/resizes" 20
expect 1 "$programs/transfers" 64 "$work"
expect 1 "$programs/lifetimes"
expect 1 "$programs/cycles" 100
expect 1 "$programs/last_thread"
grep -q '^ok ' "$work/out" || fail "last_thread: what it wrote last was lost"
echo "ok large allocations without a daemon: as without kvmem, and one line"

# Every process of its own says its line: parent and the child that allocates on its own do.
LD_PRELOAD=$library "$programs/forks" 64 1 "$work/file" >"$work/out" 2>"$work/err" ||
  fail "forks: exit status $?"
[ "$(grep -vc '^kvmem: passing through' "$work/err" || true)" = 0 ] || fail "forks: other lines"
echo "ok forks without a daemon"

expect 0 /bin/sh -c 'for i in 1 2 3; do /bin/echo $i | cat; done; (exit 0)'
expect 0 python3 -c 'import subprocess, json; subprocess.run(["true"], check=True); print(len(bytes(20 << 20)))'
expect 0 "$programs/writers" 16 2 1
printf 'int main(void){return 0;}\n' >"$work/a.c"
if command -v gcc >/dev/null; then
  expect 0 gcc -O2 -o "$work/a" "$work/a.c"
  expect 0 "$work/a"
fi
echo "ok a shell, Python and a compiler: not a word"

KVMEM=off expect 0 "$programs/resizes" 5
KVMEM_THRESHOLD=1G expect 0 "$programs/resizes" 5
KVMEM_SOCKET=$(printf 'x%.0s' {1..200}) expect 1 "$programs/resizes" 5
(ulimit -v 4000000 && expect 1 "$programs/resizes" 5) || exit 1
(ulimit -n 12 && expect 1 "$programs/resizes" 5) || exit 1
echo "ok KVMEM=off, KVMEM_THRESHOLD, a socket's name that is too long, RLIMIT_AS, RLIMIT_NOFILE"

# Linked for its C API, not preloaded: nothing is intercepted.
LD_LIBRARY_PATH=$build/lib "$programs/api" unarmed >"$work/out" 2>"$work/err" || fail "api: exit status $?"
echo "ok a program that links the library for its C API"
