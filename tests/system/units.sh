#!/usr/bin/env bash
# systemd finds no fault with the unit files. Exits 77 without systemd-analyze.
#
# usage: units.sh BUILD_DIR SOURCE_DIR
set -euo pipefail

build=$(realpath "$1") source=$(realpath "$2")
command -v systemd-analyze >/dev/null || { echo "units: skipped, no systemd-analyze"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# As installed, but for the program: verify wants it to be there.
sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|' "$build/daemon/packaging/kvmemd.service" >"$work/kvmemd.service"
cp "$source/daemon/packaging/kvmemd.socket" "$work/"
faults=$(systemd-analyze verify --man=no "$work/kvmemd.service" "$work/kvmemd.socket" 2>&1 |
  grep -i kvmem || true)
[ -z "$faults" ] || { echo "$faults"; exit 1; }

# A misspelt directive is a fault that verify reports: so the silence above means something.
echo 'Retsart=always' >>"$work/kvmemd.socket"
systemd-analyze verify --man=no "$work/kvmemd.socket" 2>&1 | grep -q Retsart ||
  { echo "units: systemd-analyze verify does not work here"; exit 77; }

if command -v systemd-sysusers >/dev/null; then
  systemd-sysusers --dry-run "$source/daemon/packaging/kvmem.sysusers.conf" 2>&1 |
    grep -v 'Would write'
fi
echo ok
