#!/usr/bin/env bash
# Builds kvmem.ko and the programs that test it.
#
# usage: build.sh ROOT KERNEL OUT [MAKE ARGUMENT...]
#   ROOT    where Debian's linux-headers, linux-kbuild and pahole are unpacked (tests/vm/packages.sh)
#   KERNEL  6.1 or 6.12
#   OUT     a folder, made if it is not there: kvmem.ko, kmod_* and suite.sh go there
#
# Warnings of the compiler (W=1) and of sparse, where it is installed, are errors. The kernel's own
# headers are not ours to judge: a message counts if it names a file of kmod/.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../../../kmod" && pwd)
[ $# -ge 3 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }
root=$(realpath "$1") kernel=$2
mkdir -p "$3"
out=$(realpath "$3")
shift 3

headers=$(echo "$root/usr/src/linux-headers-$kernel."*-amd64)
[ -d "$headers" ] || { echo "build.sh: no headers of $kernel in $root" >&2; exit 1; }

rm -rf "$out/kmod"
cp -r "$source" "$out/kmod"
arguments=(-C "$out/kmod" "KDIR=$headers" W=1)
# Type information is made where the headers come with the kernel's own.
if ! command -v pahole >/dev/null; then
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' "$root/usr/lib/x86_64-linux-gnu" \
    "$root/usr/bin/pahole" >"$out/pahole"
  chmod +x "$out/pahole"
  arguments+=("PAHOLE=$out/pahole")
fi
if command -v sparse >/dev/null; then arguments+=(C=2); fi
make "${arguments[@]}" "$@" >"$out/build.log" 2>&1 || { cat "$out/build.log"; exit 1; }
if grep -E '^[^ ]*(warning|error):|/kmod/.*(warning|error):' "$out/build.log" | grep "$out/kmod/"; then
  echo "build.sh: the module does not build without warnings" >&2
  exit 1
fi
cp "$out/kmod/kvmem.ko" "$out/kvmem.ko"

for program in "$here"/*.c; do
  ${CC:-gcc} -std=gnu11 -O2 -g -Wall -Wextra -Wshadow -Werror -static -pthread \
    -I "$source/include/uapi" -o "$out/kmod_$(basename "$program" .c)" "$program"
done
# The ABI is for C++ too.
echo '#include <kvmem_kmod.h>' | ${CXX:-g++} -std=c++20 -Wall -Wextra -Werror -pedantic -fsyntax-only \
  -I "$source/include/uapi" -x c++ -
cp "$here/suite.sh" "$out/suite.sh"
