#!/usr/bin/env python3
"""Park and wake: an engine's GPU memory into host regions and back, on the software driver, beside
what a copy of as many bytes takes on this machine (one thread, memory that is there already).

A page that is parked is copied twice (into page-locked memory by the device, out of it by the
processor, which hashes it) and its frame is made; on the software device the processor does the
device's share too, hashes included. So this is what kvmem's own part costs; on a GPU the link has
the last word.
"""

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from measure import huge_pages  # noqa: E402

BUILD = Path(__file__).resolve().parents[2] / "build" / "release"
MIB = 1 << 20


def copy_bytes_per_s(size: int) -> float:
    source, target = mmap.mmap(-1, size), mmap.mmap(-1, size)
    for area in (source, target):
        area.madvise(mmap.MADV_HUGEPAGE)
        area[::4096] = bytes(size // 4096)
    view = memoryview(target)
    start = time.perf_counter()
    view[:] = source
    seconds = time.perf_counter() - start
    view.release()
    return size / seconds


def until(what: str, condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"park: gave up waiting until {what}")
        time.sleep(0.01)


def one_round(work: str, mib: int) -> tuple[float, float]:
    socket = f"{work}/sock"
    daemon = subprocess.Popen([BUILD / "bin/kvmemd", "--socket", socket, "--runtime-dir", work,
                               "--dram", f"{mib + 64}MiB"], stderr=subprocess.DEVNULL)
    env = {**os.environ, "LD_PRELOAD": str(BUILD / "lib/libkvmem.so"), "KVMEM_SOCKET": socket,
           "LD_LIBRARY_PATH": str(BUILD / "lib/softgpu"), "KVMEM_DEVICE": "1", "SOFTGPU": "late_us=0"}
    try:
        until("the daemon listens", lambda: os.path.exists(socket))
        engine = subprocess.Popen([BUILD / "programs/device_tenant"], env=env, text=True, bufsize=1,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        def do(line: str) -> str:
            engine.stdin.write(line + "\n")
            return engine.stdout.readline()

        def ctl(command: str) -> float:
            start = time.perf_counter()
            out = subprocess.run([BUILD / "bin/kvmemctl", "--socket", socket, "--json", command,
                                  str(engine.pid)], stdout=subprocess.PIPE, text=True, check=True)
            seconds = time.perf_counter() - start
            if not json.loads(out.stdout)["done"]:
                sys.exit(f"park: {command}: {out.stdout}")
            return mib * MIB / seconds

        assert do(f"hold {mib} all").startswith("held")
        until("the daemon has been told", lambda: str(engine.pid) in subprocess.run(
            [BUILD / "bin/kvmemctl", "--socket", socket, "regions"], stdout=subprocess.PIPE, text=True).stdout)
        speeds = ctl("park"), ctl("wake")
        if not do("check").startswith("right"):
            sys.exit("park: what came back is not what left")
        engine.stdin.close()
        engine.wait(60)
        return speeds
    finally:
        daemon.terminate()
        daemon.wait(60)


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--mib", type=int, default=1024)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--json", action="store_true", help="always on: one object per result")
    args = ap.parse_args()
    if not (BUILD / "programs/device_tenant").exists():
        print("park: built without the device path", file=sys.stderr)
        return 77
    parks, wakes, copies = [], [], []
    for n in range(args.rounds):
        print(f"round {n + 1} of {args.rounds}", file=sys.stderr)
        copies.append(copy_bytes_per_s(args.mib * MIB))
        with tempfile.TemporaryDirectory(dir=BUILD) as work, huge_pages((args.mib + 64) * MIB):
            park, wake = one_round(work, args.mib)
        parks.append(park)
        wakes.append(wake)
    for metric, speeds in (("park", parks), ("wake", wakes)):
        print(json.dumps({
            "bench": "park", "case": f"{args.mib} MiB", "metric": metric,
            "value": statistics.median(speeds), "unit": "B/s",
            "reference": statistics.median(copies),
            "ratio": statistics.median(s / c for s, c in zip(speeds, copies)),
        }), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
