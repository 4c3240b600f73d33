#!/usr/bin/env bash
# Builds kvmem.ko and the programs that test it.
#
# usage: build.sh KERNEL OUT [MAKE ARGUMENT...]
#   KERNEL  6.1 or 6.12
#   OUT     a folder, made if it is not there: kvmem.ko, kmod_* and suite.sh go there
#
# Exits 77 where the test machine's packages cannot be had.
#
# Warnings of the compiler (W=1) and of sparse, where it is installed, are errors. The kernel's own
# headers are not ours to judge: a message counts if it names a file of kmod/.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../../../kmod" && pwd)
[ $# -ge 2 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }
kernel=$1
mkdir -p "$2"
out=$(realpath "$2")
shift 2

rm -rf "$out/kmod"
cp -r "$source" "$out/kmod"
arguments=("M=$out/kmod" W=1)
if command -v sparse >/dev/null; then arguments+=(C=2); fi
"$here/../kbuild.sh" "$kernel" "${arguments[@]}" "$@" modules >"$out/build.log" 2>&1 || {
  status=$?
  cat "$out/build.log"
  exit $((status == 77 ? 77 : 1))
}
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
