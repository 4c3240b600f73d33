#!/usr/bin/env python3
"""One run of the example engine, measured: prints (or writes to --output) one JSON object.

  plain    no limit
  limited  the engine's own mmap or allocations in a memory cgroup of --limit bytes
  kvmem    under `kvmemctl run` with --dram bytes of DRAM; the rest lives in --store or in the model

Exits 125 where no memory cgroup can be made, else as the engine does. To the engine's own result
it adds, over the steady part of the decoding (from token --warm to the last but one):
  steady_tokens_per_s   and the median and longest time for one, steady_token_ms_{p50,max}
  steady_read_bytes     per token: what was read for it, by the engine and by kvmem's daemon
  steady_write_bytes    per token: what kvmem wrote to its store
  device_read_bytes     per token: what the model's disk read for anyone, as the kernel counts it
and for kvmem `status` (as of the last but one token) and `report` (at exit).
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import memlimit
from huge_pages import huge_pages

HERE = Path(__file__).resolve().parent
BUILD = Path(os.environ.get("KVMEM_BUILD", HERE.parent / "build" / "release"))
SECTOR = 512


def kvmemctl() -> str:
    return str(BUILD / "bin" / "kvmemctl")


def device_sectors(path: str) -> int | None:
    """Sectors that the disk under `path` has read since boot; None if that is not one disk."""
    dev = os.stat(path).st_dev
    try:
        with open(f"/sys/dev/block/{os.major(dev)}:{os.minor(dev)}/stat") as f:
            return int(f.read().split()[2])
    except OSError:
        return None


class Observer:
    """Takes samples as the engine's progress lines come by."""

    def __init__(self, args: argparse.Namespace, socket: str | None):
        self.args, self.socket, self.samples = args, socket, {}

    def status(self) -> dict:
        if not self.socket:
            return {}
        out = subprocess.run([kvmemctl(), "--socket", self.socket, "status", "--json"],
                             capture_output=True, text=True)
        return json.loads(out.stdout) if out.returncode == 0 else {}

    def line(self, text: str) -> None:
        words = text.split()
        if len(words) != 4 or words[0] != "token":
            print(text, end="", file=sys.stderr)
            return
        token = int(words[1].split("/")[0])
        if sys.stderr.isatty():
            print(f"\r  {self.args.mode}: token {words[1]}", end="", file=sys.stderr, flush=True)
        if token in (self.args.warm, self.args.n_predict - 1):
            self.samples[token] = {
                "engine_read_bytes": int(words[3]),
                "sectors": device_sectors(self.args.model),
                "status": self.status(),
            }

    def steady(self, token_times_s: list[float]) -> dict:
        first, last = self.args.warm, self.args.n_predict - 1
        if first not in self.samples or last not in self.samples:
            return {}
        a, b, n = self.samples[first], self.samples[last], last - first
        times = token_times_s[first - 1:last]
        gaps = sorted(y - x for x, y in zip(times, times[1:]))
        out = {
            "steady_tokens": n,
            "steady_tokens_per_s": n / sum(gaps),
            "steady_token_ms_p50": gaps[n // 2] * 1e3,
            "steady_token_ms_max": gaps[-1] * 1e3,
        }
        read, written = b["engine_read_bytes"] - a["engine_read_bytes"], 0
        if b["status"]:
            def counted(*names: str) -> int:
                return sum(b["status"]["counters"].get(k, 0) - a["status"]["counters"].get(k, 0)
                           for k in names)
            read += counted("origin_read_bytes", "store_read_bytes")
            written = counted("store_write_bytes")
            out["status"] = b["status"]
        out["steady_read_bytes"], out["steady_write_bytes"] = read / n, written / n
        if a["sectors"] is not None:
            out["device_read_bytes"] = (b["sectors"] - a["sectors"]) * SECTOR / n
        return out


def engine_command(args: argparse.Namespace, output: str) -> list[str]:
    return [sys.executable, str(HERE / "engine.py"), args.model, "--progress", "--output", output,
            "--mmap" if args.mmap else "--no-mmap", "--threads", str(args.threads),
            "--n-ctx", str(args.n_ctx), "--n-predict", str(args.n_predict)]


def kvmem_command(args: argparse.Namespace, socket: str, report: str) -> list[str]:
    out = [kvmemctl(), "--socket", socket, "run", "--dram", str(args.dram), "--json-report", report]
    if args.store:
        out += ["--store", args.store, "--store-size", str(args.store_size)]
    return [*out, "--"]


def measure(args: argparse.Namespace) -> tuple[int, dict]:
    with tempfile.TemporaryDirectory(prefix="kvmem-measure-") as tmp:
        output, report, socket = (os.path.join(tmp, n) for n in ("out.json", "report.json", "sock"))
        command = engine_command(args, output)
        if args.mode == "kvmem":
            command = kvmem_command(args, socket, report) + command
        observer = Observer(args, socket if args.mode == "kvmem" else None)
        if args.drop:
            memlimit.drop_cache(args.model)
        cgroup = memlimit.make(args.limit) if args.mode == "limited" else None
        try:
            with huge_pages(args.dram) if args.mode == "kvmem" else contextlib.nullcontext():
                code = memlimit.run(cgroup, command, observer.line)
        finally:
            if cgroup:
                memlimit.remove(cgroup)
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
        if code != 0:
            return code, {}
        with open(output) as f:
            result = json.load(f)
        result["mode"] = args.mode
        result |= observer.steady(result["token_times_s"])
        if os.path.exists(report):
            with open(report) as f:
                result["report"] = json.load(f)
        return 0, result


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("mode", choices=("plain", "limited", "kvmem"))
    ap.add_argument("model")
    ap.add_argument("--no-mmap", dest="mmap", action="store_false", default=True)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--n-ctx", type=int, default=4096)
    ap.add_argument("--n-predict", type=int, default=32)
    ap.add_argument("--warm", type=int, help="tokens before the steady part (default a quarter)")
    ap.add_argument("--limit", type=int, default=0, help="bytes, for limited")
    ap.add_argument("--dram", type=int, default=0, help="bytes, for kvmem")
    ap.add_argument("--store", help="kvmem's store file")
    ap.add_argument("--store-size", type=int, default=4 << 30, help="bytes")
    ap.add_argument("--no-drop", dest="drop", action="store_false", default=True,
                    help="leave the model in the page cache")
    ap.add_argument("--output")
    args = ap.parse_args(argv)
    if args.warm is None:
        args.warm = max(1, args.n_predict // 4)
    if not 1 <= args.warm < args.n_predict - 1:
        ap.error("--n-predict is too small to have a steady part")
    return args


def main() -> int:
    args = parse_args()
    # Where cores are few or shared, engine threads that spin at a barrier keep from the core whom
    # they wait for: another thread of theirs, the kernel's reads, kvmem's daemon. Same for each mode.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        code, result = measure(args)
    except memlimit.NoCgroup as e:
        print(f"measure.py: no memory cgroup can be made: {e}", file=sys.stderr)
        return memlimit.CANNOT
    if code == 0:
        text = json.dumps(result)
        if args.output:
            Path(args.output).write_text(text)
        else:
            print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
