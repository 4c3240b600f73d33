#!/usr/bin/env python3
"""Plays a trace of requests against a kvmemd of its own, with real bytes: every block is made from its
name, put, moved between DRAM and NVMe by the policy, and compared whenever it comes back. Then the
daemon is started anew and what it stored is read back.

Beside each policy's hit rate stands what the simulator says of the same requests and capacity, and
beside the time to first token what it would be if all were computed. The model's time is modelled
(--prefill-tokens a second), the waiting for blocks is measured.

Leaves replay.json and replay.svg in --out. Exits 0 only if no block had a wrong byte.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
from huge_pages import huge_pages  # pylint: disable=wrong-import-position
MIB = 1 << 20
PAGE = 2 * MIB
TOKENS_PER_BLOCK = 512  # Mooncake's
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e"]


def fail(text):
    sys.exit(f"replay: {text}")


def size(text):
    got = re.fullmatch(r"(\d+)([KMGT]iB)?", text)
    if not got:
        raise argparse.ArgumentTypeError(f"{text}: write a size such as 4GiB")
    return int(got[1]) << {None: 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}[got[2]]


def geometry(text):
    """Bytes of K and V of a block."""
    got = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)", text)
    if not got:
        raise argparse.ArgumentTypeError(f"{text}: write LAYERSxKV_HEADSxHEAD_DIMxBYTES, such as 24x2x64x2")
    layers, heads, dim, width = map(int, got.groups())
    return 2 * layers * heads * dim * width * TOKENS_PER_BLOCK


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--trace", type=Path, help="one JSON object a line, as Mooncake's")
    source.add_argument("--generate", type=int, default=1, metavar="SEED", help="conversations made up (the default)")
    parser.add_argument("--requests", type=int, default=1500, help="of those made up")
    parser.add_argument("--minutes", type=float, help="only the first ones of the trace")
    parser.add_argument("--policy", default="kvmem,lru", help="one or several: kvmem, lru, lfu-da, arc, s3fifo")
    parser.add_argument("--dram", type=size, default=size("1GiB"), help="for blocks")
    parser.add_argument("--store", type=size, default=size("8GiB"), help="for blocks")
    block = parser.add_mutually_exclusive_group()
    block.add_argument("--geometry", type=geometry, metavar="LxHxDxB",
                       help="layers, KV heads, their dimension, bytes each: what a block of 512 tokens has")
    block.add_argument("--block-bytes", type=size, default=PAGE)
    parser.add_argument("--speed", type=int, default=0, help="seconds of the trace in one; 0: as fast as it goes")
    parser.add_argument("--threads", type=int, default=4, help="requests at once")
    parser.add_argument("--prefill-tokens", type=int, default=10000, help="a second, what the model would compute")
    parser.add_argument("--plan", action="store_true", help="stored blocks are computed where that is sooner")
    parser.add_argument("--huge-pages", action="store_true", help="take them into the kernel's pool meanwhile (root)")
    parser.add_argument("--on", type=Path, default=ROOT / "build", help="folder on the disk to use")
    parser.add_argument("--build", type=Path, default=ROOT / "build/release")
    parser.add_argument("--out", type=Path, default=Path.cwd())
    return parser.parse_args()


def build(folder):
    if folder == ROOT / "build/release":
        log = ROOT / "build/replay.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w") as out:
            ready = (folder / "build.ninja").exists() or subprocess.run(
                ["cmake", "--preset", "release"], cwd=ROOT, stdout=out, stderr=out, check=False).returncode == 0
            targets = ["kvmemd", "kvmemctl", "kvmem", "replay_player", "sim_policy"]
            if not ready or subprocess.run(["cmake", "--build", "--preset", "release", "--target", *targets], cwd=ROOT,
                                           stdout=out, stderr=out, check=False).returncode != 0:
                fail(f"the build failed, see {log}; tests/run.sh installs what it needs")
    for name in ("kvmemd", "kvmemctl", "replay_player", "sim_policy"):
        if not (folder / "bin" / name).exists():
            fail(f"{folder}/bin/{name} is not built")


def budget(o):
    """Of all frames: what blocks may not have is the regions', of which there are none here."""
    return o.dram * 4 // 3 + 64 * MIB


class Daemon:
    def __init__(self, o, policy, work):
        self.o, self.socket = o, f"{work}/sock"
        self.log = open(f"{work}/log", "a+", encoding="utf-8")
        config = Path(work, "kvmemd.toml")
        config.write_text(f"""
[dram]
budget = {budget(o)}
[nvme]
path = "{work}/store"
size = {o.store + o.store // 32 + 512 * MIB}
[cache]
dram = {o.dram}
store = {o.store}
policy = "{policy}"
""")
        self.command = [o.build / "bin/kvmemd", "--config", config, "--socket", self.socket, "--runtime-dir", work]

    def start(self):
        self.process = subprocess.Popen(self.command, stderr=self.log)
        end = time.monotonic() + 60
        while self.status() is None:
            if self.process.poll() is not None or time.monotonic() > end:
                self.log.seek(0)
                fail("kvmemd did not start:\n" + self.log.read()[-2000:])
            time.sleep(0.02)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()

    def status(self):
        got = subprocess.run([self.o.build / "bin/kvmemctl", "--socket", self.socket, "--json", "status"],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        return json.loads(got.stdout) if got.returncode == 0 else None

    def cache(self):
        caches = (self.status() or {}).get("caches", [])
        return caches[0] if caches else {}


def bar(share, text):
    if sys.stderr.isatty():
        full = round(30 * share)
        print(f"\r  [{'#' * full}{'.' * (30 - full)}] {text}\033[K", end="", file=sys.stderr, flush=True)


def play(o, daemon, source, what, puts=True):
    """The player's last line, and one sample a second with the daemon's state in it."""
    command = [o.build / "bin/replay_player", *source, "--block-bytes", str(o.block_bytes), "--threads",
               str(o.threads), "--speed", str(o.speed if puts else 0), "--prefill-tokens", str(o.prefill_tokens),
               "--puts", str(int(puts)), "--plan", str(int(o.plan and puts))]
    player = subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "KVMEM_SOCKET": daemon.socket})
    samples = []
    for line in player.stdout:
        got = json.loads(line)
        got["daemon"] = daemon.cache()
        samples.append(got)
        hit = 100 * got["found"] / max(got["asked"], 1)
        bar(got["requests"] / got["of"], f"{what}: {got['requests']} of {got['of']} requests, {hit:.1f} % found")
    if sys.stderr.isatty():
        print(file=sys.stderr)
    code = player.wait()
    if not samples or "done" not in samples[-1]:
        fail(f"the player ended with status {code}")
    return samples[-1], samples


def simulate(o, source, policy, capacity):
    kind = {"--trace": [], "--generate": ["--generate"]}[source[0]]
    rest = source[2:] if kind else []
    got = subprocess.run([o.build / "bin/sim_policy", *kind, source[1], *rest, "--json", "--policies", policy,
                          "--capacities", str(capacity)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(got.stdout)["prefix_hit_pct"]


def run(o, policy, source):
    with tempfile.TemporaryDirectory(dir=o.on, prefix="replay.") as work:
        free = shutil.disk_usage(work).free
        if free < o.store + o.store // 16 + 1024 * MIB:
            fail(f"{o.on} has {free >> 30} GiB free: choose a smaller --store, or another folder with --on")
        daemon = Daemon(o, policy, work)
        daemon.start()
        try:
            last, samples = play(o, daemon, source, policy)
            state = daemon.cache()
            daemon.stop()
            daemon.start()
            again, _ = play(o, daemon, source, f"{policy}, read back", puts=False)
            read_back = daemon.cache()
        finally:
            daemon.stop()
    block_bytes = o.block_bytes
    capacity = max(state["store_capacity_bytes"], state["dram_capacity_bytes"]) // (-(-block_bytes // PAGE) * PAGE)
    return {
        "policy": policy,
        "requests": last["requests"],
        "blocks_asked": last["asked"],
        "prefix_hit_pct": 100 * last["found"] / last["asked"],
        "simulator_hit_pct": simulate(o, source, policy, capacity),
        "capacity_blocks": capacity,
        "found_in_dram_pct": 100 * (last["found"] - last["restored"]) / last["asked"],
        "found_on_nvme_pct": 100 * last["restored"] / last["asked"],
        "bytes_put": last["put"] * block_bytes,
        "bytes_refused": last["refused"] * block_bytes,
        "bytes_found": last["found"] * block_bytes,
        "bytes_written": state["blocks_written"] * block_bytes,
        "bytes_restored": last["restored"] * block_bytes,
        "bytes_left_to_compute": last["computed"] * block_bytes,
        "mismatched_blocks": last["mismatched"] + again["mismatched"],
        "wall_s": last["wall_s"],
        "ttft_ms": {"p50": last["ttft_p50_ms"], "p99": last["ttft_p99_ms"], "mean": last["ttft_mean_ms"]},
        "computed_ttft_ms": {"p50": last["computed_ttft_p50_ms"], "p99": last["computed_ttft_p99_ms"]},
        "after_restart": {"blocks_found": again["found"], "bytes_restored": again["restored"] * block_bytes,
                          "restored_bytes_per_s": again["restored"] * block_bytes / again["wall_s"],
                          "read_errors": read_back["read_errors"]},
        "daemon": state,
        "samples": samples,
    }


# ------------------------------------------------------------------------------------- the report


def panel(title, unit, lines, left, top, width=560, height=200):
    """SVG of lines (label, colour, dashed, [(x, y)]) over the time of the trace."""
    x_max = max((x for *_, points in lines for x, _ in points), default=1) or 1
    y_max = max((y for *_, points in lines for _, y in points), default=1) or 1
    out = [f'<text x="{left}" y="{top - 8}" font-weight="bold">{title}</text>',
           f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>']
    for i in range(5):
        y = top + height - height * i / 4
        out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{y_max * i / 4:.3g}</text>')
        out.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" stroke="#eee"/>')
    out.append(f'<text x="{left + width}" y="{top + height + 16}" text-anchor="end">{x_max / 60:.3g} min of the '
               f"trace</text>")
    out.append(f'<text x="{left + width}" y="{top - 8}" text-anchor="end">{unit}</text>')
    for n, (label, colour, dashed, points) in enumerate(lines):
        path = " ".join(f"{left + width * x / x_max:.1f},{top + height - height * y / y_max:.1f}" for x, y in points)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
        y = top + 14 + 15 * n
        out.append(f'<line x1="{left + width + 10}" y1="{y - 4}" x2="{left + width + 34}" y2="{y - 4}" '
                   f'stroke="{colour}" stroke-width="2"{dash}/>')
        out.append(f'<text x="{left + width + 40}" y="{y}">{label}</text>')
    return "\n".join(out)


def picture(runs):
    hits, moved, stays = [], [], []
    for run_, colour in zip(runs, COLOURS * 2):
        name, samples = run_["policy"], run_["samples"]

        def over_time(value):
            return [(0, 0)] + [(s["trace_s"], value(s)) for s in samples]  # pylint: disable=cell-var-from-loop

        block = samples[-1]["block_bytes"]
        hits.append((f"{name}: found", colour, False, over_time(lambda s: 100 * s["found"] / max(s["asked"], 1))))
        hits.append((f"{name}: of that on NVMe", colour, True,
                     over_time(lambda s: 100 * s["restored"] / max(s["asked"], 1))))
        moved.append((f"{name}: put", colour, False, over_time(lambda s: s["put"] * block / 1e9)))
        moved.append((f"{name}: restored", colour, True, over_time(lambda s: s["restored"] * block / 1e9)))
        stays.append((f"{name}: NVMe", colour, False,
                      over_time(lambda s: s["daemon"].get("store_used_bytes", 0) / 1e9)))
        stays.append((f"{name}: DRAM", colour, True,
                      over_time(lambda s: s["daemon"].get("dram_used_bytes", 0) / 1e9)))
    return ('<svg xmlns="http://www.w3.org/2000/svg" width="860" height="830" font-family="sans-serif" '
            'font-size="12">\n<rect width="860" height="830" fill="white"/>\n'
            + panel("Blocks of prompts found, so far", "%", hits, 60, 40) + "\n"
            + panel("Bytes moved", "GB", moved, 60, 310) + "\n"
            + panel("Bytes held", "GB", stays, 60, 580) + "\n</svg>\n")


def main():
    o = options()
    if o.geometry:
        o.block_bytes = o.geometry
    build(o.build)
    with tempfile.TemporaryDirectory() as scratch:
        if o.trace:
            if not o.trace.exists():
                fail(f"{o.trace} is not there")
            part = Path(scratch, "trace.jsonl")
            with o.trace.open() as lines, part.open("w") as out:
                for line in lines:
                    if o.minutes is None or (line.strip() and json.loads(line)["timestamp"] < o.minutes * 60000):
                        out.write(line)
            source = ["--trace", str(part)]
        else:
            source = ["--generate", str(o.generate), "--requests", str(o.requests)]
        runs = []
        for policy in o.policy.split(","):
            with huge_pages(budget(o) if o.huge_pages else 0):
                runs.append(run(o, policy, source))
    o.out.mkdir(parents=True, exist_ok=True)
    report = {"trace": str(o.trace or f"generated {o.generate}"), "minutes": o.minutes, "block_bytes": o.block_bytes,
              "dram_bytes": o.dram, "store_bytes": o.store, "threads": o.threads, "prefill_tokens": o.prefill_tokens,
              "plan": o.plan, "runs": runs}
    (o.out / "replay.json").write_text(json.dumps(report, indent=1) + "\n")
    (o.out / "replay.svg").write_text(picture(runs))
    print(f"{'':22}" + "".join(f"{r['policy']:>12}" for r in runs))
    rows = [("found, %", lambda r: f"{r['prefix_hit_pct']:.2f}"),
            ("  the simulator says", lambda r: f"{r['simulator_hit_pct']:.2f}"),
            ("  in DRAM, %", lambda r: f"{r['found_in_dram_pct']:.2f}"),
            ("  on NVMe, %", lambda r: f"{r['found_on_nvme_pct']:.2f}"),
            ("put, GB", lambda r: f"{r['bytes_put'] / 1e9:.1f}"),
            ("refused, GB", lambda r: f"{r['bytes_refused'] / 1e9:.1f}"),
            ("found, GB", lambda r: f"{r['bytes_found'] / 1e9:.1f}"),
            *([("left to compute, GB", lambda r: f"{r['bytes_left_to_compute'] / 1e9:.1f}")] if o.plan else []),
            ("TTFT p50, ms", lambda r: f"{r['ttft_ms']['p50']:.0f}"),
            ("TTFT p99, ms", lambda r: f"{r['ttft_ms']['p99']:.0f}"),
            ("TTFT mean, ms", lambda r: f"{r['ttft_ms']['mean']:.0f}"),
            ("  computed: p50", lambda r: f"{r['computed_ttft_ms']['p50']:.0f}"),
            ("  computed: p99", lambda r: f"{r['computed_ttft_ms']['p99']:.0f}"),
            ("read back, GB/s", lambda r: f"{r['after_restart']['restored_bytes_per_s'] / 1e9:.2f}"),
            ("mismatched blocks", lambda r: str(r["mismatched_blocks"]))]
    for name, value in rows:
        print(f"{name:22}" + "".join(f"{value(r):>12}" for r in runs))
    print(f"{o.out}/replay.json, {o.out}/replay.svg")
    return 1 if any(r["mismatched_blocks"] for r in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
