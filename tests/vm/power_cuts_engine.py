#!/usr/bin/env python3
"""In the test machine, with kvmemd's store on the NVMe disk: an engine puts blocks into the block cache and notes
which of them the daemon says are durable, while another engine's pages are demoted. Or, after a power cut, looks
for those blocks. power_cuts.py has both done, and looks for blocks by what is in here.

usage: power_cuts_engine.py BUILD_DIR device|file puts FOLDER
       power_cuts_engine.py BUILD_DIR device|file finds KNOWN PUT
    device|file   the store: the disk, or a file on it (ext4)
    FOLDER        of the host: its file `log` is the disk's log, `notes` is written, a line a note:
                  how long the log was, and how many conversations were durable by then
    KNOWN, PUT    how many conversations must be there, and how many may
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "system"))
from block_cache import BUILD, Cache, Daemon, path_of, until  # pylint: disable=wrong-import-position

BLOCKS = 3  # of a conversation
BATCH = 2  # conversations put at once
BATCHES = 10
DISK, FOLDER = "/dev/nvme0n1", Path("/mnt/store")
# Long between syncs: who says too early that a block is durable is found out.
SETTINGS = '[ebpf]\nenable = false\n[nvme]\nsync_interval = "500ms"\n'


def mount():
    """Behind a loop device, which does not know FUA, so that the kernel flushes when ext4 commits. QEMU's disk says
    that it does and takes no notice of it: what was synced would be lost."""
    FOLDER.mkdir()
    subprocess.run(["mknod", "/dev/loop0", "b", "7", "0"], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["losetup", "--direct-io=on", "/dev/loop0", DISK], check=True)
    subprocess.run(["mount", "-t", "ext4", "/dev/loop0", FOLDER], check=True)
    return FOLDER / "store"


def puts(daemon, folder):
    def demotions():
        return daemon.status()["counters"]["demotions"]

    def are_durable(count):
        state = daemon.status()
        disk = next(t for t in state["tiers"] if t["name"] == "nvme")
        cache, = state["caches"]
        assert disk["segments_failed"] == cache["write_errors"] == cache["puts_refused"] == 0, state
        return cache["blocks_written"] == count and disk["blocks_unsynced_bytes"] == 0

    cache = Cache()
    cache.contains(path_of(0, BLOCKS))  # takes its part of DRAM
    environment = os.environ | {"LD_PRELOAD": f"{BUILD}/lib/libkvmem.so", "KVMEM_TEST_MANAGED": "1"}
    # Nice: two CPUs are few for all this.
    writers = subprocess.Popen(["nice", BUILD / "programs/writers", "96", "1", "600"], env=environment)
    try:
        until("pages are demoted", lambda: demotions() > 4)
        before = demotions()
        with open(folder / "notes", "w", encoding="ascii") as notes:
            for put in range(0, BATCHES * BATCH, BATCH):
                for n in range(put, put + BATCH):
                    assert cache.serve(path_of(n, BLOCKS)) == 0
                until("blocks are durable", lambda count=(put + BATCH) * BLOCKS: are_durable(count))
                print(os.stat(folder / "log").st_size, put + BATCH, file=notes, flush=True)
        during = demotions() - before
        assert writers.poll() is None and during > BATCHES, (writers.poll(), during)
        print(f"{during} pages were demoted meanwhile")
    finally:
        writers.kill()
        writers.wait()


def finds(daemon, known, put):
    """Every block of the first `known` conversations is there; what is there of any has the right bytes; and the
    store takes and gives more. How many blocks are there of those that need not be."""
    cache = Cache()
    others = 0
    for n in range(put + BATCH):
        path = path_of(n, BLOCKS)
        while path:
            with cache.begin(path) as found:
                cache.check(path, found)
                if n < known and len(found) < BLOCKS:
                    sys.exit(f"power_cuts: block {path[len(found)]} was durable, and is not there")
                others += len(found) if n >= known else 0
                path = path[len(found) + 1:]  # what is beyond a gap
    another = path_of(1000, BLOCKS)
    assert cache.serve(another) == 0 and cache.serve(another) == BLOCKS
    state = daemon.status()
    assert state["counters"]["pages_lost"] == 0, state
    cache.close()
    return others


def main():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as work:
        daemon = Daemon(work, SETTINGS, mount() if sys.argv[2] == "file" else DISK)
        if sys.argv[3] == "puts":
            puts(daemon, Path(sys.argv[4]))
        else:
            finds(daemon, int(sys.argv[4]), int(sys.argv[5]))
            print(f"ok {os.uname().release} has the {int(sys.argv[4]) * BLOCKS} blocks that were durable")
        daemon.stop()


if __name__ == "__main__":
    main()
