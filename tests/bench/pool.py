#!/usr/bin/env python3
"""A KV pool as a decoding engine sees it: 256 sequences of Llama-3-8B, packed, one token each a step.

On the software driver (its speed says nothing about a GPU's, but what a step waits for does), and on the
host under a private daemon with room for all of it. Beside a step stands the same look at 256 lengths in
plain C. `spread`: sequences need a new page at different steps; `lockstep`: all at the same.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("KVMEM_BUILD", ROOT / "build" / "release"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="(always: run.sh makes the table)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--pause-us", type=int, default=20000, help="what a step of the engine takes")
    parser.add_argument("--dram", default="8GiB", help="of the host's pool")
    options = parser.parse_args()
    program = BUILD / "bin" / "bench_pool"
    driver = BUILD / "lib" / "softgpu"
    host = [BUILD / "bin" / "kvmemctl", "run", "--private", "--dram", options.dram, "--kvmemd", BUILD / "bin" / "kvmemd",
            "--library", BUILD / "lib" / "libkvmem.so", "--"]
    sides = [("host", host, os.environ)]
    if driver.exists():
        memory = {**os.environ, "LD_LIBRARY_PATH": str(driver), "SOFTGPU": "memory=68719476736,late_us=0"}
        sides.insert(0, ("device", [], memory))
    for name, prefix, environment in sides:
        for how in ("spread", "lockstep"):
            runs = []
            for _ in range(options.runs):
                command = [*prefix, program, name, str(options.steps), str(options.pause_us), how]
                got = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                runs.append(json.loads(got.stdout))

            def middle(key, runs=runs):
                return statistics.median(run[key] for run in runs)

            def say(metric, value, unit, reference=None, case=f"{name}, {how}"):
                print(json.dumps({"bench": "pool", "case": case, "metric": metric, "value": round(value, 3),
                                  "unit": unit, "reference": reference,
                                  "ratio": round(value / reference, 2) if reference else None}), flush=True)

            say("step of 256, median, against a look", middle("step_p50"), "us", middle("bare_p50"))
            say("step of 256, p99, against a look", middle("step_p99"), "us", middle("bare_p99"))
            say("pages that steps needed", middle("grown"), "pages")
            say("of them mapped ahead", 1 - middle("late") / max(middle("grown"), 1), "share", 1.0)
            say("pages made while somebody waited", middle("late_creates"), "pages")
            say("extend to some 32 tokens, median", middle("extend_p50"), "us")
            say("fork of 32 tokens, median", middle("fork_p50"), "us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
