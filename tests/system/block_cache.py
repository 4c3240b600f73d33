#!/usr/bin/env python3
"""Engines that use the block cache by the C API, each a process of its own: blocks are shared and in
memory once, another user gets nothing, they outlive engines, the daemon and its kill -9, and every byte
that is read is checked.

usage: block_cache.py BUILD_DIR SCENARIO [ROUNDS]   shares | outlives | refuses | chooses | budget | dies

`chooses` slows the daemon's disk by a cgroup of its own, and exits 77 where it may make none.
"""

import ctypes
import errno
import functools
import hashlib
import itertools
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import waiting

BUILD = Path(sys.argv[1]).resolve()
os.environ["KVMEM_LIBRARY"] = str(BUILD / "lib/libkvmem.so")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "libkvmem/python"))
import kvmem  # pylint: disable=wrong-import-position

WAIT_S = 60.0  # for anything at all
until = functools.partial(waiting.until, seconds=WAIT_S, every_s=0.005)
MIB = 1 << 20
BLOCK = 2 * MIB
REQUEST_BYTES, REPLY_BYTES = 256, 224  # wire::Request, wire::Reply
VERSION = 1
CACHE_OPEN, CACHE_CONTAINS, CACHE_BEGIN, CACHE_END, CACHE_PUT, CACHE_WAIT, CACHE_COMPUTED = range(15, 22)
MAY_COMPUTE = 16  # wire::Request's flag


def bytes_of(model, name):
    """No 4 KiB of which are like any others, of this block or another; most of it is copied, which is quick."""
    part, step = 1 << 16, 1000
    parts = range(BLOCK // part)
    stream = hashlib.shake_128(struct.pack("=4Q", *model, *name)).digest(part + step * len(parts))
    return b"".join(stream[i * step:i * step + part] for i in parts)


def path_of(conversation, length):
    return [(conversation, i) for i in range(length)]


class Cache(kvmem.BlockCache):
    """One engine's, in this process."""

    def __init__(self, model=(1, 2)):
        super().__init__(model, BLOCK)
        self.model = model

    def check(self, path, blocks):
        for name, block in zip(path, blocks):
            # As bytes: views are compared one element after another.
            assert block is None or bytes(block) == bytes_of(self.model, name), f"{name} has wrong bytes"

    def serve(self, path):
        """As an engine: how many blocks were there."""
        with self.begin(path, 512 * len(path)) as blocks:
            self.check(path, blocks)
            for name in path[len(blocks):]:
                try:
                    self.put(name, bytes_of(self.model, name))
                except OSError as error:
                    assert error.errno == errno.ENOTCONN, error
            self.check(path, blocks)
            return len(blocks)

    def serve_planned(self, path, block_us):
        """Likewise, by an engine that computes a block in `block_us` if the cache thinks that is sooner."""
        with self.plan(path, 512 * len(path)) as blocks:
            self.check(path, blocks)
            self.computed(0, len(path), block_us * len(path))
            blocks.wait()
            self.check(path, blocks)
            return sum(block is not None for block in blocks)


# ------------------------------------------------------------------------- the daemon and engines


class Daemon:
    def __init__(self, work, extra="", store=None):
        self.work, self.socket = work, f"{work}/sock"
        os.chmod(work, 0o755)
        self.configure(extra)
        self.command = [BUILD / "bin/kvmemd", "--config", Path(work, "kvmemd.toml"), "--socket", self.socket,
                        "--runtime-dir", work, "--store", store or f"{work}/store", "--store-size", "1GiB"]
        os.environ["KVMEM_SOCKET"] = self.socket
        self.start()

    def configure(self, extra):
        text = '[daemon]\nmode = "0666"\n[dram]\nbudget = "128MiB"\n[cache]\ndram = "64MiB"\n'
        Path(self.work, "kvmemd.toml").write_text(text + extra)

    def start(self):
        self.process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)
        until("the daemon answers", self.status)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        assert self.process.wait(WAIT_S) == 0, self.process.returncode

    def status(self):
        got = subprocess.run([BUILD / "bin/kvmemctl", "--socket", self.socket, "--json", "status"],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return json.loads(got.stdout) if got.returncode == 0 else None

    def is_stored(self):
        """What was written is in the store, or was there."""
        state = self.cache()
        return state["blocks_stored"] + state["dropped_stored"] == state["blocks_written"]

    def write_budget(self):
        return [t for t in self.status()["tiers"] if t["name"] == "nvme"][0]["write_budget"]

    def bytes_written(self):
        """To any disk, by the kernel's count."""
        fields = Path(f"/proc/{self.process.pid}/io").read_text().split()
        return int(fields[fields.index("write_bytes:") + 1])

    def cache(self):
        caches = self.status()["caches"]
        assert len(caches) <= 1, caches
        return caches[0] if caches else {}


def in_child(work, uid=None):
    """Runs `work` in a child process; what it returns."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            if uid is not None:
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            os.write(writer, json.dumps(work()).encode())
            code = 0
        except BaseException as error:  # pylint: disable=broad-except
            print(f"block_cache: child: {error!r}", file=sys.stderr)
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as answer:
        got = answer.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return json.loads(got)


def frame_of(address):
    """Of the page that holds it, as the kernel counts frames."""
    with open("/proc/self/pagemap", "rb") as map_:
        map_.seek(address // 4096 * 8)
        entry, = struct.unpack("=Q", map_.read(8))
    assert entry >> 63 == 1, "not there"
    return entry & ((1 << 55) - 1)


# -------------------------------------------------------------------------------------- scenarios


def shares(daemon):
    path = path_of(7, 8)
    cache = Cache()
    assert cache.serve(path) == 0
    blocks = cache.begin(path)
    assert len(blocks) == 8
    cache.check(path, blocks)
    mine = [frame_of(at) for at in blocks.addresses]

    def other():
        theirs = Cache()
        assert theirs.contains(path + [(8, 8)]) == 8
        assert theirs.contains([(8, 8)] + path) == 0
        got = theirs.begin(path)
        theirs.check(path, got)
        frames = [frame_of(at) for at in got.addresses]
        # Nobody writes what others read.
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(got.addresses[0]), 4096, 3) == -1 and ctypes.get_errno() == errno.EACCES
        got.end()
        theirs.close()
        stranger = Cache(model=(1, 3))
        assert stranger.contains(path) == 0
        try:
            cache.contains(path)  # of the parent
        except OSError as error:
            assert error.errno == errno.EINVAL
        else:
            raise AssertionError("a child used its parent's cache")
        return frames

    frames = in_child(other)
    if os.geteuid() == 0:
        assert frames == mine, "not the same memory"
    state = daemon.cache()
    assert state["blocks_ready"] == 8 and state["dram_used_bytes"] == 8 * BLOCK, state
    assert state["puts"] == 8 and state["blocks_leased"] == 8, state

    if os.geteuid() == 0:
        def another_user():
            theirs = Cache()
            none = theirs.contains(path)
            kept = theirs.serve(path)
            return [none, kept, theirs.serve(path)]

        assert in_child(another_user, uid=65534) == [0, 0, 8]
        assert sorted(c["uid"] for c in daemon.status()["caches"]) == [0, 65534]
        assert {c["dram_share_bytes"] for c in daemon.status()["caches"]} == {32 * MIB}
        assert sum(c["dram_capacity_bytes"] for c in daemon.status()["caches"]) == 64 * MIB
    cache.check(path, blocks)
    lease = blocks._number  # pylint: disable=protected-access
    blocks.end()
    for wrong in (lease, 1 << 32, 99):
        assert kvmem._library().kvmem_cache_end(cache.handle, ctypes.c_uint64(wrong)) == -errno.EINVAL, "ended twice"

    # More than DRAM holds: the rest is stored, and comes back.
    for conversation in range(100, 112):
        cache.serve(path_of(conversation, 4))
    assert all(cache.serve(path_of(c, 4)) == 4 for c in range(100, 112))
    mine = [c for c in daemon.status()["caches"] if c["uid"] == os.geteuid()][0]
    assert mine["dram_used_bytes"] <= mine["dram_capacity_bytes"] and mine["hits_stored"] > 0, mine
    assert mine["puts_refused"] == 0 and mine["read_errors"] == 0, mine
    if os.geteuid() == 0:
        def flood():
            theirs = Cache()
            return sum(theirs.serve(path_of(5000 + n, 4)) for n in range(80))

        in_child(flood, uid=65534)
        theirs, = [c for c in daemon.status()["caches"] if c["uid"] == 65534]
        assert theirs["store_used_bytes"] > theirs["store_share_bytes"] == 256 * MIB, "what is not used is theirs"
        assert all(cache.serve(path_of(c, 4)) == 4 for c in range(100, 112)), "and nothing of my share"
        assert sum(c["dram_used_bytes"] for c in daemon.status()["caches"]) <= 64 * MIB
    tiers = {t["name"]: t for t in daemon.status()["tiers"]}
    assert tiers["dram"]["block_cache_bytes"] == 64 * MIB and tiers["dram"]["capacity_bytes"] == 64 * MIB, tiers
    cache.close()
    # An engine that dies gives back what it had leased.
    child = os.fork()
    if child == 0:
        Cache().begin(path_of(100, 4))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    until("nothing is leased", lambda: all(c["blocks_leased"] + c["connections"] == 0
                                           for c in daemon.status()["caches"]))


def outlives(daemon):
    path = path_of(3, 6)
    cache = Cache()
    cache.serve(path)
    until("all is stored", lambda: daemon.cache()["blocks_stored"] == 6)
    blocks = cache.begin(path)
    daemon.kill()
    cache.check(path, blocks)
    try:
        cache.contains(path)
    except OSError as error:
        assert error.errno == errno.ENOTCONN
    else:
        raise AssertionError("no daemon, and no error")
    daemon.start()
    cache.check(path, blocks)
    assert cache.contains(path) == 6
    again = cache.begin(path)
    cache.check(path, again)
    assert not set(again.addresses) & set(blocks.addresses)
    blocks.end()
    again.end()
    assert Cache(model=(9, 9)).contains(path) == 0, "another model's"
    # What the policy holds dear is older than much that was put and dropped since; it is there again.
    hot = path_of(50, 2)
    for n in range(150):
        cache.serve(hot)
        cache.serve(path_of(1000 + n, 4))
    here = [c for c in range(1000, 1150) if cache.contains(path_of(c, 4)) == 4]
    assert cache.contains(hot) == 2 and len(here) < 150
    daemon.stop()
    daemon.start()
    state = daemon.cache()
    assert state["blocks_stored"] > 100 and state["connections"] == 0, state
    assert cache.contains(hot) == 2
    kept = [c for c in here if cache.contains(path_of(c, 4)) == 4]
    assert len(kept) >= len(here) - 8, (len(kept), len(here))
    until("all is stored", lambda: daemon.cache()["blocks_stored"] > 100)
    path = hot
    # Stopped in order, with a request under way.
    blocks = cache.begin(path)
    daemon.stop()
    cache.check(path, blocks)
    daemon.start()
    blocks.end()
    assert cache.serve(path) == 2
    state = daemon.status()
    assert state["counters"]["store_corrupt"] == 0 and daemon.cache()["read_errors"] == 0, state
    cache.close()


def refuses(daemon):
    """What no library of ours sends."""

    def connect():
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        s.settimeout(WAIT_S)
        s.connect(daemon.socket)
        return s

    def request(op, page_count=0, size_bytes=0, region_id=0, version=VERSION, flags=0):
        # version, op, flags, session_id, region_id, address, first_page, page_count, size_bytes, ...
        head = struct.pack("=IHH6Q", version, op, flags, 0, region_id, 0, 0, page_count, size_bytes)
        return head.ljust(REQUEST_BYTES, b"\0")

    def answer(s):
        reply, fds, _, _ = socket.recv_fds(s, REPLY_BYTES, 4)
        assert len(reply) == REPLY_BYTES, len(reply)
        for fd in fds:
            os.close(fd)
        error = struct.unpack_from("=i", reply, 4)[0]
        return -error, reply

    good = Cache()
    path = path_of(1, 4)
    good.serve(path)
    s = connect()
    for op in (CACHE_CONTAINS, CACHE_BEGIN, CACHE_END, CACHE_PUT, CACHE_WAIT, CACHE_COMPUTED):
        s.send(request(op))
        assert answer(s)[0] == 71, "EPROTO before CacheOpen"
    for size in (0, 65 * MIB, 1 << 63):
        s.send(request(CACHE_OPEN, size_bytes=size))
        assert answer(s)[0] == 22
    s.send(request(CACHE_OPEN, size_bytes=60 * MIB))  # one block and none to spare
    assert answer(s)[0] == 0
    s.send(request(CACHE_OPEN, size_bytes=BLOCK))
    assert answer(s)[0] == 114  # EALREADY
    s.send(request(CACHE_CONTAINS, page_count=16385))
    assert answer(s)[0] == 7  # E2BIG
    s.send(request(CACHE_BEGIN, page_count=1 << 62))
    assert answer(s)[0] == 7
    s.send(request(CACHE_END, region_id=77))  # no answer, and no harm
    s.send(request(CACHE_COMPUTED, page_count=1 << 62))  # likewise
    s.send(request(CACHE_WAIT, region_id=77))
    assert answer(s)[0] == 22, "a request that has not begun"
    s.send(request(CACHE_PUT))
    assert answer(s)[0] == 28, "a block nobody announced"
    # All names zero, and the path its own repetition.
    s.send(request(CACHE_BEGIN, page_count=16384))
    assert answer(s)[0] == 0
    s.close()
    # Plans that are not waited for, waited for twice and ended meanwhile.
    for n in range(20):
        s = connect()
        s.send(request(CACHE_OPEN, size_bytes=BLOCK))
        answer(s)
        for lease in range(1, 4):
            s.send(request(CACHE_BEGIN, page_count=4, flags=MAY_COMPUTE))
            s.send(request(CACHE_WAIT, region_id=lease))
            s.send(request(CACHE_WAIT, region_id=lease))
            s.send(request(CACHE_END, region_id=lease - n % 2))
        s.close()
    # Requests that nobody waits for, hang-ups in the middle, and more connections than a user may have.
    for n in range(30):
        s = connect()
        s.send(request(CACHE_OPEN, size_bytes=BLOCK))
        answer(s)
        for _ in range(n % 7):
            s.send(request(CACHE_BEGIN, page_count=n))
            s.send(request(CACHE_PUT))
        s.close()
    many = []
    refused = 0
    for _ in range(300):
        many.append(connect())
        try:
            many[-1].send(request(CACHE_OPEN, size_bytes=BLOCK))
            refused += answer(many[-1])[0] == 16  # EBUSY
        except ConnectionError:
            refused += 1
    assert refused > 0
    for s in many:
        s.close()
    until("they are gone", lambda: sum(c["connections"] for c in daemon.status()["caches"]) == 1)
    # Sizes beyond counting: caches nobody uses make room.
    for size in range(1, 20):
        s = connect()
        s.send(request(CACHE_OPEN, size_bytes=size * 4096))
        assert answer(s)[0] == 0, size
        s.close()
        until("it is gone", lambda: sum(c["connections"] for c in daemon.status()["caches"]) == 1)
    assert len(daemon.status()["caches"]) <= 8
    assert len(list(Path(daemon.work).glob("store.blocks-*"))) <= 8, "what nobody stored leaves no file"
    assert good.serve(path) == 4
    good.close()


class SlowDisk:
    """While it is open, what the process reads from the folder's disk comes at `bytes_per_s`."""

    def __init__(self, pid, folder, bytes_per_s):
        device = os.stat(folder).st_dev
        disk = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
        if (disk / "partition").exists():
            disk = disk.parent
        number = (disk / "dev").read_text().strip() if (disk / "dev").exists() else None
        self.group = None
        for root, key, value, off in ((Path("/sys/fs/cgroup/blkio"), "blkio.throttle.read_bps_device", "{}", "0"),
                                      (Path("/sys/fs/cgroup"), "io.max", "rbps={}", "rbps=max")):
            with suppress(OSError):
                group = root / f"kvmem-slow-disk-{pid}"
                group.mkdir()
                self.group, self.home = group, root
                if number and (group / key).exists():
                    self.limit = lambda text, file=group / key: file.write_text(f"{number} {text}")
                    self.slow, self.fast = value.format(bytes_per_s), off
                    self.limit(self.fast)
                    (group / "cgroup.procs").write_text(str(pid))
                    return
            self.close()
        print("block_cache: skipped, there is no cgroup that slows a disk")
        sys.exit(77)

    def close(self):
        if self.group is not None:
            with suppress(OSError):
                for pid in (self.group / "cgroup.procs").read_text().split():
                    (self.home / "cgroup.procs").write_text(pid)
            self.group.rmdir()
            self.group = None


def chooses(daemon):
    """Reads what is stored while the disk is fast, computes it while the disk is slow."""
    blocks, compute_us = 10, 60_000  # a block: 35 MB/s
    paths = [path_of(c, blocks) for c in range(12)]
    cache = Cache()
    for path in paths:
        cache.serve(path)
    until("all is stored", lambda: daemon.cache()["blocks_stored"] == blocks * len(paths))
    turns = itertools.count()

    def ask(waits):
        """The next conversation's plan, and how it was meant."""
        path = paths[next(turns) % len(paths)]
        with cache.plan(path) as plan:
            cache.check(path, plan)
            cache.computed(0, blocks, blocks * compute_us)
            if waits:
                end = plan.compute_end
                plan.wait()
                cache.check(path, plan)
                assert len(plan) == blocks and None not in list(plan)[end:], "all else was to be read"
        return daemon.cache()["last_choice"]["kind"]

    for _ in range(len(paths)):
        assert ask(waits=True) == "read"
    disk = SlowDisk(daemon.process.pid, daemon.work, 2 * MIB)
    try:
        assert ask(waits=True) == "read"
        disk.limit(disk.slow)
        begin = time.monotonic()
        until("it computes", lambda: ask(waits=False) == "compute")
        print(f"that the disk is slow was noticed after {time.monotonic() - begin:.2f} s")
        before = daemon.cache()["left_to_compute"]
        assert [ask(waits=False) for _ in range(5)] == ["compute"] * 5
        assert daemon.cache()["left_to_compute"] > before
        text = subprocess.run([BUILD / "bin/kvmemctl", "--socket", daemon.socket, "explain", "cache"],
                              stdout=subprocess.PIPE, text=True, check=True).stdout
        assert "compute all that is stored" in text and "reading all:" in text, text
        disk.limit(disk.fast)
        begin = time.monotonic()
        until("it reads", lambda: ask(waits=False) != "compute")
        print(f"that it is fast again was noticed after {time.monotonic() - begin:.2f} s")
        until("it reads all", lambda: ask(waits=True) == "read")
        assert daemon.cache()["read_errors"] == 0
    finally:
        disk.close()
    cache.close()


def budget(daemon):
    """No more is written than may be, by the daemon's count and the kernel's, restarts or not; and not
    what came first but what comes back."""
    per_day = 1536 * MIB  # a burst of 64 MiB, 32 blocks
    text = '''policy = "lru"\nwrite_budget = "1536MiB/day"\n'''
    daemon.stop()
    daemon.configure(text)
    daemon.start()
    begin = time.monotonic()

    def may_be_written():
        return per_day // 24 + per_day * (time.monotonic() - begin) / 86400

    cache = Cache()
    before = daemon.bytes_written()
    for c in range(60):
        assert cache.serve(path_of(c, 4)) == 0
    until("all is written that may be", lambda: daemon.write_budget()["saved_bytes"] < BLOCK)
    until("it is stored", daemon.is_stored)
    state = daemon.cache()
    assert 32 <= state["blocks_written"] and state["blocks_written"] * BLOCK <= may_be_written(), state
    assert daemon.write_budget()["spent_bytes"] == state["blocks_written"] * BLOCK
    # The store's own records and what the policy remembers, 1/16, and no more.
    assert daemon.bytes_written() - before <= (may_be_written() + 4 * MIB) * 17 / 16
    assert state["write_budget_refused"] >= 240 - state["blocks_written"] and state["puts_refused"] == 0, state
    assert cache.serve(path_of(59, 4)) == 4, "it is in DRAM"
    assert cache.contains(path_of(20, 4)) == 0, "it is nowhere"
    out = subprocess.run([BUILD / "bin/kvmemctl", "--socket", daemon.socket, "explain", "cache"],
                         stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "1.50 GiB a day" in out and "not written for the budget:" in out, out
    # A restart is no present, nor is a crash: of what was written more than a second before.
    time.sleep(2)
    written = state["blocks_written"]
    for way in (daemon.stop, daemon.kill):
        way()
        daemon.start()
        assert daemon.write_budget()["saved_bytes"] < 2 * BLOCK, daemon.write_budget()
        for c in range(100, 120):
            cache.serve(path_of(c, 4))
        written += daemon.cache()["blocks_written"]
        assert written * BLOCK <= may_be_written(), (way, written)
        assert daemon.cache()["write_budget_refused"] > 0
    # None: all is written. A word that cannot be taken over changes nothing.
    for budget_text, is_limited in (("none", False), ("1GiB/day", False), ("1TiB/day", True)):
        daemon.configure(f'policy = "lru"\nwrite_budget = "{budget_text}"\n')
        daemon.process.send_signal(signal.SIGHUP)
        if budget_text == "1GiB/day":
            time.sleep(0.5)
        until("it is taken over", lambda: (daemon.write_budget() is not None) == is_limited)
    assert daemon.write_budget()["bytes_per_day"] == 1 << 40
    written = daemon.cache()["blocks_written"]
    for c in range(200, 210):
        cache.serve(path_of(c, 4))
    until("all of it is written", lambda: daemon.cache()["blocks_written"] == written + 40)
    cache.close()
    # Prompts that come back, among those that do not, of which there are far too many.
    daemon.stop()
    for left in Path(daemon.work).glob("store*"):
        left.unlink()
    daemon.configure('write_budget = "125GiB/day"\n')
    daemon.start()
    cache = Cache()
    for n in range(120):
        cache.serve(path_of(1000 + n, 4))
        if n >= 40:
            cache.serve(path_of(n % 4, 2))
    until("nothing is being written", daemon.is_stored)
    state = daemon.cache()
    print(f"{state['blocks_written']} of 488 blocks were written, {state['write_budget_refused']} times one was not")
    assert 8 <= state["blocks_written"] <= 300, state
    daemon.stop()
    daemon.start()
    assert [cache.contains(path_of(c, 2)) for c in range(4)] == [2] * 4
    there = sum(cache.contains(path_of(1000 + n, 4)) for n in range(120))
    assert there < 240, there
    cache.close()


def opened():
    try:
        return Cache()
    except OSError as error:
        assert error.errno in (errno.ENOTCONN, errno.EBUSY), error  # no daemon just now
        return None


def play(seed, seconds):
    """Conversations at random; how many blocks were found."""
    chance = random.Random(seed)
    cache = until("a daemon takes a connection", opened)
    found = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            path = path_of(chance.randrange(12), 1 + chance.randrange(6))
            found += cache.serve(path)
            found += cache.serve_planned(path_of(chance.randrange(12), 6), chance.choice([1, 1000, 100_000]))
        except OSError as error:
            assert error.errno in (errno.ENOTCONN, errno.EBUSY), error  # no daemon just now
            time.sleep(0.005)
    cache.close()
    return found


def dies(daemon, rounds):
    seed = 4711
    print(f"seed {seed}")
    chance = random.Random(seed)
    hits = 0
    for n in range(rounds):
        engines = []
        for k in range(2):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    os.write(writer, str(play(seed + 2 * n + k, 0.5)).encode())
                    code = 0
                except BaseException as error:  # pylint: disable=broad-except
                    print(f"block_cache: round {n}: {error!r}", file=sys.stderr)
                finally:
                    os._exit(code)
            os.close(writer)
            engines.append((pid, reader))
        time.sleep(chance.random() * 0.4)
        daemon.kill()
        daemon.start()
        for pid, reader in engines:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, f"round {n}"
            hits += int(os.read(reader, 64))
            os.close(reader)
        state = daemon.status()
        assert state["counters"]["store_corrupt"] == 0, state
        assert all(c["read_errors"] == 0 for c in state["caches"]), state
    assert hits > rounds, hits
    print(f"ok killed {rounds} daemons, {hits} blocks were found and right")


def main():
    with tempfile.TemporaryDirectory(dir=BUILD) as work:
        daemon = Daemon(work)
        try:
            if sys.argv[2] == "dies":
                dies(daemon, int(sys.argv[3]))
            else:
                {"shares": shares, "outlives": outlives, "refuses": refuses, "chooses": chooses,
                 "budget": budget}[sys.argv[2]](daemon)
                print("ok", sys.argv[2])
        finally:
            daemon.stop()


if __name__ == "__main__":
    main()
