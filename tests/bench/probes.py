#!/usr/bin/env python3
"""What the daemon's probes cost those who are watched: an allocation and its free on a GPU, a launch,
which no probe sits on, and a whole program on the software driver. Adjacent pairs, with the daemon's
ebpf.enable and without; medians over the pairs. On a driver that does nothing, but for the program.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("KVMEM_BUILD", ROOT / "build" / "release"))


class Daemon:
    """Watches the users of `driver`, or with `enable` false nobody."""

    def __init__(self, work, driver, enable):
        config = Path(work, "kvmemd.toml")
        config.write_text(f'[gpu]\ndriver = "{driver}"\n[ebpf]\nenable = {str(enable).lower()}\n')
        ready, write = os.pipe()
        self.process = subprocess.Popen(
            [BUILD / "bin/kvmemd", "--config", config, "--socket", f"{work}/sock", "--runtime-dir", work, "--dram",
             "64MiB", "--ready-fd", str(write)], pass_fds=(write,), stderr=subprocess.DEVNULL)
        os.close(write)
        is_ready = os.read(ready, 16) == b"READY\n"
        os.close(ready)
        if not is_ready:
            sys.exit("probes: the daemon did not start")
        asked = subprocess.run([BUILD / "bin/kvmemctl", "--socket", f"{work}/sock", "--json", "status"], check=True,
                               stdout=subprocess.PIPE)
        self.gpu = next(s for s in json.loads(asked.stdout)["sources"] if s["name"] == "gpu")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="(always: run.sh makes the table)")
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    launch, engine = BUILD / "bin/bench_launch", BUILD / "bin/device_engine"
    if not launch.exists():
        print("probes: the device path is not built (no cuda.h was found)", file=sys.stderr)
        return 77

    def measure(command, folder):
        out = subprocess.run([str(c) for c in command], env={**os.environ, "LD_LIBRARY_PATH": str(folder)}, check=True,
                             stdout=subprocess.PIPE).stdout
        return float(out.split()[0])

    def seconds(command, folder):
        begin = time.monotonic()
        subprocess.run([str(c) for c in command], env={**os.environ, "LD_LIBRARY_PATH": str(folder)}, check=True,
                       stdout=subprocess.DEVNULL)
        return time.monotonic() - begin

    idle, soft = BUILD / "lib/nodriver", BUILD / "lib/softgpu"
    cases = [("allocate and free", measure, [launch, "alloc"], idle, "ns"),
             ("launch", measure, [launch], idle, "ns"),
             ("program", seconds, [engine, "16", "8", "40"], soft, "s")]
    for case, clock, command, folder, unit in cases:
        took = {True: [], False: []}
        for i in range(options.pairs):
            for watched in (True, False) if i % 2 == 0 else (False, True):
                with tempfile.TemporaryDirectory() as work, Daemon(work, folder / "libcuda.so.1", watched) as daemon:
                    if watched and not daemon.gpu["on"]:
                        print(f"probes: {daemon.gpu['why_off']}", file=sys.stderr)
                        return 77
                    took[watched].append(clock(command, folder))
        reference, ours = (statistics.median(took[watched]) for watched in (False, True))
        print(json.dumps({"bench": "probes", "case": case, "metric": "watched, against not watched",
                          "value": round(ours, 3), "unit": unit, "reference": round(reference, 3),
                          "ratio": round(ours / reference, 3)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
