#!/usr/bin/env python3
"""What kvmem costs where it does not help.

  malloc    malloc and free below the threshold, with libkvmem preloaded against without, and
            against a library that interposes them and only jumps on to glibc's: no interposer
            can cost much less
  engine    tokens/s when everything fits into the budget, against the engine alone
  touch     first touch of a fresh page and restore of a stored one, against the kernel's own first
            touch of 2 MiB on transparent huge pages and a raw O_DIRECT read of 2 MiB from the same disk
  idle      an idle daemon: its own memory, its CPU time, and what it keeps for each page

Adjacent pairs; what is printed are medians over the pairs, for malloc the fastest run of each side
(see malloc_pairs), and p50/p99 over touches.
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
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT / "examples")]
import engine as engine_bench  # noqa: E402
import measure  # noqa: E402


def emit(case: str, metric: str, value: float, unit: str, reference=None) -> None:
    print(json.dumps({"bench": "overhead", "case": case, "metric": metric, "value": round(value, 4), "unit": unit,
                      "reference": None if reference is None else round(reference, 4),
                      "ratio": round(value / reference, 4) if reference else None}), flush=True)


def malloc_pairs(kind: str, pairs: int) -> None:
    program = [str(BUILD / "bin" / "bench_overhead_malloc"), kind]
    took: dict[str, list[float]] = {"kvmem": [], "jump": [], "plain": []}
    env = {"plain": None}
    for name, library in (("kvmem", "libkvmem.so"), ("jump", "libbench_overhead_jump.so")):
        env[name] = {**os.environ, "LD_PRELOAD": str(BUILD / "lib" / library)}
    for i in range(pairs):
        for name in list(took)[:: 1 if i % 2 == 0 else -1]:
            got = subprocess.run(program, env=env[name], check=True, stdout=subprocess.PIPE)
            took[name].append(float(got.stdout))
    # The fastest of all runs: code and heap lie elsewhere in each, which alone is worth up to half.
    for peer, what in (("plain", "malloc and free, against none"), ("jump", "malloc and free, against a jump")):
        emit(f"malloc_{kind}", what, min(took["kvmem"]), "ns", min(took[peer]))


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[int(q * (len(values) - 1))] if values else float("nan")


def raw_reads_us(path: str, count: int = 200) -> list[float]:
    buffer = engine_bench.huge_buffers(1)[0]
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    pages = os.path.getsize(path) // engine_bench.PAGE
    took = []
    try:
        for i in range(count):
            start = time.perf_counter()
            os.preadv(fd, [buffer], (i * 7919) % pages * engine_bench.PAGE)
            took.append((time.perf_counter() - start) * 1e6)
    finally:
        os.close(fd)
    return took


def touches(lines: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"fresh": [], "pressed": [], "restore": []}
    for line in lines.splitlines():
        kind, ns = line.split()
        found[kind].append(int(ns) / 1e3)
    return found


def touch(mib: int) -> None:
    program = [str(BUILD / "bin" / "bench_overhead_touch"), str(mib)]
    for _ in range(2):  # the first has a hypervisor give the pages that the second one gets
        kernel = touches(subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout)
    with tempfile.TemporaryDirectory(dir=engine_bench.CACHE) as work, measure.huge_pages(mib // 2 << 20):
        store = f"{work}/store"
        run = [measure.kvmemctl(), "run", "--private", "--keep", "--dram", f"{mib // 2}MiB", "--store", store,
               "--store-size", f"{2 * mib}MiB", "--", *program]
        done = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True)
        ours = touches(done.stdout)
        raw_file = f"{work}/raw"
        with open(raw_file, "wb") as f:
            for _ in range(128):
                f.write(os.urandom(engine_bench.PAGE))
            os.fsync(f.fileno())
        raw = raw_reads_us(raw_file)
    for q, name in ((0.5, "p50"), (0.99, "p99")):
        emit("first_touch", name, quantile(ours["fresh"], q), "us", quantile(kernel["fresh"], q))
        emit("first_touch_beyond_budget", name, quantile(ours["pressed"], q), "us", quantile(kernel["pressed"], q))
        emit("restore", name, quantile(ours["restore"], q), "us", quantile(raw, q))


def idle(seconds: float = 20.0) -> None:
    with tempfile.TemporaryDirectory(dir=engine_bench.CACHE) as work:
        socket = f"{work}/sock"
        daemon = subprocess.Popen([BUILD / "bin" / "kvmemd", "--socket", socket, "--runtime-dir", work, "--dram", "1GiB",
                                   "--store", f"{work}/store", "--store-size", "4GiB"], stderr=subprocess.DEVNULL)
        try:
            def status() -> dict:
                got = subprocess.run([measure.kvmemctl(), "--socket", socket, "status", "--json"],
                                     stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
                return json.loads(got.stdout) if got.returncode == 0 else {}

            def cpu_s() -> float:
                fields = Path(f"/proc/{daemon.pid}/stat").read_text().rsplit(")", 1)[1].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

            deadline = time.monotonic() + 10
            while not status() and time.monotonic() < deadline:
                time.sleep(0.05)
            before = cpu_s()
            time.sleep(seconds)
            emit("idle", "cpu", (cpu_s() - before) / seconds * 100, "%", 0.1)
            emit("idle", "rss", status()["daemon"]["rss_bytes"] / 1e6, "MB", 20)
            env = {**os.environ, "LD_PRELOAD": str(BUILD / "lib" / "libkvmem.so"), "KVMEM_SOCKET": socket}
            program = [str(BUILD / "bin" / "bench_overhead_touch"), "512"]
            engine_run = subprocess.Popen(program, env=env, stdout=subprocess.DEVNULL)
            while engine_run.poll() is None:
                now = status()
                if now["regions"]:
                    pages = now["regions"][0]["page_count"]
                    # The residency word of a page, beside what the planner says it has.
                    per_page = now["daemon"]["metadata_bytes"] / pages + 8
            emit("idle", "metadata", per_page, "B/page", 32)
        finally:
            daemon.terminate()
            daemon.wait(10)


def engine(size: str, pairs: int) -> None:
    python = engine_bench.engine_python()
    model = engine_bench.CACHE / f"overhead-{size}.gguf"
    if not model.exists():
        subprocess.run([python, str(ROOT / "examples" / "make_gguf.py"), str(model), "--size", size, "--quiet"],
                       check=True, stdout=sys.stderr)
    dram = int(os.path.getsize(model) * 2.5)

    def tokens_per_s(mode: str) -> float:
        out = subprocess.run([python, str(ROOT / "examples" / "measure.py"), mode, str(model), "--n-predict", "64",
                              "--no-drop", "--dram", str(dram)], check=True, stdout=subprocess.PIPE, text=True).stdout
        return json.loads(out)["steady_tokens_per_s"]

    plain, under, ratios = [], [], []
    for i in range(pairs):
        print(f"engine pair {i + 1} of {pairs}", file=sys.stderr)
        order = [(plain, "plain"), (under, "kvmem")]
        for into, mode in order if i % 2 == 0 else order[::-1]:
            into.append(tokens_per_s(mode))
        ratios.append(under[-1] / plain[-1])
    emit("engine_fits", "throughput", statistics.median(under), "tokens/s", statistics.median(plain))
    emit("engine_fits", "ratio_median_of_pairs", statistics.median(ratios), "")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--case", choices=("malloc", "touch", "idle", "engine"), action="append")
    ap.add_argument("--pairs", type=int, default=9)
    ap.add_argument("--mib", type=int, default=1024, help="memory that is touched (default 1024)")
    ap.add_argument("--size", default="600M", help="of the engine's model (default 600M)")
    ap.add_argument("--json", action="store_true", help="always on: one object per result")
    args = ap.parse_args()
    engine_bench.CACHE.mkdir(parents=True, exist_ok=True)
    cases = args.case or ["malloc", "touch", "idle", "engine"]
    if "malloc" in cases:
        for kind in ("small", "mixed"):
            malloc_pairs(kind, args.pairs)
    if "touch" in cases:
        touch(args.mib)
    if "idle" in cases:
        idle()
    if "engine" in cases:
        engine(args.size, args.pairs)


if __name__ == "__main__":
    main()
