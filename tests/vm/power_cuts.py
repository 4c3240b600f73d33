#!/usr/bin/env python3
"""The power is cut at any moment while kvmem demotes pages and stores blocks: every block that the daemon said
was durable is there afterwards, and no byte of any block is wrong.

The test machine works once (power_cuts_engine.py), with a log of what its disk wrote and when it flushed; the
power cuts are made of that log, between the first and the last time that blocks became durable. Each loses what
a disk with a cache may lose: of every write since the last flush all, nothing, or some sectors (disk_log.py). The
disk that is left is given to a daemon outside; the last one to the machine too, so that its kernel recovers it.
If the store is a file, its file system is checked first, which replays the journal and must find nothing else to
do.

usage: power_cuts.py BUILD_DIR KERNEL device|file [CUTS]     KVMEM_SEED: of the cuts (default: the clock)
    device|file   the store: the NVMe disk itself, or a file on it (ext4)
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from disk_log import DiskLog
from power_cuts_engine import BLOCKS, BUILD, SETTINGS, Daemon, finds

HERE = Path(__file__).resolve().parent
KERNEL, KIND, CUTS = sys.argv[2], sys.argv[3], int((sys.argv[4:] or ["10"])[0])
DISK_BYTES = 1 << 30
SEED = int(os.environ.get("KVMEM_SEED") or time.time())
SBIN = os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}


def machine(*arguments):
    code = subprocess.run([HERE / "run.sh", KERNEL, *arguments]).returncode
    if code != 0:
        sys.exit(code if code == 77 else f"power_cuts: the machine's status is {code}")


def engine(*arguments):
    return ["--timeout", "240", "--", "python3", HERE / "power_cuts_engine.py", BUILD, KIND, *map(str, arguments)]


def store_of(disk, work):
    """Where the daemon finds the store of a disk that is a file here."""
    if KIND == "device":
        return disk
    checked = subprocess.run(["e2fsck", "-fp", disk], env=SBIN, stdout=subprocess.PIPE, text=True)
    if checked.returncode not in (0, 1):
        sys.exit(f"power_cuts: the file system is damaged ({checked.returncode}): {checked.stdout}")
    store = work / "store"
    store.unlink(missing_ok=True)
    subprocess.run(["debugfs", "-R", f"dump store {store}", disk], env=SBIN, stderr=subprocess.DEVNULL, check=True)
    return store


def main():
    if os.geteuid() != 0:
        print("power_cuts: skipped, the machine's blocks are root's, and others do not find them")
        sys.exit(77)
    print(f"power_cuts: KVMEM_SEED={SEED}")
    chance = random.Random(SEED)
    root = subprocess.run([HERE / "packages.sh"], stdout=subprocess.PIPE, text=True)
    if root.returncode != 0:
        sys.exit(root.returncode)
    with tempfile.TemporaryDirectory(dir=Path(root.stdout.strip()).parent, prefix="power_cuts.") as name:
        work = Path(name)
        disk, left, log = work / "disk", work / "left", work / "log"
        with open(disk, "wb") as file:
            file.truncate(DISK_BYTES)
        if KIND == "file":
            subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", disk], env=SBIN, check=True)
        subprocess.run(["cp", disk, work / "stable"], check=True)
        machine("--disk", disk, "--disk-log", log, "--bind", work, *engine("puts", work))
        disk.unlink()
        log = DiskLog(log)
        notes = [tuple(map(int, line.split())) for line in (work / "notes").read_text().splitlines()]
        put = notes[-1][1]

        # How many of the log's entries had been done: anywhere, and as soon as blocks were durable.
        moments = [i + 1 for i, e in enumerate(log.entries) if e.size > 0 and notes[0][0] <= e.end <= notes[-1][0]]
        strict = [next(i + 1 for i, e in enumerate(log.entries) if e.end >= size) for size, _ in notes]
        strict = chance.sample(strict, min(CUTS // 2, len(strict)))
        stable = os.open(work / "stable", os.O_WRONLY)
        first = must = others = lost = 0
        counts = sorted(strict + chance.sample(moments, CUTS - len(strict)))
        for count in counts:
            first = log.apply_stable(stable, first, count)
            subprocess.run(["cp", work / "stable", left], check=True)
            left_file = os.open(left, os.O_WRONLY)
            lost += log.apply_some(left_file, first, count, chance)
            os.close(left_file)
            known = max(n for size, n in notes if size <= log.entries[count - 1].end)
            must += known * BLOCKS
            (work / "run").mkdir(exist_ok=True)
            if count == counts[-1]:
                subprocess.run(["cp", left, disk], check=True)
            daemon = Daemon(work / "run", SETTINGS, store_of(left, work))
            try:
                others += finds(daemon, known, put)
            finally:
                daemon.stop()
        assert lost >= CUTS, f"the cuts took nothing: {lost} writes"
        machine("--disk", disk, *engine("finds", known, put))
        print(f"ok {CUTS} cuts in {len(moments)} writes took {lost}; all of {must} durable blocks are there, and "
              f"{others} others")


main()
