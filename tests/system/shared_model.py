#!/usr/bin/env python3
"""Two engines map one model file, and its pages are in memory once: kvmemctl and /proc agree.

usage: shared_model.py BUILD_DIR MODEL     MODEL is a file of some 100 MB
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE = 2 << 20
WAIT_S = 20.0

# Maps the model as engines do, reads all of it, says what it read, and stays until told to go.
ENGINE = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as f:
    model = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
print(hashlib.sha256(model).hexdigest(), flush=True)
sys.stdin.read()
print(hashlib.sha256(model).hexdigest(), flush=True)
"""


def fail(text: str) -> None:
    sys.exit(f"shared_model: {text}")


def mappings(pid: int) -> dict[str, dict[str, int]]:
    """Of libkvmem's memory in `pid`: by inode, the kB that smaps gives for each field, added up."""
    found: dict[str, dict[str, int]] = {}
    fields: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            ours = "memfd:kvmem" in line
            fields = found.setdefault(words[4], {}) if ours else {}
        elif len(words) == 3 and words[2] == "kB":
            fields[words[0][:-1]] = fields.get(words[0][:-1], 0) + int(words[1])
    return found


def memfd_bytes(pid: int) -> dict[str, int]:
    """By inode, the memory behind the memfds that `pid` holds: the kernel counts it per inode."""
    found = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if "memfd:kvmem" in os.readlink(fd):
                st = fd.stat()
                if st.st_size >= PAGE:  # the others are residency tables
                    found[str(st.st_ino)] = st.st_blocks * 512
        except FileNotFoundError:
            continue
    return found


def main() -> None:
    build, model = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    if os.geteuid() != 0 and not os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
        print("shared_model: skipped, no permission for /dev/userfaultfd")
        sys.exit(77)
    size = model.stat().st_size
    pages = size // PAGE  # the rest of the last page passes through
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory(dir=build) as work:
        socket = f"{work}/sock"
        daemon = subprocess.Popen([build / "bin/kvmemd", "--socket", socket, "--runtime-dir", work,
                                   "--dram", str(size + 64 * PAGE)])
        engines = []
        try:
            def ask(what: str):
                got = subprocess.run([build / "bin/kvmemctl", "--socket", socket, what, "--json"],
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                return json.loads(got.stdout) if got.returncode == 0 else None

            end = time.monotonic() + WAIT_S
            while ask("status") is None:
                if time.monotonic() > end:
                    fail("the daemon does not answer")
                time.sleep(0.01)
            env = {**os.environ, "LD_PRELOAD": str(build / "lib/libkvmem.so"), "KVMEM_SOCKET": socket}
            for _ in range(2):
                engines.append(subprocess.Popen([sys.executable, "-c", ENGINE, str(model)], env=env, text=True,
                                                stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for engine in engines:
                if engine.stdout.readline().strip() != digest:
                    fail("an engine read other bytes than the file has")

            regions = ask("regions")["regions"]
            if len(regions) != 1 or regions[0]["views"] != 2 or len(set(regions[0]["sessions"])) != 2:
                fail(f"not one region with two views: {regions}")
            said = regions[0]["resident_pages"] * PAGE
            used = ask("status")["tiers"][0]["used_bytes"]
            behind = memfd_bytes(daemon.pid)
            if regions[0]["resident_pages"] < pages:
                fail(f"{regions[0]['resident_pages']} pages are resident, {pages} fit")
            if not said == used == sum(behind.values()):
                fail(f"kvmemctl says {said} in the region and {used} in DRAM, /proc {behind}")
            for engine in engines:
                maps = mappings(engine.pid)
                if not set(behind) <= set(maps):
                    fail(f"pid {engine.pid} maps {set(maps)}, the daemon holds {set(behind)}")
                fields = maps[next(iter(behind))]
                private = sum(fields[k] for k in ("Private_Clean", "Private_Dirty", "Private_Hugetlb", "Anonymous"))
                shared = sum(fields[k] for k in ("Shared_Clean", "Shared_Dirty", "Shared_Hugetlb"))
                if private != 0 or shared * 1024 < pages * PAGE:
                    fail(f"pid {engine.pid}: {private} kB of its own, {shared} kB shared, of {pages * PAGE >> 10}")
            print(f"ok two engines of {pages * PAGE >> 20} MiB each: {used >> 20} MiB, in kvmemctl and in /proc")

            engines[0].communicate("", timeout=WAIT_S)
            if engines[1].communicate("", timeout=WAIT_S)[0].strip() != digest:
                fail("the second engine lost bytes when the first one ended")
            end = time.monotonic() + WAIT_S
            while ask("status")["tiers"][0]["used_bytes"] != 0:
                if time.monotonic() > end:
                    fail("frames remain when both engines have ended")
                time.sleep(0.01)
            print("ok all frames came back")
        finally:
            for engine in engines:
                if engine.poll() is None:
                    engine.kill()
                    engine.wait()
            daemon.terminate()
            daemon.wait(10)


if __name__ == "__main__":
    main()
