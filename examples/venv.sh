#!/usr/bin/env bash
# Prints the path of a Python that has the engine and the model writer, making it if need be.
# Kept in ${XDG_CACHE_HOME:-~/.cache}/kvmem/venv. Needs python3 with venv, and a package index the
# first time. Exits 1, with a line on standard error, if it cannot be made.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvmem
venv=$cache/venv
want=$(sha256sum "$here/requirements.txt" | cut -c1-16)
log=$cache/venv.log

usable() {
  [ "$(cat "$venv/kvmem-stamp" 2>/dev/null)" = "$want" ] &&
    "$venv/bin/python" -c 'import gguf, numpy, xllamacpp' >/dev/null 2>&1
}

mkdir -p "$cache"
exec 9>"$cache/venv.lock"
flock 9
if ! usable; then
  rm -rf "$venv"
  if ! /usr/bin/env python3 -m venv "$venv" >"$log" 2>&1; then
    echo "venv.sh: python3 cannot make a virtual environment (Debian: apt install python3-venv); see $log" >&2
    exit 1
  fi
  echo "venv.sh: installing the engine into $venv" >&2
  # The newest release is the second choice: an index may have dropped the pinned one.
  if ! "$venv/bin/pip" install -q -r "$here/requirements.txt" >>"$log" 2>&1 &&
    ! "$venv/bin/pip" install -q xllamacpp gguf numpy >>"$log" 2>&1; then
    echo "venv.sh: pip could not install the engine; see $log" >&2
    exit 1
  fi
  echo "$want" >"$venv/kvmem-stamp"
  if ! usable; then
    echo "venv.sh: the engine does not load with $("$venv/bin/python" --version); see $log" >&2
    "$venv/bin/python" -c 'import gguf, numpy, xllamacpp' >>"$log" 2>&1 || true
    exit 1
  fi
fi
echo "$venv/bin/python"
