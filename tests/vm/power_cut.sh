#!/usr/bin/env bash
# A power cut of the test machine loses what a real one may lose: what was synced is on the disk, and
# what was not is gone.
#
# usage: tests/vm/power_cut.sh
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$("$here/packages.sh") || exit $?
work=$(mktemp -d "$(dirname "$root")/power_cut.XXXXXX")
trap 'rm -rf "$work"' EXIT

code=0
"$here/run.sh" 6.12 --disk "$work/disk" --bind "$work" --power-cut-after 0 --power-cut-when "$work/synced" -- \
  python3 "$here/synced.py" writes "$work" || code=$?
[ $code = 137 ] || { echo "power_cut: status $code instead of 137" >&2; exit 1; }
"$here/run.sh" 6.12 --disk "$work/disk" -- python3 "$here/synced.py" finds
