#!/usr/bin/env bash
# A shell, Python and a compiler under preload: no socket, no thread, no address space taken.
# Traced, with a daemon's socket there to be found.
#
# usage: inert.sh BUILD_DIR
# Exits 77 without strace, or where tracing is not allowed.
set -euo pipefail

build=$(realpath "$1")
work=$(mktemp -d "$build/inert.XXXXXX")
trap 'rm -rf "$work"' EXIT
command -v strace >/dev/null || { echo "inert: skipped, no strace"; exit 77; }
strace -o /dev/null true 2>/dev/null || { echo "inert: skipped, this user may not trace"; exit 77; }
printf '#include <stdio.h>\nint main(void){puts("hello");return 0;}\n' >"$work/a.c"

trace() { # NAME COMMAND...
  local name=$1
  shift
  strace -f -qq -E LD_PRELOAD="$build/lib/libkvmem.so" -o "$work/$name" \
    -e trace=socket,socketpair,connect,clone,clone3,userfaultfd,mmap,memfd_create "$@" >/dev/null ||
    { echo "inert: $name failed" >&2; exit 1; }
  if grep -E 'SEQPACKET|kvmemd|CLONE_THREAD|userfaultfd|memfd_create' "$work/$name"; then
    echo "inert: $name: see above" >&2
    exit 1
  fi
  # The arena would be a reservation of terabytes.
  if grep -E 'mmap\(NULL, [0-9]{12,}' "$work/$name"; then
    echo "inert: $name reserved address space" >&2
    exit 1
  fi
  echo "ok $name: $(wc -l <"$work/$name") calls traced, none of them kvmem's"
}
trace shell /bin/sh -c 'for i in 1 2 3; do /bin/echo $i | cat; done; ls / | sort | head -3'
trace python python3 -c 'import subprocess, json, socketserver; subprocess.run(["true"], check=True); x = bytes(20 << 20)'
if command -v gcc >/dev/null; then trace compiler gcc -O2 -o "$work/a" "$work/a.c"; fi
