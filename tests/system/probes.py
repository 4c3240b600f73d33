#!/usr/bin/env python3
"""What the daemon learns from the kernel by BPF, beside what is known to have happened: bytes of a
process on a GPU that knows nothing of kvmem, of others on the store's disk, and what a memory limit
costs an engine. Where the daemon may not, it says so and serves engines all the same.

usage: probes.py BUILD_DIR SCENARIO [FOLDER]     gpu | disk | stalls | rights

The store and other files lie in FOLDER, else in BUILD_DIR.

Exits 77 where BPF is not to be had, which is where the daemon says so for root.
"""

import functools
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import waiting

BUILD = Path(sys.argv[1]).resolve()
DRIVER = BUILD / "lib/softgpu/libcuda.so.1"
WAIT_S = 60.0  # for anything at all
until = functools.partial(waiting.until, seconds=WAIT_S, every_s=0.02)
MIB = 1 << 20
NOBODY = 65534
CAPABILITIES = "+bpf,+perfmon"


class Daemon:
    def __init__(self, work, *prefix, config=""):
        self.socket = f"{work}/sock"
        path = Path(work, "kvmemd.toml")
        path.write_text(config)
        self.process = subprocess.Popen(
            [*prefix, BUILD / "bin/kvmemd", "--config", path, "--socket", self.socket, "--runtime-dir", work,
             "--dram", "96MiB", "--store", f"{work}/store", "--store-size", "1GiB"],
            stderr=subprocess.DEVNULL)
        until("the daemon answers", self.status)

    def status(self, **options):
        got = subprocess.run([BUILD / "bin/kvmemctl", "--socket", self.socket, "--json", "status"],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **options)
        return json.loads(got.stdout) if got.returncode == 0 else None

    def sources(self):
        return {source["name"]: source for source in self.status()["sources"]}

    def needs(self, name):
        source = self.sources()[name]
        if not source["on"]:
            self.stop()
            print(f"probes: skipped, {name} is off: {source['why_off']}")
            sys.exit(77)

    def env(self):
        return {**os.environ, "LD_PRELOAD": str(BUILD / "lib/libkvmem.so"), "KVMEM_SOCKET": self.socket}

    def stop(self):
        self.process.terminate()
        assert self.process.wait(WAIT_S) == 0, "the daemon ended well"


# A program of the driver's that takes a step for each line it is told.
GPU_PROGRAM = """
import ctypes, sys
cuda = ctypes.CDLL(sys.argv[1])
U64 = ctypes.c_uint64
context, at = ctypes.c_void_p(), {}
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
for line in sys.stdin:
    what, name, size = line.split()
    if what == "alloc":
        p = U64()
        code = cuda.cuMemAlloc_v2(ctypes.byref(p), ctypes.c_size_t(int(size)))
        at[name] = p
    elif what == "pitch":
        p, pitch = U64(), ctypes.c_size_t()
        code = cuda.cuMemAllocPitch_v2(ctypes.byref(p), ctypes.byref(pitch), ctypes.c_size_t(1000),
                                       ctypes.c_size_t(int(size)), 4)
        print(pitch.value, flush=True)
        at[name] = p
    elif what in ("create", "create_host"):
        # type pinned, no handle types, location, no window, no flags
        prop = (ctypes.c_int * 8)(1, 0, *((1, 0) if what == "create" else (3, 0)), 0, 0, 0, 0)
        p = U64()
        code = cuda.cuMemCreate(ctypes.byref(p), ctypes.c_size_t(int(size)), prop, U64(0))
        at[name] = p
    elif what == "free":
        code = cuda.cuMemFree_v2(at[name])
    else:
        code = cuda.cuMemRelease(at[name])
    print(code, flush=True)
"""


def gpu(work):
    daemon = Daemon(work, config=f'[gpu]\ndriver = "{DRIVER}"\n')
    daemon.needs("gpu")
    assert daemon.status()["gpu_processes"] == []
    program = subprocess.Popen([sys.executable, "-c", GPU_PROGRAM, str(DRIVER)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, env={**os.environ, "KVMEM_SOFTGPU": "memory=512M"})

    def step(what, name="-", size=0):
        program.stdin.write(f"{what} {name} {size}\n")
        program.stdin.flush()
        answers = [int(program.stdout.readline()) for _ in range(2 if what == "pitch" else 1)]
        return answers[0] if len(answers) == 1 else answers

    def row():
        rows = [p for p in daemon.status()["gpu_processes"] if p["pid"] == program.pid]
        assert len(rows) == 1, rows
        return rows[0]

    assert step("alloc", "a", 64 * MIB) == 0
    assert step("alloc", "b", 100 * MIB) == 0
    assert step("free", "a") == 0
    got = row()
    assert (got["device_bytes"], got["device_peak_bytes"]) == (100 * MIB, 164 * MIB), got
    assert (got["allocations"], got["frees"], got["contexts"]) == (2, 1, 1), got
    assert not got["under_kvmem"] and got["name"].startswith("python") and got["uid"] == os.getuid(), got
    print("ok what is allocated and not freed is counted, and its most")

    pitch, code = step("pitch", "p", 300)
    assert code == 0 and pitch >= 1000 and row()["device_bytes"] == 100 * MIB + pitch * 300
    assert step("free", "p") == 0
    assert step("create", "h", 4 * MIB) == 0 and row()["device_bytes"] == 104 * MIB
    host = step("create_host", "n", 4 * MIB)
    assert row()["host_bytes"] == (4 * MIB if host == 0 else 0) and row()["device_bytes"] == 104 * MIB
    assert step("release", "h") == 0 and row()["device_bytes"] == 100 * MIB
    print("ok pitched memory and physical handles are counted, those of the host apart")

    refused = row()["failures"]
    assert step("alloc", "x", 1 << 45) != 0
    got = row()
    assert (got["failures"], got["device_bytes"]) == (refused + 1, 100 * MIB), got
    print("ok what the driver refused is counted as that")

    if os.getuid() == 0:
        subprocess.run(["chmod", "711", work], check=True)
        os.chmod(daemon.socket, 0o666)
        other = daemon.status(user=NOBODY, group=NOBODY, extra_groups=[])
        if other is not None:
            assert other["gpu_processes"] == [], other["gpu_processes"]
            print("ok another user does not see it")

    program.stdin.close()
    program.wait(WAIT_S)
    assert daemon.status()["gpu_processes"] == []
    print("ok a process that has ended is gone")
    daemon.stop()


def direct_read(path, size):
    """Reads past the page cache, as `size` bytes of the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, MIB) as buffer:
        for offset in range(0, size, MIB):
            assert os.preadv(fd, [buffer], offset) == MIB
    os.close(fd)


def disk(work):
    daemon = Daemon(work)
    daemon.needs("disk")
    size = 256 * MIB
    path = Path(work, "others")
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(4096) * (MIB // 4096))
        file.flush()
        os.fsync(file.fileno())

    def use():
        return next(tier for tier in daemon.status()["tiers"] if tier["name"] == "nvme")["disk"]

    until("the disk has been looked at", use)
    reads = 0
    # A rate over at most the last ten seconds: what was read in them is no less than the half of it.
    end = time.monotonic() + WAIT_S
    while True:
        direct_read(path, size)
        reads += 1
        got = use()
        if got["other_read_bytes_s"] * 10 >= size:
            break
        assert time.monotonic() < end, got
    assert got["own_read_bytes_s"] * 10 < size / 4, got  # nothing of ours was read
    assert 0 < got["read_p50_us"] <= got["read_p99_us"], got
    print(f"ok what another process reads is seen as another's: {got['other_read_bytes_s'] / MIB:.0f} MiB/s")

    # An engine of 384 MiB in 96: the rest is written by the daemon.
    subprocess.run([BUILD / "programs/writers", "256", "2", "5"], env=daemon.env(), check=True, timeout=300,
                   stdout=subprocess.DEVNULL)
    got = use()
    assert got["own_write_bytes_s"] * 10 >= 64 * MIB, got
    print(f"ok what the daemon writes is seen as its own: {got['own_write_bytes_s'] / MIB:.0f} MiB/s")
    daemon.stop()


class MemoryLimit:
    """A memory cgroup of so many bytes, or None where there can be none."""

    def __init__(self, limit):
        self.group = None
        for root, key in ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")):
            with suppress(OSError):
                group = root / f"kvmem-probes-{os.getpid()}"
                group.mkdir()
                self.group = group
                (group / key).write_text(str(limit))
                return
            self.close()

    def close(self):
        if self.group is not None:
            self.group.rmdir()
            self.group = None


# Makes a region, then reads a file through the page cache, and waits.
ENGINE = """
import os, sys
region = bytearray(64 << 20)
print("region", flush=True)
sys.stdin.readline()
with open(sys.argv[1], "rb") as file:
    while file.read(1 << 20):
        pass
print("read", flush=True)
sys.stdin.readline()
"""


def stalls(work):
    daemon = Daemon(work)
    daemon.needs("stalls")
    path = Path(work, "file")
    with open(path, "wb") as file:
        for _ in range(192):
            file.write(bytes(MIB))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    limit = MemoryLimit(48 * MIB)
    if limit.group is None:
        daemon.stop()
        print("probes: skipped, this user may not make a memory cgroup")
        sys.exit(77)
    engine = None
    try:
        engine = subprocess.Popen([sys.executable, "-c", ENGINE, path], env=daemon.env(), stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        assert engine.stdout.readline() == "region\n"

        def row():
            return next(e for e in daemon.status()["engines"] if e["pid"] == engine.pid)["stalls"]

        assert row()["limit_reclaims"] == 0, row()
        (limit.group / "cgroup.procs").write_text(str(engine.pid))
        engine.stdin.write("\n")
        engine.stdin.flush()
        assert engine.stdout.readline() == "read\n"
        got = row()
        assert got["limit_reclaims"] > 0 and got["limit_reclaim_ms"] > 0, got
        print(f"ok a memory limit cost the engine {got['limit_reclaim_ms']:.1f} ms in {got['limit_reclaims']} times")
        engine.stdin.write("\n")
        engine.stdin.flush()
        assert engine.wait(WAIT_S) == 0
    finally:
        if engine is not None and engine.poll() is None:
            engine.kill()
            engine.wait()
        limit.close()
    until("the engine is gone", lambda: daemon.status()["engines"] == [])
    print("ok its count goes with it")

    # Memory in which every other OS page is free: there is something to compact.
    with mmap.mmap(-1, 256 * MIB) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for offset in range(0, len(memory), mmap.PAGESIZE):
            memory[offset] = 1
        for offset in range(0, len(memory), 2 * mmap.PAGESIZE):
            memory.madvise(mmap.MADV_DONTNEED, offset, mmap.PAGESIZE)

        def moved():
            return daemon.status()["kernel_migrations"].get("compaction", {}).get("moved_os_pages", 0)

        before = moved()
        if os.access("/proc/sys/vm/compact_memory", os.W_OK):
            Path("/proc/sys/vm/compact_memory").write_text("1")
            assert moved() > before, before
            print(f"ok the kernel moved {moved() - before} OS pages for compaction")
    daemon.stop()


def rights(work):
    if os.geteuid() != 0:
        print("probes: skipped, only root can lend rights")
        sys.exit(77)
    daemon = Daemon(work)
    daemon.needs("stalls")
    daemon.stop()
    os.chmod(work, 0o777)
    for path in Path(work).rglob("*"):
        os.chown(path, NOBODY, NOBODY)
    readable = subprocess.run(["test", "-x", BUILD / "bin/kvmemd"], user=NOBODY, group=NOBODY, extra_groups=[])
    if readable.returncode != 0:
        print("probes: skipped, another user cannot reach the build")
        sys.exit(77)
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]

    daemon = Daemon(work, *user)
    for name in ("disk", "stalls"):
        source = daemon.sources()[name]
        assert not source["on"] and "CAP_BPF" in source["why_off"], source
    assert daemon.status()["engines"] == []
    print("ok without rights the daemon says what it would need, and runs")
    daemon.stop()

    daemon = Daemon(work, *user, f"--inh-caps={CAPABILITIES}", f"--ambient-caps={CAPABILITIES}")
    for name in ("disk", "stalls"):
        assert daemon.sources()[name]["on"], daemon.sources()[name]
    for task in Path(f"/proc/{daemon.process.pid}/task").iterdir():
        capabilities = dict(line.split(":\t") for line in (task / "status").read_text().splitlines()
                            if line.startswith("Cap"))
        assert all(int(capabilities[which], 16) == 0 for which in ("CapEff", "CapPrm", "CapInh", "CapAmb")), capabilities
    assert daemon.status()["daemon"]["stalls"] is not None
    print("ok with two capabilities it has its probes, and keeps none of the two")
    daemon.stop()

    daemon = Daemon(work, config="[ebpf]\nenable = false\n")
    source = daemon.sources()["stalls"]
    assert not source["on"] and "ebpf.enable" in source["why_off"], source
    print("ok it can be told to ask nothing")
    daemon.stop()


def main():
    with tempfile.TemporaryDirectory(dir=sys.argv[3] if len(sys.argv) > 3 else BUILD, prefix="probes-") as work:
        {"gpu": gpu, "disk": disk, "stalls": stalls, "rights": rights}[sys.argv[2]](work)


main()
