#!/usr/bin/env python3
"""What a kernel launch costs more with libkvmem preloaded, when nothing holds it back.

The driver is one that does nothing, so that the difference is the whole of what stands before it.
Adjacent pairs; the difference of medians is what is printed, the median over the pairs.
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
    parser.add_argument("--pairs", type=int, default=11)
    options = parser.parse_args()
    program = BUILD / "bin" / "bench_launch"
    if not program.exists():
        print("launch: the device path is not built (no cuda.h was found)", file=sys.stderr)
        return 77
    plain = {**os.environ, "LD_LIBRARY_PATH": str(BUILD / "lib" / "nodriver")}
    preloaded = {**plain, "LD_PRELOAD": str(BUILD / "lib" / "libkvmem.so"), "KVMEM_DEVICE": "1"}
    for case, arguments in (("launch", []), ("copy", ["copy"])):
        took: dict[str, list[list[float]]] = {"plain": [], "kvmem": []}
        for i in range(options.pairs):
            sides = [("plain", plain), ("kvmem", preloaded)]
            for name, environment in sides if i % 2 == 0 else sides[::-1]:
                out = subprocess.run([program, *arguments], env=environment, check=True, stdout=subprocess.PIPE)
                took[name].append([float(x) for x in out.stdout.split()])
        for which, what in enumerate(("median", "p99")):
            difference = statistics.median(k[which] - p[which] for k, p in zip(took["kvmem"], took["plain"]))
            reference = statistics.median(p[which] for p in took["plain"])
            ours = statistics.median(k[which] for k in took["kvmem"])
            print(json.dumps({"bench": "launch", "case": case, "metric": f"{what}, against without kvmem",
                              "value": round(ours, 2), "unit": "ns", "reference": round(reference, 2),
                              "ratio": round(ours / reference, 2)}), flush=True)
            print(json.dumps({"bench": "launch", "case": case, "metric": f"{what}, added by kvmem",
                              "value": round(difference, 2), "unit": "ns", "reference": None, "ratio": None}),
                  flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
