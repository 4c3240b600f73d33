#!/usr/bin/env python3
"""Engines that share a GPU under one daemon: parked and awake again, by hand, by name, when idle and
when another one needs the room; a budget that is never exceeded and shared fairly; and kill -9 of
any of them, or of the daemon, after which the others go on and memory returns. Every byte is checked
all along.

usage: device_tenants.py BUILD_DIR SCENARIO [ROUNDS]   parks | shares | dies
"""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import waiting

BUILD = Path(sys.argv[1]).resolve()
WAIT_S = 60.0  # for anything at all
until = functools.partial(waiting.until, seconds=WAIT_S, every_s=0.005)
MIB = 1 << 20
BUDGET = 128 * MIB


class Daemon:
    def __init__(self, work):
        self.work, self.socket = work, f"{work}/sock"
        config = Path(work, "kvmemd.toml")
        config.write_text(f'[gpu]\nbudget = "{BUDGET // MIB}MiB"\n')
        self.command = [BUILD / "bin/kvmemd", "--config", config, "--socket", self.socket, "--runtime-dir", work,
                        "--dram", "96MiB", "--store", f"{work}/store", "--store-size", "2GiB"]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)
        until("the daemon answers", lambda: self.ask("status"))

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait(WAIT_S)

    def ask(self, *command):
        got = subprocess.run([BUILD / "bin/kvmemctl", "--socket", self.socket, "--json", *command],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return json.loads(got.stdout) if got.returncode == 0 else None

    def claims(self):
        """By pid; and never more than the budget."""
        gpus = self.ask("status")["gpus"]
        assert len(gpus) <= 1, gpus
        if not gpus:
            return {}
        assert gpus[0]["claimed_bytes"] <= gpus[0]["budget_bytes"] == BUDGET, gpus
        return {h["pid"]: h["claimed_bytes"] for h in gpus[0]["holders"]}

    def regions(self, engine):
        return [r for r in self.ask("regions")["gpu_regions"] if r["pid"] == engine.pid]

    def sums(self, engine):
        rows = self.regions(engine)
        return {k: sum(r[k + "_bytes"] for r in rows) for k in ("size", "hbm", "host", "stored")}


class Engine:
    def __init__(self, daemon, **settings):
        env = {**os.environ, "LD_PRELOAD": str(BUILD / "lib/libkvmem.so"), "LD_LIBRARY_PATH": str(BUILD / "lib/softgpu"),
               "KVMEM_SOCKET": daemon.socket, "KVMEM_DEVICE": "1", **settings}
        self.process = subprocess.Popen([BUILD / "programs/device_tenant"], env=env, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, bufsize=1)
        self.pid = self.process.pid

    def say(self, line):
        self.process.stdin.write(line + "\n")

    def hear(self):
        return self.process.stdout.readline().strip()

    def do(self, line, wanted):
        self.say(line)
        got = self.hear()
        assert got.startswith(wanted), f"{line}: {got!r}, not {wanted!r} (exit {self.process.poll()})"
        return got

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(WAIT_S) == 0, self.process.returncode

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def parks(daemon):
    engine = Engine(daemon)
    engine.do("hold 48 weights", "held")
    engine.do("hold 30 kv", "held")
    engine.do("add", "added")
    engine.do("check", "right")
    until("the daemon knows", lambda: daemon.sums(engine)["hbm"] == 78 * MIB)
    assert daemon.claims()[engine.pid] >= 78 * MIB

    # The whole engine: nothing of it is left on the GPU.
    assert daemon.ask("park", str(engine.pid))["done"]
    until("nothing is claimed", lambda: engine.pid not in daemon.claims())
    assert daemon.sums(engine) == {"size": 78 * MIB, "hbm": 0, "host": 0, "stored": 78 * MIB}
    assert {r["last_move"] for r in daemon.regions(engine)} == {"park"}
    engine.do("check", "right")  # by what it does next it is awake
    until("it is back", lambda: daemon.sums(engine)["hbm"] == 78 * MIB)
    assert {r["last_move"] for r in daemon.regions(engine)} == {"wake"}
    assert not daemon.ask("regions")["regions"], "where it was kept is given back"

    # By name, and back by hand.
    assert daemon.ask("park", "kv")["done"]
    rows = {r["tag"]: r for r in daemon.regions(engine)}
    assert rows["kv"]["stored_bytes"] == 30 * MIB and rows["weights"]["hbm_bytes"] == 48 * MIB, rows
    assert daemon.ask("wake", "kv")["done"]
    assert daemon.ask("park", "nobody") is None
    engine.do("add", "added")

    # A daemon that dies and comes back while an engine is parked; freeing and allocating then.
    assert daemon.ask("park", str(engine.pid))["done"]
    daemon.kill()
    daemon.start()
    engine.do("check", "right")
    until("the new daemon knows", lambda: daemon.sums(engine)["hbm"] == 78 * MIB)
    assert daemon.ask("park", str(engine.pid))["done"]
    engine.do("drop kv", "dropped")
    until("what was freed is gone", lambda: daemon.sums(engine)["size"] == 48 * MIB)
    engine.do("hold 20 more", "held")
    engine.do("check", "right")

    # By the engine itself; also with nobody to keep the pages for it.
    engine.do("park weights", "parked")
    assert {r["tag"]: r["stored_bytes"] // MIB for r in daemon.regions(engine)} == {"weights": 48, "more": 0}
    engine.do("park more", "parked")
    until("both are", lambda: daemon.sums(engine)["stored"] == 68 * MIB)
    engine.do("check", "right")
    alone = Engine(daemon, KVMEM_SOCKET=f"{daemon.work}/nobody")
    alone.do("park", "parked")
    alone.do("hold 40 a", "held")
    for _ in range(3):
        alone.do("park", "parked")
        alone.do("check", "right")
    alone.do("park", "parked")
    alone.end()

    # What is not a call on the GPU wakes it too; what was freed on a stream is used again, or not.
    engine.do("park", "parked")
    engine.do("advise 6", "advised")
    engine.do("check", "right")
    engine.do("reuse 10", "reused")
    engine.do("check", "right")

    # Without a word, after it has done nothing for a while.
    idle = Engine(daemon, KVMEM_PARK_AFTER="0.2")
    idle.do("hold 16 idle", "held")
    until("it parks", lambda: daemon.sums(idle)["stored"] == 16 * MIB)
    assert daemon.regions(idle)[0]["last_move"] == "idle"
    idle.do("work 700", "worked")
    for e in (engine, idle):
        e.do("check", "right")
        e.end()
    until("all is given back", lambda: daemon.claims() == {} and not daemon.ask("status")["engines"])


def shares(daemon):
    # The first has nearly all; it can give back what it has to, since its pages can live elsewhere.
    first = Engine(daemon, KVMEM_HBM="256M", KVMEM_GPU_CAPACITY="512M")
    first.do("hold 100 a", "held")
    first.do("hold 24 b", "held")
    until("it has all that", lambda: daemon.sums(first)["hbm"] == 124 * MIB)
    second = Engine(daemon, KVMEM_HBM="256M", KVMEM_GPU_CAPACITY="512M")
    second.do("hold 60 c", "held")
    until("the second has its share", lambda: daemon.sums(second)["hbm"] == 60 * MIB)
    until("the first has moved", lambda: daemon.sums(first)["host"] >= 56 * MIB)
    for engine in (first, second):
        engine.do("add", "added")
        engine.do("check", "right")
    # More than its share it does not get, and lives partly in host memory.
    second.do("hold 40 d", "held")
    until("the daemon knows", lambda: daemon.sums(second)["size"] == 100 * MIB)
    assert daemon.sums(second)["host"] >= 32 * MIB, daemon.sums(second)
    daemon.claims()
    second.do("check", "right")
    for engine in (first, second):
        engine.end()
    until("all is given back", lambda: daemon.claims() == {})

    # Two that have to come back at once, and have room for one: neither waits for the other's half.
    first, second = Engine(daemon), Engine(daemon)
    for engine in (first, second):
        engine.do("hold 40 a", "held")
        engine.do("hold 40 b", "held" if engine is first else "")
        engine.do("park", "parked")
    for n in range(10):
        for engine in (first, second):
            engine.say("add")
        for engine in (first, second):
            assert engine.hear() == "added"
        for engine in (first, second):
            engine.do("check", "right")
            time.sleep(0.5 if n == 0 else 0)
        daemon.claims()
        for engine in (first, second):
            engine.do("park", "parked")
    for engine in (first, second):
        engine.end()
    until("all is given back", lambda: daemon.claims() == {})

    # Threads that allocate at once get what is there.
    first = Engine(daemon, KVMEM_HBM="256M")
    for _ in range(20):
        first.do("threads 3 40", "all")
    until("it holds what it claims", lambda: int(first.do("bytes", "")) <= daemon.claims()[first.pid])
    first.end()
    until("all is given back", lambda: daemon.claims() == {})

    # An engine that has nowhere else to be is parked, once it is idle.
    first, second = Engine(daemon), Engine(daemon)
    first.do("hold 120 a", "held")
    time.sleep(0.6)
    second.do("hold 60 b", "held")
    until("the first is parked", lambda: daemon.sums(first)["stored"] == 120 * MIB)
    assert {r["last_move"] for r in daemon.regions(first)} == {"budget"}
    assert daemon.claims()[second.pid] >= 60 * MIB
    time.sleep(0.6)
    first.do("check", "right")  # its turn: the second is idle now
    second.do("check", "right")
    daemon.claims()
    for engine in (first, second):
        engine.end()
    until("all is given back", lambda: daemon.claims() == {})


def dies(daemon, rounds):
    seed = 20261
    print(f"seed {seed}")
    chance = random.Random(seed)
    engines = {}
    killed = {"engine": 0, "daemon": 0}
    for n in range(rounds):
        for name in ("a", "b"):
            if name not in engines:
                engines[name] = Engine(daemon, KVMEM_HBM="256M", KVMEM_GPU_CAPACITY="512M")
                engines[name].do(f"hold {chance.randrange(30, 90)} {name}", "held")
        victim = chance.choice(("a", "b", "daemon"))
        for engine in engines.values():
            engine.say("work 300")
        if chance.random() < 0.5:
            daemon.ask("park", "--timeout", "0", str(chance.choice(list(engines.values())).pid))
        time.sleep(chance.random() * 0.25)
        if victim == "daemon":
            daemon.kill()
            time.sleep(chance.random() * 0.1)
            daemon.start()
            killed["daemon"] += 1
        else:
            engines.pop(victim).kill()
            killed["engine"] += 1
        for name, engine in engines.items():
            got = engine.hear()
            assert got.startswith("worked"), f"round {n}, {name} after {victim} died: {got!r}"
            engine.do("check", "right")
        alive = {e.pid for e in engines.values()}
        until("what the dead one had is back", lambda: set(daemon.claims()) <= alive)
    for engine in engines.values():
        engine.end()
    until("all is given back", lambda: daemon.claims() == {} and not daemon.ask("status")["engines"])
    status = daemon.ask("status")
    until("frames and slots too", lambda: all(t["used_bytes"] == 0 for t in daemon.ask("status")["tiers"][:2]))
    assert status["counters"].get("pages_lost", 0) == 0
    print(f"ok killed {killed['engine']} engines and {killed['daemon']} daemons")


def main():
    if os.geteuid() != 0 and not os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
        print("device_tenants: skipped, no permission for /dev/userfaultfd")
        sys.exit(77)
    with tempfile.TemporaryDirectory(dir=BUILD) as work:
        daemon = Daemon(work)
        try:
            if sys.argv[2] == "dies":
                dies(daemon, int(sys.argv[3]))
            else:
                {"parks": parks, "shares": shares}[sys.argv[2]](daemon)
                print("ok", sys.argv[2])
        finally:
            daemon.stop()


if __name__ == "__main__":
    main()
