#!/usr/bin/env python3
"""The block cache, as an engine sees it: blocks of 2 MiB put, attached in DRAM, restored from the store.

Beside restoring stands what the page store itself reads at queue depth 32 (bench store), a moment later
and on the same disk; beside attaching and `contains`, the time of a request that does nothing else.
Medians of --pairs runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "examples"))
from huge_pages import huge_pages  # pylint: disable=wrong-import-position
BLOCK = 2 << 20


def say(text):
    print(text, file=sys.stderr, flush=True)


def engine(binaries, folder, blocks):
    """One life of a daemon, and what bench_cache says of it."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench_cache.") as work:
        config = f"{work}/kvmemd.toml"
        dram = blocks // 8 * BLOCK
        with open(config, "w", encoding="utf-8") as out:
            out.write(f'[dram]\nbudget = {dram * 2}\n[nvme]\npath = "{work}/store"\nsize = {blocks * BLOCK * 5 // 4}\n'
                      f'[cache]\ndram = {dram}\nstore = {blocks * BLOCK}\npolicy = "lru"\n')
        socket = f"{work}/sock"
        daemon = subprocess.Popen([f"{binaries}/kvmemd", "--config", config, "--socket", socket, "--runtime-dir", work],
                                  stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 30
            while not os.path.exists(socket):
                if time.monotonic() > end or daemon.poll() is not None:
                    sys.exit("bench cache: kvmemd did not start")
                time.sleep(0.01)
            got = subprocess.run([f"{binaries}/bench_cache", str(blocks), str(BLOCK)], check=True,
                                 stdout=subprocess.PIPE, text=True, env={**os.environ, "KVMEM_SOCKET": socket})
            return json.loads(got.stdout)
        finally:
            daemon.terminate()
            daemon.wait()


def store(binaries, folder, gib, seconds):
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench_cache.") as work:
        for what in ("fill", "read"):
            command = [f"{binaries}/bench_store", f"{work}/store", what, str(gib), "32", str(seconds), "0"]
            got = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(got.stdout)["gb_per_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--gib", type=int, default=8, help="of blocks")
    parser.add_argument("--on", default=os.path.join(ROOT, "build"), help="folder on the disk to measure")
    parser.add_argument("--json", action="store_true", help="(always)")
    o = parser.parse_args()
    binaries = os.path.join(ROOT, "build/release/bin")
    runs, disk = [], []
    for n in range(o.pairs):
        say(f"pair {n + 1} of {o.pairs}")
        with huge_pages(o.gib << 28):  # the daemon's budget, as it should be set up
            runs.append(engine(binaries, o.on, o.gib * (1 << 30) // BLOCK))
        disk.append(store(binaries, o.on, o.gib, 5))

    def median(key):
        return statistics.median(r[key] for r in runs)

    def row(case, metric, value, unit, reference=None, ratio=None):
        print(json.dumps({"bench": "cache", "case": case, "metric": metric, "value": value, "unit": unit,
                          "reference": reference, "ratio": ratio}))

    limit = statistics.median(disk)
    for threads in (1, 4):
        key = f"restore_{threads}_gb_per_s"
        ratio = statistics.median(r[key] / d for r, d in zip(runs, disk))
        row(f"restore, {threads} at once", "32 blocks each", median(key), "GB/s", limit, ratio)
    row("put", "copied, and written through", median("put_gb_per_s"), "GB/s")
    for case, key in (("restore one block", "restore_one"), ("attach a block in DRAM, and end", "attach"),
                      ("contains, 1,000 blocks", "contains_1000")):
        for metric in ("p50", "p99"):
            row(case, metric, median(f"{key}_{metric}_us"), "us")


if __name__ == "__main__":
    main()
