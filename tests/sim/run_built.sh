#!/usr/bin/env bash
# Builds a program of the tree (release) if needed, then is that program.
#
# usage: run_built.sh PROGRAM [ARGS...]
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
program=$1
shift
mkdir -p "$root/build"
log=$root/build/sim.log
(cd "$root" && { [ -e build/release/build.ninja ] || cmake --preset release; } &&
  cmake --build --preset release --target "$program") >"$log" 2>&1 ||
  { cat "$log" >&2; echo "$program: the build failed; tests/run.sh installs what it needs" >&2; exit 1; }
exec "$root/build/release/bin/$program" "$@"
