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


def print_pages(status: dict) -> None:
    """Where the pages of each region were, near the end of the decoding."""
    columns = ("resident_pages", "stored_pages", "origin_pages", "fresh_pages")
    print(f"{'where the pages lived':<37} {'DRAM':>10} {'store':>10} {'model file':>10} {'untouched':>10}")
    total = dict.fromkeys(columns, 0)
    for region in status.get("regions", []):
        name = Path(region.get("path") or region.get("tag") or "memory").name
        cells = [region.get(c, 0) for c in columns]
        for c, n in zip(columns, cells):
            total[c] += n
        page = region["page_bytes"]
        print(f"  {name[:24]:<24} {region['kind'][:10]:<10} "
              + " ".join(f"{mib(n * page):>10}" for n in cells))
    for tier in status.get("tiers", []):
        if tier["name"] == "dram":
            print(f"  DRAM in use: {mib(tier['used_bytes'])} of {mib(tier['capacity_bytes'])}, "
                  f"{tier.get('backing', '?')} pages")


def print_kvmem(run: dict) -> None:
    report = run.get("report") or run.get("status", {})
    counters, latency = report.get("counters", {}), report.get("latency", {})

    def c(name: str) -> int:
        return counters.get(name, 0)

    print()
    print_pages(run.get("status", {}))
    print("\nwhat kvmem did, load included")
    print(f"  faults          {c('faults_missing')} missing, {c('faults_minor')} minor, "
          f"{c('faults_wp')} write-protect")
    print(f"  read            {gb(c('origin_read_bytes'))} from the model file, "
          f"{gb(c('store_read_bytes'))} from the store")
    print(f"  written         {gb(c('store_write_bytes'))} to the store; "
          f"{c('pages_dropped')} clean pages dropped without a write")
    print(f"  restore         {us(latency, 'restore')} (p50 / p99)")
    print(f"  first touch     {us(latency, 'first_touch')} (p50 / p99)")
    for warning in report.get("daemon", {}).get("warnings", []):
        print(f"  warning         {warning}")


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
