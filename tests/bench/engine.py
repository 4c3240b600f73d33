#!/usr/bin/env python3
"""The engine benchmark: an unmodified engine with 40 % of its weights and KV cache in DRAM.

  dense   bytes read per token against the clairvoyant minimum, tokens/s against the engine's own
          mmap in a memory cgroup of the same size, against what the disk allows, and against a
          program made to stream the same pages beside the same computation
  moe     bytes read per token and tokens/s against the kernel's page cache in the same cgroup

The clairvoyant minimum of a cyclic access to N pages with C of them in DRAM is N - C pages a cycle.
What the disk allows is its bandwidth (O_DIRECT, 2 MiB, 8 at a time, on the model's own file, before
and after each run) over that minimum, or the engine's speed without a limit if that is less.

kvmem and its peer run in adjacent pairs; what is printed are medians over the pairs. The cgroup is
larger than kvmem's budget by what the engine needs besides weights and KV cache (measured), so both
have the same memory for the same things. Exits 1 if any output differs.
"""

import argparse
import concurrent.futures
import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
BUILD = Path(os.environ.get("KVMEM_BUILD", ROOT / "build" / "release"))
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kvmem"
PAGE = 2 << 20
CANNOT = 77
THREADS = 2  # of the engine, when it is measured

# What each case runs. Tokens: enough for the steady part to see each page several times.
CASES = {
    "dense": {"tokens": 48, "warm": 16},
    "moe": {"tokens": 160, "warm": 40},
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def engine_python() -> str:
    got = subprocess.run([str(EXAMPLES / "venv.sh")], stdout=subprocess.PIPE, text=True)
    if got.returncode != 0:
        say("engine: skipped, the engine package cannot be had here")
        sys.exit(CANNOT)
    return got.stdout.strip()


def huge_buffers(count: int) -> list[memoryview]:
    """2 MiB buffers on huge pages, where the kernel gives them: with 4 KiB pages a read needs more
    segments than some disks take at once, and a benchmark would call half the speed the limit."""
    area = mmap.mmap(-1, (count + 1) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(area)) % PAGE
    area.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(area)[start:]
    view[: count * PAGE : 4096] = bytes(count * PAGE // 4096)
    return [view[i * PAGE : (i + 1) * PAGE] for i in range(count)]


def disk_bytes_per_s(path: str, seconds: float = 6.0, depth: int = 8) -> float:
    """O_DIRECT reads of 2 MiB, `depth` in flight, in file order, over and over."""
    pages = os.path.getsize(path) // PAGE
    buffers = huge_buffers(depth)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    start = time.monotonic()

    def reader(lane: int) -> int:
        done, page = 0, lane
        while time.monotonic() - start < seconds:
            done += os.preadv(fd, [buffers[lane]], page % pages * PAGE)
            page += depth
        return done

    try:
        with concurrent.futures.ThreadPoolExecutor(depth) as lanes:
            total = sum(lanes.map(reader, range(depth)))
        return total / (time.monotonic() - start)
    finally:
        os.close(fd)


class Case:
    def __init__(self, name: str, args: argparse.Namespace, python: str):
        self.name, self.args, self.python = name, args, python
        self.tokens = args.tokens or CASES[name]["tokens"]
        self.warm = CASES[name]["warm"] if not args.tokens else args.tokens // 3
        self.model = self.make_model()
        self.size = json.loads(self.call("gguf_size.py", self.model, "--n-ctx", str(args.n_ctx)))
        whole = self.size["weights_bytes"] + self.size["kv_bytes"]
        self.dram = whole * args.percent // 100 // PAGE * PAGE
        self.plain = self.measure("plain")
        self.limit = self.dram + max(0, self.plain["max_rss_bytes"] - whole)
        self.same = True

    def call(self, script: str, *args: str) -> str:
        got = subprocess.run([self.python, str(EXAMPLES / script), *args], stdout=subprocess.PIPE,
                             text=True)
        if got.returncode == 125:
            say("engine: skipped, no memory cgroup can be made here for the peer")
            sys.exit(CANNOT)
        if got.returncode != 0:
            say(f"engine: {script} {' '.join(args)} exited {got.returncode}")
            sys.exit(1)
        return got.stdout

    def make_model(self) -> str:
        path = CACHE / f"{self.name}-{self.args.size}.gguf"
        if not path.exists():
            self.call("make_gguf.py", "--arch", self.name, "--size", self.args.size, str(path))
        return str(path)

    def measure(self, mode: str) -> dict:
        extra = []
        if mode == "limited":
            extra = ["--limit", str(self.limit)]
        elif mode == "kvmem":
            store = CACHE / f"bench-{os.getpid()}.store"
            extra = ["--dram", str(self.dram), "--store", str(store),
                     "--store-size", str(self.size["weights_bytes"] + 2 * self.size["kv_bytes"] + (1 << 30))]
        try:
            text = self.call("measure.py", mode, self.model, "--n-predict", str(self.tokens),
                             "--warm", str(self.warm), "--threads", str(THREADS), "--n-ctx", str(self.args.n_ctx), *extra)
        finally:
            if mode == "kvmem":
                store.unlink(missing_ok=True)
        result = json.loads(text)
        say(f"  {self.name} {mode}: {result['steady_tokens_per_s']:.2f} tokens/s, "
            f"{result['steady_read_bytes'] / 2**20:.0f} MiB read per token")
        return result

    def minimum_bytes(self) -> int:
        """Per token, dense: all weights but the embedding (one row), and the used part of the KV
        cache: K and V of each layer lie apart, n_ctx long, and fill from their start."""
        s = self.size
        weights = -(-(s["weights_bytes"] - s["embedding_bytes"]) // PAGE) + 1
        used = len(self.plain["tokens"]) + 17
        slab = s["kv_bytes_per_token"] // s["layers"] // 2 * used
        kv = 2 * s["layers"] * -(-slab // PAGE)
        return max(0, weights + kv - self.dram // PAGE) * PAGE

    def streamed(self) -> float:
        """tokens/s of bench_engine_stream: as many pages read per token as the clairvoyant minimum,
        and as long computed with each as the engine does without a limit."""
        pages = os.path.getsize(self.model) // PAGE
        per_page_ns = int(1e9 / self.plain["steady_tokens_per_s"] / pages)
        got = subprocess.run([str(BUILD / "bin" / "bench_engine_stream"), self.model,
                              str(pages - self.minimum_bytes() // PAGE), str(self.tokens), str(THREADS),
                              str(per_page_ns)], stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(got.stdout)["tokens_per_s"]

    def pairs(self) -> list[dict]:
        out = []
        for i in range(self.args.pairs):
            say(f"{self.name}: pair {i + 1} of {self.args.pairs}")
            disk = [disk_bytes_per_s(self.model)]
            peer = self.measure("limited")
            disk.append(disk_bytes_per_s(self.model))
            ours = self.measure("kvmem")
            disk.append(disk_bytes_per_s(self.model))
            say(f"  disk: {' '.join(f'{d / 1e9:.2f}' for d in disk)} GB/s")
            for run in (peer, ours):
                self.same &= run["digest"] == self.plain["digest"]
            out.append({"peer": peer, "ours": ours, "disk": statistics.mean(disk[1:])})
            if self.name == "dense" and self.minimum_bytes() > 0:
                out[-1]["streamed"] = self.streamed()
                say(f"  dense streamed: {out[-1]['streamed']:.2f} tokens/s")
        return out


def emit(case: Case, metric: str, unit: str, pairs: list[tuple[float, float | None]]) -> None:
    """Medians over (value, reference) pairs; the ratio is the median of the pairs' ratios."""
    ratios = [v / r for v, r in pairs if r]
    print(json.dumps({
        "bench": "engine",
        "case": f"{case.name} {case.args.percent} %",
        "metric": metric,
        "value": statistics.median(v for v, _ in pairs),
        "unit": unit,
        "reference": statistics.median(r for _, r in pairs) if pairs[0][1] is not None else None,
        "ratio": statistics.median(ratios) if ratios else None,
    }), flush=True)


def run_case(case: Case) -> None:
    pairs = case.pairs()
    ours = [p["ours"] for p in pairs]
    peers = [p["peer"] for p in pairs]

    def both(key: str) -> list[tuple[float, float]]:
        return [(o[key], p[key]) for o, p in zip(ours, peers)]

    emit(case, "read per token, against own mmap", "B", both("steady_read_bytes"))
    emit(case, "tokens/s, against own mmap", "1/s", both("steady_tokens_per_s"))
    if case.name == "dense":
        least = case.minimum_bytes()
        allowed = [min(case.plain["steady_tokens_per_s"], p["disk"] / max(1, least)) for p in pairs]
        emit(case, "read per token, against clairvoyant", "B",
             [(o["steady_read_bytes"], least) for o in ours])
        emit(case, "tokens/s, against the disk", "1/s",
             [(o["steady_tokens_per_s"], a) for o, a in zip(ours, allowed)])
        if "streamed" in pairs[0]:
            emit(case, "tokens/s, against a program that only streams", "1/s",
                 [(p["ours"]["steady_tokens_per_s"], p["streamed"]) for p in pairs])
    emit(case, "tokens/s, against no limit", "1/s",
         [(o["steady_tokens_per_s"], case.plain["steady_tokens_per_s"]) for o in ours])
    if all("device_read_bytes" in o for o in ours):
        emit(case, "read per token, against the device's own count", "B",
             [(o["steady_read_bytes"], o["device_read_bytes"]) for o in ours])
    emit(case, "written per token", "B", [(o["steady_write_bytes"], None) for o in ours])
    emit(case, "disk, 2 MiB, depth 8", "B/s", [(p["disk"], None) for p in pairs])
    emit(case, "output identical", "bool", [(int(case.same), 1)])


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--case", choices=tuple(CASES), action="append", help="(default: all)")
    ap.add_argument("--pairs", type=int, default=5)
    ap.add_argument("--percent", type=int, default=40)
    ap.add_argument("--size", default="1200M")
    ap.add_argument("--tokens", type=int, help="(default: per case)")
    ap.add_argument("--n-ctx", type=int, default=4096)
    ap.add_argument("--json", action="store_true", help="always on: one object per result")
    args = ap.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    python, same = engine_python(), True
    for name in args.case or CASES:
        case = Case(name, args, python)
        run_case(case)
        same &= case.same
    if not same:
        say("engine: the output differs from the run without a limit")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
