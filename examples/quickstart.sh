#!/usr/bin/env bash
# From a fresh Debian 12 to an LLM engine that runs in less memory than it needs, with the same
# output: installs, builds, gets an engine, makes a model, runs it three ways, prints a table.
#
#   plain    no limit
#   mmap     the engine's own mmap in a memory cgroup of the same size
#   kvmem    the engine, unmodified, under `kvmemctl run`
#
# Exits 0 only if all three gave the same tokens. Everything it changes on the machine beyond
# installed packages (a cgroup, the huge page limit, a store file) is put back when it ends.
# What it builds is kept: build/release, and ${XDG_CACHE_HOME:-~/.cache}/kvmem.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: examples/quickstart.sh [options]
  --gguf FILE         a model of your own (default: random weights, made here)
  --arch dense|moe    of the random model (default dense)
  --size SIZE         of the random model (default 1200M)
  --tokens N          to generate (default 24)
  --ctx N             context length (default 4096)
  --dram-percent P    of weights + KV cache that kvmem may keep in DRAM (default 40)
  --threads N         of the engine (default 2)
  --no-install        install no packages
EOF
}

gguf='' arch=dense size=1200M tokens=24 ctx=4096 percent=40 threads=2 install=yes
while [ $# -gt 0 ]; do
  case $1 in
    --gguf | --arch | --size | --tokens | --ctx | --dram-percent | --threads)
      [ $# -ge 2 ] || { echo "quickstart: $1 wants a value" >&2; usage >&2; exit 2; } ;;
  esac
  case $1 in
    --gguf) gguf=$(readlink -e "$2") || { echo "quickstart: no such file: $2" >&2; exit 2; }; shift 2 ;;
    --arch) arch=$2; shift 2 ;;
    --size) size=$2; shift 2 ;;
    --tokens) tokens=$2; shift 2 ;;
    --ctx) ctx=$2; shift 2 ;;
    --dram-percent) percent=$2; shift 2 ;;
    --threads) threads=$2; shift 2 ;;
    --no-install) install=no; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "quickstart: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
done

root=$(cd "$(dirname "$0")/.." && pwd)
examples=$root/examples
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvmem
# What the build looks for, and what a virtual environment needs.
packages=(g++ cmake ninja-build pkg-config liburing-dev libnuma-dev libxxhash-dev libncurses-dev
  nlohmann-json3-dev libtomlplusplus-dev libcli11-dev libbpf-dev bpftool clang-14 libgtest-dev libgmock-dev
  python3 python3-venv)

step() { printf '\n[%3ds] %s\n' "$SECONDS" "$*"; }
die() { printf 'quickstart: %s\n' "$*" >&2; exit 1; }

work='' store='' child=''
cleanup() {
  local code=$?
  trap - EXIT INT TERM HUP
  if [ -n "$child" ] && kill -0 "$child" 2>/dev/null; then
    kill -TERM "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
    # measure.py removes its cgroup, unless it was killed.
    rmdir /sys/fs/cgroup{,/memory,/unified}/kvmem-"$child" 2>/dev/null || true
  fi
  [ -z "$store" ] || rm -f "$store"
  [ -z "$work" ] || rm -rf "$work"
  exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# In the background and waited for, so that a signal to this script is acted on at once.
run() {
  "$@" &
  child=$!
  local code=0
  wait "$child" || code=$?
  child=''
  return "$code"
}

install_packages() {
  local missing=() p
  for p in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || die "needs packages; as root: apt-get install ${missing[*]}"
  echo "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  run apt-get update -q >"$cache/apt.log" 2>&1 || die "apt-get update failed; see $cache/apt.log"
  run apt-get install -q -y --no-install-recommends "${missing[@]}" >>"$cache/apt.log" 2>&1 ||
    die "apt-get install failed; see $cache/apt.log"
}

progress() { # keeps the last line of a build on the terminal, if there is one
  while IFS= read -r line; do
    echo "$line" >>"$cache/build.log"
    [ ! -t 2 ] || printf '\r\033[K%.100s' "$line" >&2
  done
  [ ! -t 2 ] || printf '\r\033[K' >&2
}

build() {
  cd "$root"
  : >"$cache/build.log"
  run nice cmake --preset release > >(progress) 2>&1 &&
    run nice cmake --build --preset release --target kvmemd kvmemctl kvmem > >(progress) 2>&1
}

json() { "$python" -c 'import json,sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$@"; }

mkdir -p "$cache"
if [ "$install" = yes ]; then
  step "packages"
  install_packages
fi

step "building kvmem (release)"
build || { tail -20 "$cache/build.log" >&2; die "the build failed; see $cache/build.log"; }

step "the engine"
python=$(run "$examples/venv.sh")
work=$(mktemp -d)
"$python" -c 'from importlib.metadata import version
print("xllamacpp", version("xllamacpp"), "from the package index, unmodified")'

step "the model"
if [ -z "$gguf" ]; then
  gguf=$cache/$arch-$size.gguf
  [ -f "$gguf" ] || run "$python" "$examples/make_gguf.py" --arch "$arch" --size "$size" "$gguf"
fi
"$python" "$examples/gguf_size.py" --n-ctx "$ctx" "$gguf" >"$work/size.json"
weights=$(json "$work/size.json" weights_bytes)
kv=$(json "$work/size.json" kv_bytes)
page=$((2 << 20))
dram=$(((weights + kv) * percent / 100 / page * page))
printf '%s: weights %d MiB, KV cache %d MiB; %d %% of both is %d MiB\n' \
  "$gguf" $((weights >> 20)) $((kv >> 20)) "$percent" $((dram >> 20))

measure() { # MODE ARGS...
  run "$python" "$examples/measure.py" "$1" "$gguf" --n-predict "$tokens" --n-ctx "$ctx" \
    --threads "$threads" --output "$work/$1.json" "${@:2}"
}

step "plain: no limit, $tokens tokens"
measure plain || die "the engine failed on its own"

# The limit also holds what kvmem does not manage: interpreter, small buffers. So that both sides
# have the same memory for weights and KV cache, that part is measured and added.
other=$(($(json "$work/plain.json" max_rss_bytes) - weights - kv))
[ "$other" -gt 0 ] || other=0
limit=$((dram + other))
step "mmap: memory cgroup of $((limit >> 20)) MiB ($((other >> 20)) MiB of it for all but weights and KV)"
code=0
measure limited --limit "$limit" || code=$?
case $code in
  0) ;;
  125) echo "skipped: this user or container may not make a memory cgroup" ;;
  *) echo "the engine did not survive the limit (exit $code)" ;;
esac

step "kvmem: $((dram >> 20)) MiB of DRAM"
store=$cache/quickstart-$$.store
measure kvmem --dram "$dram" --store "$store" --store-size $((weights + 2 * kv + (1 << 30))) ||
  die "the engine failed under kvmem"

step "done"
"$python" "$examples/quickstart_table.py" "$work" --dram "$dram" --limit "$limit"
