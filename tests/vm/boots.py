#!/usr/bin/env python3
"""In the test machine: it has the memory, the disk and the mounts that tests/vm/run.sh tells of.

usage: boots.py KERNEL [cxl]
"""

import ctypes
import errno
import mmap
import os
import random
import sys
from pathlib import Path

KERNEL, CXL = sys.argv[1], sys.argv[2:] == ["cxl"]
NODES = Path("/sys/devices/system/node")
MIB = 1 << 20
PAGE = 4096
MBIND, MOVE_PAGES = 237, 279  # x86-64
MPOL_BIND = 2


def claim(what, found, wanted):
    if found != wanted:
        sys.exit(f"boots: {what}: {found!r}, not {wanted!r}")


def text(*path):
    return NODES.joinpath(*path).read_text().strip()


def memory_is_of(node, pages):
    """Pages bound to a node and written are the node's, and keep what was written."""
    libc = ctypes.CDLL(None, use_errno=True)
    memory = mmap.mmap(-1, pages * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    mask = ctypes.c_ulong(1 << node)
    if libc.syscall(MBIND, ctypes.c_void_p(address), ctypes.c_ulong(pages * PAGE), MPOL_BIND, ctypes.byref(mask),
                    ctypes.c_ulong(64), 0):
        sys.exit(f"boots: mbind to node {node}: {os.strerror(ctypes.get_errno())}")
    written = random.Random(node).randbytes(pages * PAGE)
    memory[:] = written
    addresses = (ctypes.c_void_p * pages)(*(address + i * PAGE for i in range(pages)))
    where = (ctypes.c_int * pages)()
    claim("move_pages", libc.syscall(MOVE_PAGES, 0, ctypes.c_ulong(pages), addresses, None, where, 0), 0)
    claim(f"nodes of pages of node {node}", set(where), {node})
    claim(f"bytes of node {node}", memory[:] == written, True)


def disk_keeps_bytes():
    disk = os.open("/dev/nvme0n1", os.O_RDWR | os.O_DIRECT)
    claim("bytes of the disk", os.lseek(disk, 0, os.SEEK_END), 4 << 30)
    written, read = mmap.mmap(-1, 4 * MIB), mmap.mmap(-1, 4 * MIB)
    for place in (0, (4 << 30) - 4 * MIB):
        written[:] = random.Random(place).randbytes(4 * MIB)
        claim("written", os.pwritev(disk, [written], place), 4 * MIB)
        os.fsync(disk)
        claim("read", os.preadv(disk, [read], place), 4 * MIB)
        claim(f"what was written at {place} is read", read[:] == written[:], True)
    try:
        os.preadv(disk, [memoryview(read)[:100]], 0)
        sys.exit("boots: O_DIRECT reads 100 bytes")
    except OSError as error:
        claim("O_DIRECT of 100 bytes", error.errno, errno.EINVAL)


nodes = 3 if CXL else 2
claim("kernel", os.uname().release.split(".")[:2], KERNEL.split("."))
claim("user", os.geteuid(), 0)
claim("nodes", text("has_memory"), f"0-{nodes - 1}")
claim("CPUs' nodes", text("has_cpu"), "0")
claim("distances", [text(f"node{n}", "distance").split()[:2] for n in (0, 1)], [["10", "20"], ["20", "10"]])
claim("latencies, ns", [text(f"node{n}", "access0/initiators/read_latency") for n in (0, 1)], ["100", "250"])
memory_is_of(0, 256)
memory_is_of(1, 256)
if CXL:
    memory_is_of(2, 64)  # the emulated device takes seconds for a few MiB
disk_keeps_bytes()
claim("poll queues", Path("/sys/module/nvme/parameters/poll_queues").read_text(), "1\n")
claim("NUMA balancing", Path("/proc/sys/kernel/numa_balancing").read_text(), "0\n")
mounted = {tuple(line.split()[1:3]) for line in Path("/proc/mounts").read_text().splitlines()}
for mount in (("/sys/kernel/tracing", "tracefs"), ("/sys/kernel/debug", "debugfs"), ("/sys/fs/bpf", "bpf"),
              ("/sys/fs/cgroup", "cgroup2"), ("/", "overlay")):
    claim(f"{mount} is mounted", mount in mounted, True)
print(f"ok {os.uname().release} with {nodes} nodes")
