#!/usr/bin/env python3
"""The quickstart's last page: quickstart_table.py DIR, with DIR/{plain,limited,kvmem}.json as
measure.py wrote them. Exits 1 if the runs did not give the same output."""

import argparse
import json
import sys
from pathlib import Path

NAMES = {"plain": "plain", "limited": "own mmap, limited", "kvmem": "kvmem"}


def mib(n: float) -> str:
    return f"{n / 2**20:.0f} MiB"


def gb(n: float) -> str:
    return f"{n / 1e9:.1f} GB"


def us(latency: dict, name: str) -> str:
    p50, p99 = latency.get(f"{name}_p50_us"), latency.get(f"{name}_p99_us")
    return "-" if p50 is None or p99 is None else f"{p50:.0f} / {p99:.0f} us"


def verdict(run: dict, plain: dict) -> str:
    if run["tokens"] != plain["tokens"]:
        return "DIFFERENT"
    return "equal" if run["digest"] == plain["digest"] else "equal, PROBABILITIES DIFFER"


def print_runs(runs: dict[str, dict], args: argparse.Namespace) -> bool:
    plain, same = runs["plain"], True
    memory = {"plain": "unlimited", "limited": f"{mib(args.limit)} cgroup", "kvmem": f"{mib(args.dram)} DRAM"}
    print(f"{'':<18} {'memory':<18} {'tokens':<10} {'tokens/s':>9} {'read per token':>15} {'load':>8}")
    for mode, name in NAMES.items():
        run = runs.get(mode)
        if not run:
            print(f"{name:<18} {memory[mode]:<18} (not run)")
            continue
        word = verdict(run, plain)
        same &= word == "equal"
        print(f"{name:<18} {memory[mode]:<18} {word:<10} {run['steady_tokens_per_s']:>9.2f} "
              f"{mib(run['steady_read_bytes']):>15} {run['load_s']:>6.1f} s")
    return same


def print_kvmem(run: dict) -> None:
    status, report = run.get("status", {}), run.get("report") or run.get("status", {})
    counters, latency = report.get("counters", {}), report.get("latency", {})
    print("\nwhere the pages lived while decoding")
    for tier in status.get("tiers", []):
        print(f"  {tier['name']:<8} {mib(tier['used_bytes']):>10} of {mib(tier['capacity_bytes'])}")
    c = counters.get
    print("\nwhat kvmem did, load included")
    print(f"  faults          {c('faults_missing', 0)} missing, {c('faults_minor', 0)} minor, "
          f"{c('faults_wp', 0)} write-protect")
    print(f"  read            {gb(c('origin_read_bytes', 0))} from the model file, "
          f"{gb(c('store_read_bytes', 0))} from the store")
    print(f"  written         {gb(c('store_write_bytes', 0))} to the store; "
          f"{c('pages_dropped', 0)} clean pages dropped")
    print(f"  restore         {us(latency, 'restore')} (p50 / p99)")
    print(f"  first touch     {us(latency, 'first_touch')} (p50 / p99)")


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("dir", type=Path)
    ap.add_argument("--dram", type=int, required=True)
    ap.add_argument("--limit", type=int, required=True)
    args = ap.parse_args()
    runs = {}
    for mode in NAMES:
        path = args.dir / f"{mode}.json"
        if path.exists():
            runs[mode] = json.loads(path.read_text())
    same = print_runs(runs, args)
    if "kvmem" in runs:
        print_kvmem(runs["kvmem"])
        if "limited" in runs:
            ratio = runs["kvmem"]["steady_tokens_per_s"] / runs["limited"]["steady_tokens_per_s"]
            print(f"\nkvmem: {ratio:.2f} x the tokens/s of the engine's own mmap in the same memory")
    if not same:
        print("\nthe output is NOT the same", file=sys.stderr)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
