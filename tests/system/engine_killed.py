#!/usr/bin/env python3
"""kill -9 of an engine, N times at random moments: frames, store space, leases, descriptors and
sessions all come back, counted after each.

usage: engine_killed.py BUILD_DIR N PROGRAM ARGS...
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

WAIT_S = 20.0  # for anything at all; far more than it takes
until = functools.partial(waiting.until, seconds=WAIT_S, every_s=0.002)


def main() -> None:
    build, rounds, program = Path(sys.argv[1]).resolve(), int(sys.argv[2]), sys.argv[3:]
    if os.geteuid() != 0 and not os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
        print("engine_killed: skipped, no permission for /dev/userfaultfd")
        sys.exit(77)
    seed = 20260
    print(f"seed {seed}")
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=build) as work:
        socket = f"{work}/sock"
        daemon = subprocess.Popen([build / "bin/kvmemd", "--socket", socket, "--runtime-dir", work, "--dram", "96MiB",
                                   "--store", f"{work}/store", "--store-size", "4GiB"])
        try:
            def status():
                got = subprocess.run([build / "bin/kvmemctl", "--socket", socket, "status", "--json"],
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                return json.loads(got.stdout) if got.returncode == 0 else None

            def descriptors():
                return len(os.listdir(f"/proc/{daemon.pid}/fd"))

            until("the daemon answers", status)
            before = descriptors()
            deaths_with_work = 0
            for _ in range(rounds):
                env = {**os.environ, "LD_PRELOAD": str(build / "lib/libkvmem.so"), "KVMEM_SOCKET": socket}
                engine = subprocess.Popen(program, env=env, stdout=subprocess.DEVNULL)
                try:
                    until("the engine has pages", lambda: status()["tiers"][0]["used_bytes"] > 0)
                    time.sleep(chance.random() * 0.7)  # the moment is what the test varies
                    at_death = status()
                    deaths_with_work += at_death["tiers"][1]["used_bytes"] > 0
                finally:
                    engine.send_signal(signal.SIGKILL)
                    engine.wait()

                def all_back():
                    s = status()
                    return (s["tiers"][0]["used_bytes"] == 0 and s["tiers"][1]["used_bytes"] == 0
                            and not s["engines"] and not s["regions"] and descriptors() == before
                            and not os.listdir(f"{work}/leases"))

                until("everything is back", all_back)
            assert daemon.poll() is None, "the daemon died"
            assert deaths_with_work > rounds // 4, f"only {deaths_with_work} engines died with pages in the store"
            print(f"ok {rounds} engines killed, {deaths_with_work} with pages in the store")
        finally:
            daemon.terminate()
            daemon.wait(WAIT_S)


if __name__ == "__main__":
    main()
