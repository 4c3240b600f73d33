#!/usr/bin/env bash
# Breaks the rules of the software driver one by one (mutations.txt) and sees whether the test of the
# rule notices. Each is built from one changed source and the others' objects, in a temporary folder.
#
# usage: mutations.sh BUILD_DIR [RULE...]
#
# Exits 1 if a test does not notice, or a rule is not where the table says.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
sources=$(find "$here" "$root/kernels/twins.cc" -name '*.cc' ! -name '*_test.cc' ! -name runtime.cc)
build=$(realpath "$1")
test=$build/bin/softgpu_conformance_test
cached() { sed -n "s/^$1:[A-Z]*=//p" "$build/CMakeCache.txt"; }
compiler=$(cached CMAKE_CXX_COMPILER)
flags=(-std=c++20 -O0 -w -fPIC -D_GNU_SOURCE "-I$root" -isystem "$(cached KVMEM_CUDA_INCLUDE)")
jobs=$(nproc)
shift

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export here test compiler work

# FOLDER SOURCE: what is built from it
compile() { "$compiler" "${flags[@]}" -c "$2" -o "$1/$(basename "$2" .cc).o"; }
link() { # FOLDER: with its own objects before those of the driver as it is
  local object objects=("$1"/*.o)
  for object in "$work"/driver/*.o; do
    [ "$1" = "$work/driver" ] || [ -e "$1/${object##*/}" ] || objects+=("$object")
  done
  "$compiler" -shared -Wl,-soname,libcuda.so.1 -o "$1/libcuda.so.1" "${objects[@]}" -pthread -ldl
}
# FOLDER FILTER: 0 passed, 1 failed, else something else went wrong
passes() {
  LD_LIBRARY_PATH=$1 timeout 60 "$test" --gtest_brief=1 --gtest_filter="$2" >"$1/log" 2>&1
}

# NUMBER of a line of the table: prints one line, that begins with "caught" or "MISSED"
mutate() {
  local line name file what by filter folder=$work/$1 source rest code=0 fields=()
  line=$(sed -n "$1p" "$work/rules")
  rest=${line//" :: :: "/" ::  :: "}
  while [[ $rest = *" :: "* ]]; do
    fields+=("${rest%%" :: "*}")
    rest=${rest#*" :: "}
  done
  name=${fields[0]} file=${fields[1]} what=${fields[2]//'\n'/$'\n'} by=${fields[3]//'\n'/$'\n'} filter=$rest
  mkdir "$folder"
  source=$(sed 's/^ *//' "$here/$file")
  rest=${source#*"$what"}
  if [ "$rest" = "$source" ] || [ "${rest#*"$what"}" != "$rest" ]; then
    echo "MISSED $name: it no longer stands once in $file"
    return
  fi
  printf '%s\n' "${source/"$what"/"$by"}" >"$folder/$file"
  if ! { compile "$folder" "$folder/$file" && link "$folder"; } 2>"$folder/log"; then
    echo "MISSED $name: $(grep -m 1 error "$folder/log")"
    return
  fi
  passes "$folder" "$filter" || code=$?
  case $code in
    1) echo "caught $name by $filter" ;;
    0) echo "MISSED $name by $filter" ;;
    *) echo "MISSED $name: $filter ended with $code" ;;
  esac
  rm -rf "$folder"
}

export -f mutate compile link passes

grep -vE '^(#|$)' "$here/mutations.txt" >"$work/all"
if [ $# -gt 0 ]; then
  for rule in "$@"; do grep -F "$rule :: " "$work/all"; done >"$work/rules"
else
  cp "$work/all" "$work/rules"
fi

# What all of them include, read once.
# shellcheck disable=SC2016,SC2086
grep -h '^#include <' $sources | sort -u >"$work/system.h"
"$compiler" "${flags[@]}" -x c++-header "$work/system.h" -o "$work/system.h.gch"
flags+=(-include "$work/system.h")
export flags_text="${flags[*]@Q}" # arrays are not exported
with_flags() {
  eval "flags=($flags_text)"
  "$@"
}
export -f with_flags

mkdir "$work/driver"
xargs -n 1 -P "$jobs" bash -c 'with_flags compile "$work/driver" "$1"' _ <<<"$sources"
link "$work/driver"
# All of them pass on the driver as it is, and they exist.
filters=$(sed 's/.* :: //' "$work/rules" | sort -u)
passes "$work/driver" "$(paste -sd: <<<"$filters")" || { cat "$work/driver/log"; exit 1; }
for filter in $filters; do
  [[ $("$test" --gtest_list_tests --gtest_filter="$filter") = *"${filter#*.}"* ]] ||
    { echo "mutations: no test $filter"; exit 1; }
done

seq "$(wc -l <"$work/rules")" | xargs -n 1 -P "$jobs" bash -c 'with_flags mutate "$1"' _ | sort | tee "$work/said"
missed=$(grep -c '^MISSED' "$work/said") || true
echo "$(grep -c '^caught' "$work/said") caught, $missed missed"
[ "$missed" = 0 ] && [ "$(wc -l <"$work/said")" = "$(wc -l <"$work/rules")" ]
