#!/usr/bin/env python3
"""The kernel's huge pages are taken away for good under a running daemon: an engine of many threads,
which forks, goes on within seconds, every byte is as written, and kvmemctl says why. In the end
every frame comes back.

usage: huge_pages_lost.py BUILD_DIR PROGRAM FILE shrunk|pool|overcommit|killed|never [SEED]
  shrunk      a pool of huge pages becomes smaller than what the engine has in memory
  pool        a pool of huge pages becomes empty while the engine is at work
  overcommit  none in the pool, but the kernel may make some; then it may not
  killed      as pool, and then the daemon is killed and restarted again and again, for a while, from
              when pages begin to move
  never       huge pages are allowed and there are none: regions are ordinary from the start

Exits 77 where the sysctls cannot be set. Puts them back.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SYSCTLS = [Path("/proc/sys/vm/nr_hugepages"), Path("/proc/sys/vm/nr_overcommit_hugepages")]
DRAM_PAGES = 32
SECONDS = 25  # of the engine's work
LOST_AT = 5
KILLS_UNTIL = 16  # seconds
# Far more than the daemon waits for a huge page; far less than for ever.
GOES_ON_WITHIN = 30.0


def set_huge_pages(pool: int, more: int) -> None:
    for path, value in zip(SYSCTLS, (pool, more)):
        path.write_text(str(value))


@contextlib.contextmanager
def sysctls_put_back():
    before = [path.read_text() for path in SYSCTLS]
    try:
        for path, value in zip(SYSCTLS, before):
            path.write_text(value)
    except OSError as error:
        print(f"huge_pages_lost: skipped, {error}")
        sys.exit(77)
    try:
        yield
    finally:
        for path, value in zip(SYSCTLS, before):
            path.write_text(value)


class Daemon:
    def __init__(self, build: Path, work: str):
        self.build, self.work, self.socket = build, work, f"{work}/sock"
        self.process = None
        self.start()

    def start(self) -> None:
        log = open(f"{self.work}/log", "a")  # pylint: disable=consider-using-with
        self.process = subprocess.Popen(
            [self.build / "bin/kvmemd", "--socket", self.socket, "--runtime-dir", self.work, "--dram",
             f"{DRAM_PAGES * 2}MiB", "--store", f"{self.work}/store", "--store-size", "4GiB"], stderr=log)
        log.close()
        end = time.monotonic() + 20
        while self.status() is None:
            assert self.process.poll() is None and time.monotonic() < end, "the daemon does not answer"
            time.sleep(0.02)

    def status(self):
        got = subprocess.run([self.build / "bin/kvmemctl", "--socket", self.socket, "status", "--json"],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=20)
        return json.loads(got.stdout) if got.returncode == 0 else None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def log(self) -> str:
        return Path(f"{self.work}/log").read_text()


class Engine:
    """Its lines are read as they come; `moved` is when the last one did."""

    def __init__(self, build: Path, socket: str, program: list, first_child: int):
        env = {**os.environ, "LD_PRELOAD": str(build / "lib/libkvmem.so"), "KVMEM_SOCKET": socket,
               "KVMEM_TEST_MANAGED": "1"}
        self.process = subprocess.Popen([program[0], "160", "8", str(SECONDS), str(first_child), program[1]], env=env,
                                        stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.lines, self.moved = [], time.monotonic()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.strip())
            self.moved = time.monotonic()

    def kill(self) -> None:  # and its child
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def check_goes_on(self, daemon: Daemon) -> None:
        still = time.monotonic() - self.moved
        if still > GOES_ON_WITHIN:
            sys.exit(f"huge_pages_lost: the engine stands still for {still:.0f} s after {self.lines[-1:]};"
                     f" the daemon says:\n{daemon.log()}\n{json.dumps(daemon.status()['counters'])}")


def main() -> None:
    build, program, scenario = Path(sys.argv[1]).resolve(), sys.argv[2:4], sys.argv[4]
    seed = int(sys.argv[5]) if len(sys.argv) > 5 else 20261
    print(f"seed {seed}")
    chance = random.Random(seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with sysctls_put_back(), tempfile.TemporaryDirectory(dir=build) as work:
        set_huge_pages(0 if scenario in ("overcommit", "never") else DRAM_PAGES + 8,
                       1024 if scenario in ("overcommit", "never") else 0)
        daemon = Daemon(build, work)
        if scenario != "never" and daemon.status()["daemon"]["huge_pages"] != "hugetlb":
            print("huge_pages_lost: skipped, this machine has no huge pages to give")
            set_huge_pages(0, 0)
            daemon.kill()
            sys.exit(77)
        if scenario == "never":
            set_huge_pages(0, 0)
        # (What a child has not copied yet does not outlive a daemon.)
        engine = Engine(build, daemon.socket, program, KILLS_UNTIL + 3 if scenario == "killed" else 0)
        try:
            began = next_kill = time.monotonic()
            kills, seen, lost = 0, None, scenario == "never"
            while engine.process.poll() is None:
                time.sleep(0.1)
                now = time.monotonic()
                if not lost and now - began > LOST_AT:
                    set_huge_pages(DRAM_PAGES // 2 if scenario == "shrunk" else 0, 0)
                    lost, next_kill = True, now + 2.2
                    assert all(r["backing"] == "hugetlb" for r in daemon.status()["regions"])
                if scenario == "killed" and lost and next_kill < now < began + KILLS_UNTIL:
                    next_kill = now + 0.2 + chance.random()
                    daemon.kill()
                    daemon.start()
                    kills += 1
                engine.check_goes_on(daemon)
                if lost and (status := daemon.status()) is not None and status["regions"]:
                    seen = max(seen or status, status, key=lambda s: max(
                        (r.get("aside_pages", 0) for r in s["regions"]), default=0) if s["regions"] else 0)
            assert engine.process.returncode == 0, f"the engine ended with {engine.process.returncode}\n{daemon.log()}"
            engine.reader.join()
            assert engine.lines[-1].startswith("ok "), engine.lines
            print(engine.lines[-1])
            last = daemon.status()
            assert not last["regions"] and not last["engines"] and last["tiers"][0]["used_bytes"] == 0, last["tiers"]
            assert last["counters"]["pages_lost"] == 0 and last["counters"]["store_corrupt"] == 0, last["counters"]
            if scenario == "shrunk":
                print(f"ok shrunk: {last['counters']['pages_aside']} pages moved aside")
                return
            region = max(seen["regions"], key=lambda r: r["size_bytes"])
            assert region["backing_why"], region
            if scenario == "never":
                assert region["backing"] in ("4k", "thp") and region["aside_pages"] == 0, region
            else:
                assert region["backing"].startswith("hugetlb+") and region["aside_pages"] > 0, region
            if scenario != "killed":
                assert any("huge page" in w for w in last["daemon"]["warnings"]), last["daemon"]["warnings"]
            assert scenario != "killed" or kills > 3, kills
            assert "vm.nr_" in daemon.log(), daemon.log()
            print(f"ok {scenario}: {region['aside_pages']} of {region['page_count']} pages moved aside, "
                  f"{kills} daemons killed")
        finally:
            engine.kill()
            daemon.process.terminate()
            daemon.process.wait(20)


if __name__ == "__main__":
    main()
