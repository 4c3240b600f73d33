#!/usr/bin/env bash
# make in a kernel's headers, for modules that the test machine can load:
#
# usage: tests/vm/kbuild.sh KERNEL MAKE-ARGUMENT...     as in: kbuild.sh 6.12 M="$PWD/build/kmod-6.12"
#   KERNEL   6.1 or 6.12
#
# Needs make and gcc-12. Exits 77 where the machine's packages cannot be had.
set -euo pipefail

root=$("$(dirname "$0")/packages.sh")
kernel=$1
shift
# 6.12's headers have the kernel's types, and want pahole to add the module's.
export PATH=$PATH:$root/usr/bin LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu
exec make -C "$(echo "$root/usr/src/linux-headers-$kernel."*-amd64)" "$@"
