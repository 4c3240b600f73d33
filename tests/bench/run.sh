#!/usr/bin/env bash
# Every measurement of kvmem: tests/bench/run.sh NAME [options] [--json]
#
# Builds what it needs (release), runs the benchmark NAME with its options, and prints a table; with
# --json, one object per result on standard output:
#   {"bench":…,"case":…,"metric":…,"value":…,"unit":…,"reference":…,"ratio":…}
# reference is the physical limit or the peer, measured in the same run; ratio is value/reference.
# Progress goes to standard error. Without a name: the list of benchmarks.
#
# A benchmark is NAME.sh or NAME.py here, or the program build/release/bin/bench_NAME. It is called
# with its options and --json and prints those objects; it exits 77 where it cannot run. Every target
# whose name starts with bench_NAME is built first; a bench_NAME_x is a part of NAME.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

list() {
  local f
  for f in "$here"/*.sh "$here"/*.py "$here"/*.cc "$here"/*.cpp; do
    [ -e "$f" ] || continue
    f=${f##*/}
    f=${f%.*}
    f=${f#bench_}
    case $f in run | table | *_*) ;; *) echo "$f" ;; esac
  done | sort -u
}

if [ $# -eq 0 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
  echo "usage: tests/bench/run.sh NAME [options] [--json]; NAME is one of"
  list | sed 's/^/  /'
  exit 0
fi

name=$1
shift
json=no
options=()
for arg in "$@"; do
  if [ "$arg" = --json ]; then json=yes; else options+=("$arg"); fi
done

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086  # $targets: none, or several words
build() {
  local targets
  cd "$root" && nice cmake --preset release &&
    targets=$(cmake --build --preset release --target help |
      sed -n "s/^\(bench_${name}[^:/.]*\):.*/\1/p") &&
    nice cmake --build --preset release --target kvmemd kvmemctl kvmem $targets
}
echo "building (release)" >&2
if ! (build) >"$log" 2>&1; then
  tail -30 "$log" >&2
  echo "run.sh: the build failed" >&2
  exit 1
fi

if [ -f "$here/$name.sh" ] && [ "$name" != run ]; then
  program=("$here/$name.sh")
elif [ -f "$here/$name.py" ] && [ "$name" != table ]; then
  program=(python3 "$here/$name.py")
elif [ -x "$root/build/release/bin/bench_$name" ]; then
  program=("$root/build/release/bin/bench_$name")
else
  echo "run.sh: no benchmark $name; there are: $(list | paste -sd ' ')" >&2
  exit 2
fi

if [ $json = yes ]; then
  "${program[@]}" "${options[@]}" --json
else
  "${program[@]}" "${options[@]}" --json | python3 "$here/table.py"
fi
