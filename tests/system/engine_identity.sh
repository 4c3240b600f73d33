#!/usr/bin/env bash
# An unmodified engine gives the same tokens and the same probabilities with kvmem as without it:
# dense and mixture-of-experts, 60 % and 25 % of weights + KV cache in DRAM, mapped and allocated
# weights. Each run must also show that kvmem did the work: pages left DRAM and came back.
#
# usage: engine_identity.sh [BUILD_DIR]    (default $KVMEM_BUILD, else build/release)
# Exits 77 where the engine package cannot be had.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
export KVMEM_BUILD=${1:-${KVMEM_BUILD:-$root/build/release}}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvmem
tokens=24 ctx=2048 size=300M
page=$((2 << 20))

if ! [ -x "$KVMEM_BUILD/bin/kvmemctl" ]; then
  echo "engine_identity: no kvmemctl in $KVMEM_BUILD/bin" >&2
  exit 1
fi
if ! python=$("$root/examples/venv.sh"); then
  echo "engine_identity: skipped, no engine package here"
  exit 77
fi

work=$(mktemp -d)
store=$cache/identity-$$.store
child=''
# shellcheck disable=SC2317  # called by the trap
cleanup() {
  local code=$?
  trap - EXIT INT TERM HUP
  if [ -n "$child" ]; then
    kill -TERM "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  rm -rf "$work" "$store"
  exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

measure() { # MODE MODEL OUTPUT ARGS...
  "$python" "$root/examples/measure.py" "$1" "$2" --output "$3" --n-predict $tokens \
    --n-ctx $ctx "${@:4}" &
  child=$!
  local code=0
  wait "$child" || code=$?
  child=''
  return "$code"
}

# Prints what differs, or what shows that nothing was tested; a summary line if all is well.
judge() { # PLAIN.json KVMEM.json
  "$python" - "$@" <<'EOF'
import json, sys
plain, run = (json.load(open(p)) for p in sys.argv[1:])
c = run.get("report", {}).get("counters", {})
came_back = c.get("origin_read_bytes", 0) + c.get("store_read_bytes", 0)
if run["tokens"] != plain["tokens"]:
    at = next(i for i, (a, b) in enumerate(zip(plain["tokens"], run["tokens"])) if a != b)
    sys.exit(f"token {at} differs: {plain['tokens'][at]} without kvmem, {run['tokens'][at]} with it")
if run["digest"] != plain["digest"]:
    sys.exit("the tokens are equal but their probabilities differ")
if came_back < plain["weights_bytes"] // 4:
    sys.exit(f"kvmem did not do the work: only {came_back} bytes came back; counters {c}")
print(f"identical, {came_back >> 20} MiB came back, {run['tokens_per_s']:.1f} tokens/s")
EOF
}

failed=0
mkdir -p "$cache"
for arch in dense moe; do
  model=$cache/$arch-$size.gguf
  [ -f "$model" ] || "$python" "$root/examples/make_gguf.py" --quiet --arch $arch --size $size "$model"
  "$python" "$root/examples/gguf_size.py" --n-ctx $ctx "$model" >"$work/size.json"
  read -r weights both < <("$python" -c 'import json,sys
s = json.load(open(sys.argv[1])); print(s["weights_bytes"], s["weights_bytes"] + s["kv_bytes"])' "$work/size.json")
  measure plain "$model" "$work/run.json"
  "$python" -c 'import json,sys
r = json.load(open(sys.argv[1])); r["weights_bytes"] = int(sys.argv[2]); json.dump(r, open(sys.argv[3], "w"))' \
    "$work/run.json" "$weights" "$work/plain.json"
  for percent in 60 25; do
    for how in mmap no-mmap; do
      options=(--dram $((both * percent / 100 / page * page)) --store "$store" --store-size $((2 << 30)))
      [ $how = mmap ] || options+=(--no-mmap)
      word=''
      if ! measure kvmem "$model" "$work/kvmem.json" "${options[@]}" 2>"$work/err"; then
        word="the engine failed: $(tail -n 3 "$work/err" | tr '\n' ' ')"
      elif ! word=$(judge "$work/plain.json" "$work/kvmem.json" 2>&1); then
        :
      else
        printf 'ok    %-5s %2d %% %-8s %s\n' $arch $percent $how "$word"
        continue
      fi
      printf 'FAIL  %-5s %2d %% %-8s %s\n' $arch $percent $how "$word"
      failed=1
    done
  done
done
exit $failed
