#!/usr/bin/env python3
"""In the test machine, before and after its power is cut: the disk has what was synced, and not what was not.

usage: synced.py writes FOLDER | finds     FOLDER: where a file `synced` says that the power may be cut
"""

import mmap
import os
import random
import sys
import time
from pathlib import Path

STRIDE, BYTES, PLACES = 1 << 20, 1 << 16, 64


def content(place):
    return random.Random(place).randbytes(BYTES)


disk = os.open("/dev/nvme0n1", os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, BYTES)
if sys.argv[1] == "writes":
    for synced in (True, False):
        for place in range(0 if synced else 1, PLACES, 2):
            buffer[:] = content(place)
            assert os.pwritev(disk, [buffer], place * STRIDE) == BYTES
        if synced:
            os.fsync(disk)
    Path(sys.argv[2], "synced").touch()
    time.sleep(1000)
for place in range(PLACES):
    assert os.preadv(disk, [buffer], place * STRIDE) == BYTES
    if place % 2 == 0 and buffer[:] != content(place):
        sys.exit(f"synced: what was synced at {place} MiB is not there")
    if place % 2 == 1 and buffer[:] != bytes(BYTES):
        sys.exit(f"synced: what was not synced at {place} MiB is there")
print(f"ok {PLACES} places")
