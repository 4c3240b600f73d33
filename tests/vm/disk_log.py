"""What tests/vm/run.sh --disk-log has written: a disk's writes and flushes, in the order in which it has done
them; and what a power cut at any moment may leave of them.

The disk has a cache that it loses. What was written before the last flush is there. Of each write since, all
is there, nothing, or any of its sectors. Writes to the same place keep their order.
"""

import mmap
import os
import struct

SECTOR = 512  # of the log and of the disk
MAGIC, VERSION = 0x6A736677736872, 1  # Documentation/admin-guide/device-mapper/log-writes.rst
FLUSH, FUA, DISCARD = 1, 2, 4


class Entry:
    def __init__(self, at, sector, sectors, flags):
        self.flags, self.offset = flags, sector * SECTOR
        self.data = at + SECTOR  # where in the log
        self.size = 0 if flags & DISCARD else sectors * SECTOR
        self.end = self.data + self.size  # of the log, when it was done


class DiskLog:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.log = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        magic, version, count, sector = struct.unpack_from("<QQQI", self.log)
        assert (magic, version, sector) == (MAGIC, VERSION, SECTOR), (magic, version, sector)
        self.entries = []
        at = SECTOR
        while at < len(self.log):
            self.entries.append(Entry(at, *struct.unpack_from("<QQQ", self.log, at)))
            at = self.entries[-1].end
        # The count is brought up to date now and then.
        assert at == len(self.log) and len(self.entries) >= count, (at, len(self.log), count)

    def apply(self, disk, entry, sectors=None):
        """`sectors`: of the entry; else all."""
        whole = memoryview(self.log)[entry.data:entry.end]
        if sectors is None:
            assert os.pwrite(disk, whole, entry.offset) == entry.size
            return
        for i in sectors:
            os.pwrite(disk, whole[i * SECTOR:(i + 1) * SECTOR], entry.offset + i * SECTOR)

    def apply_stable(self, disk, first, count):
        """Of the first `count` entries what no cut takes, from entry `first` on; the first entry that one may."""
        stable = max((i + 1 for i in range(first, count) if self.entries[i].flags & (FLUSH | FUA)), default=first)
        for entry in self.entries[first:stable]:
            self.apply(disk, entry)
        return stable

    def apply_some(self, disk, first, count, chance):
        """What is left of entries from `first` up to `count`, which no flush covers. How many writes are not whole."""
        lost = 0
        for entry in self.entries[first:count]:
            sectors = entry.size // SECTOR
            left = chance.randrange(4)
            if left == 0 or sectors < 2 and left < 3:  # all
                self.apply(disk, entry)
                continue
            lost += entry.size > 0
            middle = chance.randrange(sectors + 1)
            if left == 1:
                self.apply(disk, entry, range(middle))
            elif left == 2:
                self.apply(disk, entry, [i for i in range(sectors) if chance.random() < 0.5])
        return lost
