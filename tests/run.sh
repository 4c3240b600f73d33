#!/usr/bin/env bash
# The whole test of the tree, from a bare Debian 12: packages, then
#
#   format   clang-format
#   release  build, every test
#   asan     library, daemon, CLI and unit tests built by clang with ASan, UBSan and -Wthread-safety; the
#            unit tests run (not the long simulations)
#   tsan     the same of what has threads with TSan
#   fuzz     each of tests/fuzz from its seeds, for KVMEM_FUZZ_SECONDS (default 60)
#   tidy     clang-tidy over the sources, for at most KVMEM_TIDY_SECONDS (default 360)
#
# usage: tests/run.sh [quick | STEP...]     quick: format and release
#
# System tests run in release alone: sanitizers and a preloaded library do not mix. Goes on after a
# failed step. Exits 0 only if all passed; the last line is "N passed, N failed, N skipped", where a
# step that is no set of tests counts as one.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 1
all_steps=(format release asan tsan fuzz tidy)
jobs=$(nproc)
passed=0 failed=0 skipped=0
failures=()

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; }
say() { printf '\n==> [%4ds] %s\n' "$SECONDS" "$*"; }

pass() { passed=$((passed + 1)); }
fail() {
  failed=$((failed + 1))
  failures+=("$1")
  echo "FAILED: $1" >&2
}

packages() {
  local wanted missing=() p
  mapfile -t wanted < <(sed 's/#.*//; /^[[:space:]]*$/d' tests/packages.txt)
  for p in "${wanted[@]}"; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ]; then
    echo "run.sh: packages are missing; as root: apt-get install ${missing[*]}" >&2
    return 1
  fi
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
}

sources() { # below these folders, those of git where there is one
  if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git ls-files --cached --others --exclude-standard -- "${@/%//*.cc}" "${@/%//*.h}" | while read -r f; do
      [ ! -e "$f" ] || echo "$f"
    done
  else
    find "$@" \( -name '*.cc' -o -name '*.h' \) 2>/dev/null
  fi
}

build() { # PRESET [TARGET...]
  local preset=$1
  shift
  say "$preset: build"
  cmake --preset "$preset" >"build/$preset.log" 2>&1 || { cat "build/$preset.log"; return 1; }
  cmake --build --preset "$preset" ${1:+--target "$@"} >"build/$preset.log" 2>&1 ||
    { grep -vE '^\[[0-9]+/[0-9]+\] (Building|Linking|Generating)' "build/$preset.log" | tail -n 100; return 1; }
}

count() { # PRESET CTEST-ARGUMENTS...: runs the tests and adds them up
  local preset=$1 report=$root/build/$1-tests.xml
  shift
  say "$preset: tests"
  rm -f "$report"
  ctest --test-dir "build/$preset" --output-on-failure --no-tests=error -j "$jobs" \
    --output-junit "$report" "$@" | grep -vE '^ *(Start +[0-9]+:|[0-9]+/[0-9]+ Test .*Passed)'
  local numbers
  numbers=$(python3 - "$report" <<'PY'
import sys, xml.etree.ElementTree as tree
suite = tree.parse(sys.argv[1]).getroot()
status = [case.get("status") for case in suite.iter("testcase")]
skipped = sum(s in ("notrun", "disabled", "skipped") for s in status)
bad = [case.get("name") for case, s in zip(suite.iter("testcase"), status) if s == "fail"]
print(len(status) - skipped - len(bad), len(bad), skipped, *bad, sep="\n")
PY
  ) || { fail "$preset: no test report"; return; }
  local fields name
  mapfile -t fields <<<"$numbers"
  passed=$((passed + fields[0])) failed=$((failed + fields[1])) skipped=$((skipped + fields[2]))
  for name in "${fields[@]:3}"; do failures+=("$preset: $name"); done
}

step_format() {
  say "format"
  local files
  mapfile -t files < <(sources daemon libkvmem tests kernels examples)
  if clang-format-14 --dry-run -Werror "${files[@]}"; then pass; else fail "format: clang-format-14 -i the files above"; fi
}

step_release() {
  if build release; then pass; else fail "release: build"; return; fi
  say "release: the test machine's packages"
  tests/vm/packages.sh >/dev/null # without them its tests say what is wrong, or skip
  count release
}

# Simulations are long, of one thread, and judged by their figures in release.
simulations='Sizes/Dense|Shapes/Moe|HitRates|Shares|Of/EachShared'
one_thread='Planner|BlockCache|BlockShares|WriteBudget|History|Policy|Trace|Config|StoreCrash|Render'

step_asan() {
  # Not what is built into an engine's program: a preloaded library does not mix with a sanitizer.
  if build asan unit_tests kvmem kvmemd kvmemctl; then pass; else fail "asan: build"; return; fi
  count asan -L unit -E "^unit\.($simulations)"
}
step_tsan() {
  if build tsan unit_tests; then pass; else fail "tsan: build"; return; fi
  count tsan -L unit -E "^unit\.($simulations|$one_thread)"
}

step_fuzz() {
  if build fuzz; then pass; else fail "fuzz: build"; return; fi
  say "fuzz"
  local names=() dir
  for dir in tests/fuzz/*/; do names+=("$(basename "$dir")"); done
  rm -f build/fuzz/*.rc
  printf '%s\n' "${names[@]}" | xargs -P "$jobs" -I{} sh -c '
    found=build/fuzz/found/$1
    mkdir -p "$found"
    timeout $(($2 + 120)) "build/fuzz/bin/fuzz_$1" -max_total_time="$2" -timeout=30 -rss_limit_mb=4096 \
      -print_final_stats=1 -artifact_prefix="build/fuzz/$1-" "$found" "tests/fuzz/$1" >"build/fuzz/$1.log" 2>&1
    echo $? >"build/fuzz/$1.rc"' _ {} "${KVMEM_FUZZ_SECONDS:-60}"
  local name
  for name in "${names[@]}"; do
    if [ "$(cat "build/fuzz/$name.rc" 2>/dev/null)" = 0 ]; then
      echo "$name: $(sed -n 's/^stat::number_of_executed_units: *//p' "build/fuzz/$name.log") inputs"
      pass
    else
      tail -n 60 "build/fuzz/$name.log"
      fail "fuzz: $name"
    fi
  done
}

last_changed_first() { # by their commits: in a clean clone all files are of the same time
  local f changed
  while read -r f; do
    changed=$(git log -1 --format=%ct -- "$f" 2>/dev/null)
    printf '%s %s\n' "${changed:-9999999999}" "$f"
  done | sort -rn | cut -d' ' -f2-
}

step_tidy() {
  say "tidy"
  [ -e build/asan/compile_commands.json ] ||
    cmake --preset asan >build/asan.log 2>&1 || { fail "tidy: configure"; return; }
  local log=build/tidy.log limit=${KVMEM_TIDY_SECONDS:-360} files code=0
  # What changed last is looked at first, should the time not be enough for all.
  mapfile -t files < <(sources daemon libkvmem | grep '\.cc$' | last_changed_first)
  : >"$log"
  printf '%s\n' "${files[@]}" |
    timeout "$limit" xargs -P "$jobs" -I{} sh -c \
      'clang-tidy-14 -p build/asan --quiet "$1" >"$2.$$" 2>/dev/null || { cat "$2.$$"; echo "BAD $1"; }
       echo "CHECKED $1"; rm -f "$2.$$"' _ {} "$log" >>"$log" || code=$?
  rm -f "$log".*
  local checked
  checked=$(grep -c '^CHECKED' "$log")
  echo "checked $checked of ${#files[@]} files"
  if grep -q '^BAD' "$log"; then
    grep -vE '^(CHECKED|BAD)' "$log"
    fail "tidy: $(sed -n 's/^BAD //p' "$log" | tr '\n' ' ')"
  elif [ "$code" = 124 ]; then
    echo "time is up after $limit s"
    if [ "$checked" -gt 0 ]; then pass; else fail "tidy: nothing checked"; fi
  elif [ "$code" != 0 ] || [ "$checked" != ${#files[@]} ]; then
    fail "tidy: did not run"
  else
    pass
  fi
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  '') steps=("${all_steps[@]}") ;;
  quick) steps=(format release) ;;
  *) steps=("$@") ;;
esac
for step in "${steps[@]}"; do
  [[ " ${all_steps[*]} " == *" $step "* ]] || { echo "run.sh: no step $step" >&2; usage >&2; exit 2; }
done

mkdir -p build
if packages && CUDA_HOME=$(tests/cuda_home.sh); then
  export CUDA_HOME
  for step in "${steps[@]}"; do "step_$step"; done
else
  fail "packages and cuda.h"
fi

say "done"
for failure in "${failures[@]}"; do echo "FAILED: $failure"; done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
