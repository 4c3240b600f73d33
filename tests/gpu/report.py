#!/usr/bin/env python3
"""Asks every fact of gpu_facts and model.py, and writes what they say as JSON and as Markdown.

Each case is a process with a limit in time: what one loses, be it the device, is lost to it alone. run.sh
builds and calls this.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

HERE = Path(__file__).resolve().parent
GIB = 1 << 30
MIB = 1 << 20
Record = dict[str, Any]


@dataclass
class Case:
    command: list[str]
    limit_s: float
    preload: Optional[dict[str, str]] = None  # None: without libkvmem


@dataclass
class Outcome:
    command: str
    ended: str  # done, skipped, or why it did not finish
    seconds: float
    records: list[Record]
    errors: str = ""

    @property
    def lost(self) -> bool:
        return self.ended not in ("done", "skipped")


@dataclass
class Fact:
    number: int
    name: str
    question: str
    cases: Callable[["Suite"], list[Case]]
    sentence: Callable[["Result"], str]
    # Run after the cases, for what one case alone cannot say.
    compare: Callable[["Suite", "Result"], None] = lambda suite, result: None


@dataclass
class Result:
    fact: Fact
    outcomes: list[Outcome] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # how to read the tables
    verdict: str = ""
    sentence: str = ""

    def of(self, kind: str) -> list[Record]:
        return [r for r in self.records if r["kind"] == kind]

    def figure(self, row: str, column: str) -> Optional[float]:
        return next((r["median"] for r in self.of("figure") if (r["row"], r["column"]) == (row, column)), None)

    def holds(self, text: str) -> list[bool]:
        return [r["holds"] for r in self.of("answer") if text in r["name"]]

    def settle(self) -> None:
        missing = [c for c in self.of("check") if not c["holds"]]
        lost = [o for o in self.outcomes if o.lost]
        if missing:
            self.verdict, self.sentence = "FAILS", f"{missing[0]['name']}: {missing[0]['text']}"
        elif lost:
            self.verdict, self.sentence = "FAILS", f"`{lost[0].command}`: {lost[0].ended}"
        elif not [r for r in self.records if r["kind"] != "skip"]:
            skipped = self.of("skip")
            self.verdict, self.sentence = "skipped", skipped[0]["text"] if skipped else "nothing was asked"
        else:
            self.verdict, self.sentence = "holds" if self.of("check") else "settled", self.fact.sentence(self)


class Suite:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.build: Path = options.build
        self.begin = time.monotonic()
        self.environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and not k.startswith("KVMEM")}
        if options.softgpu:
            folders = [str(self.build / "lib" / "softgpu"), os.environ.get("LD_LIBRARY_PATH", "")]
            self.environment["LD_LIBRARY_PATH"] = ":".join(f for f in folders if f)
        self.device: dict[str, str] = {}
        self.head: dict[str, Any] = {}
        self.results: list[Result] = []

    def left_s(self) -> float:
        return self.options.limit - (time.monotonic() - self.begin)

    def facts(self, *words: str) -> list[str]:
        command = [str(self.build / "bin" / "gpu_facts"), *words, "--scratch", str(self.build)]
        return [*command, "--quick"] if self.options.softgpu else command

    def run(self, case: Case) -> Outcome:
        environment = dict(self.environment)
        if case.preload is not None:
            environment |= {"LD_PRELOAD": str(self.build / "lib" / "libkvmem.so"), "KVMEM_DEVICE": "1",
                            "KVMEM_SOCKET": "/nonexistent", **case.preload}
        named = " ".join(Path(w).name if "/" in w else w for w in case.command if w not in ("--quick", sys.executable))
        named = named.split(" --scratch")[0]
        limit = min(case.limit_s, self.left_s())
        if limit <= 0:
            return Outcome(named, "not run: the suite's time was up", 0, [])
        start = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(case.command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                       start_new_session=True)
            try:
                code = process.wait(limit)
                ended = {0: "done", 77: "skipped"}.get(code, f"exit {code}")
                if code < 0:
                    ended = f"killed by {signal.Signals(-code).name}"
            except subprocess.TimeoutExpired:
                ended = f"not done after {limit:.0f} s"
                os.killpg(process.pid, signal.SIGKILL)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    ended += ", and cannot be killed"
            out.seek(0)
            err.seek(0)
            records = []
            for line in out.read().decode(errors="replace").splitlines():
                try:
                    records.append(json.loads(line))
                except ValueError:
                    continue  # the last line of a process that was killed
            errors = err.read().decode(errors="replace")[-2000:]
        if self.device and any(r["kind"] == "skip" and r["text"] == "no GPU" for r in records):
            ended = "the GPU is gone"
        open_question = None
        for record in records:
            open_question = record if record["kind"] == "asked" else None
        records = [r for r in records if r["kind"] != "asked"]
        if open_question and ended not in ("done", "skipped"):
            records.append({"kind": open_question["as"], "name": open_question["name"], "holds": False, "text": ended})
        # What was asked last does not hold: that says more than how the process ended.
        last = records[-1] if records else {}
        if last.get("holds") is False and (open_question or ended == "exit 1"):
            ended = "done"
        return Outcome(named, ended, time.monotonic() - start, records, errors)

    def ask(self, fact: Fact) -> None:
        result = Result(fact)
        print(f"gpu: {fact.number}. {fact.question}", file=sys.stderr, flush=True)
        for case in fact.cases(self):
            outcome = self.run(case)
            result.outcomes.append(outcome)
            result.records += outcome.records
        fact.compare(self, result)
        result.settle()
        print(f"gpu:    {result.verdict}: {result.sentence}", file=sys.stderr, flush=True)
        self.results.append(result)

    def room_to_move(self) -> int:
        """Bytes for fact 10, of the GPU's memory and as many of the host's."""
        if self.options.move:
            return self.options.move * GIB
        if self.options.softgpu:
            return 256 * MIB
        room = min(int(self.device.get("free_bytes", 0)) - 3 * GIB, memory_bytes("MemAvailable") - 4 * GIB, 16 * GIB)
        return max(room // GIB, 1) * GIB


def memory_bytes(which: str) -> int:
    found = re.search(rf"^{which}: *(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def number(value: Optional[float]) -> str:
    if value is None:
        return "unknown"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def check(result: Result, name: str, holds: bool, text: str) -> None:
    result.records.append({"kind": "check", "name": name, "holds": holds, "text": text})


def figure(result: Result, row: str, column: str, unit: str, samples: list[float], rates: bool = False) -> None:
    ordered = sorted(samples, reverse=rates)  # the 99th percentile is the bad end
    result.records.append({"kind": "figure", "row": row, "column": column, "unit": unit,
                           "median": statistics.median(ordered), "p99": ordered[int(0.99 * len(ordered))],
                           "n": len(ordered)})


# 1

def mixed_cases(suite: Suite) -> list[Case]:
    copies = [("copy", way, end) for way in ("to", "from") for end in ("device", "pinned", "pageable")]
    return [Case(suite.facts("mixed", *words), 30)
            for words in [("kernels",), ("atomics",), *copies, ("memset", "8"), ("memset", "32")]]


def mixed_sentence(result: Result) -> str:
    copies, sets = result.holds("one copy across"), result.holds("one cuMemset")
    return (f"Kernels, their atomics, copies and the processor use a reservation whose pages are in both places; of "
            f"single copies across the border {sum(copies)} of {len(copies)} forms work, of memsets {sum(sets)} of "
            f"{len(sets)}.")


# 2

def remap_sentence(result: Result) -> str:
    beside = result.holds("while kernels use")
    return ("Behind a drained device memory is exchanged without a fault or a wrong byte; beside running kernels "
            + ("none was seen either." if all(beside) else "it is NOT safe: keep the gate."))


# 3

def places_sentence(result: Result) -> str:
    cells = [r["cells"] for r in result.of("row")]
    nodes = [r for r in result.of("answer") if r["name"].startswith("host, node")]
    return (f"Pages are {cells[0]['minimum']} in both places (recommended: {cells[0]['recommended']}); "
            f"{sum(n['holds'] for n in nodes)} of {len(nodes)} NUMA nodes give memory that the GPU reaches.")


# 4

def calls_compare(suite: Suite, result: Result) -> None:
    result.notes.append("Runs of handles in one reservation. cuMemCreate, cuMemMap and cuMemRelease for one handle; "
                        "the others once for the run. Every page was used before it was unmapped.")


def calls_sentence(result: Result) -> str:
    def swap(count: int) -> Optional[float]:
        """Microseconds a page: unmap and access once a run, map once a page."""
        row = f"host, {count} × 2 MiB"
        parts = [result.figure(row, call) for call in ("cuMemUnmap", "cuMemSetAccess", "cuMemMap")]
        return None if None in parts else (parts[0] + parts[1]) / count + parts[2]
    return (f"Exchanging a page of 2 MiB for one of the host's that exists takes {number(swap(1))} µs of calls, "
            f"{number(swap(64))} µs in runs of 64; making one takes "
            f"{number(result.figure('device, 64 × 2 MiB', 'cuMemCreate'))} µs on the device, "
            f"{number(result.figure('host, 64 × 2 MiB', 'cuMemCreate'))} µs in host memory.")


# 5

def direct_sentence(result: Result) -> str:
    reads, writes = result.holds("read,"), result.holds("write,")
    if all(reads + writes):
        return "The kernel reads from disk straight into host pages of the GPU's address space, and writes from them."
    return (f"O_DIRECT into host pages {'works' if all(reads) else 'does NOT work'}, from them "
            f"{'works' if all(writes) else 'does NOT work'}: what fails needs a buffer between.")


# 6

PEAK = "the link's peak, each way"


def copies_compare(suite: Suite, result: Result) -> None:
    peak = suite.head["link_peak_gb_per_s"]
    for size in ("2 MiB", "64 MiB") if peak else ():
        result.records.append({"kind": "figure", "row": PEAK, "column": size, "unit": "GB/s", "median": peak,
                               "p99": peak, "n": 0})
    result.notes.append("Runs of 256 MiB in copies of the size above. *mapped*: host pages at a device address, by "
                        "the copy engines, which is how kvmem moves pages; *kernel*: the same, read or written by one. "
                        "In brackets the slowest of a hundred.")


def copies_sentence(result: Result) -> str:
    def both_ways(how: str) -> str:
        ways = ("to the device", "to the host", "both at once, together")
        return " / ".join(number(result.figure(f"{how}, {way}", "64 MiB")) for way in ways)
    return (f"To the device / to the host / both at once, GB/s in copies of 64 MiB: pinned {both_ways('pinned')}, "
            f"host pages {both_ways('mapped')}, a kernel over the link {both_ways('kernel')}, "
            f"pageable {both_ways('pageable')}; {PEAK}: {number(result.figure(PEAK, '64 MiB'))}.")


# 7

LAUNCH = "cuLaunchKernel, nothing to do"


def launch_cases(suite: Suite) -> list[Case]:
    sides = [None, {}]
    pairs = 1 if suite.options.softgpu else 5
    return [Case(suite.facts("launch"), 20, side)
            for i in range(pairs) for side in (sides if i % 2 == 0 else sides[::-1])]


def launch_compare(suite: Suite, result: Result) -> None:
    """Several runs of each side as one."""
    runs = {c: [r for r in result.of("figure") if r["column"] == c] for c in ("without", "with libkvmem")}
    if not all(runs.values()):
        return
    result.records = [r for r in result.records if r["kind"] != "figure"]
    middle = {c: {w: statistics.median(r[w] for r in of) for w in ("median", "p99")} for c, of in runs.items()}
    middle["added"] = {w: middle["with libkvmem"][w] - middle["without"][w] for w in ("median", "p99")}
    for column, values in middle.items():
        samples = sum(r["n"] for r in runs.get(column, []))
        result.records.append({"kind": "figure", "row": LAUNCH, "column": column, "unit": "ns", **values, "n": samples})


def launch_sentence(result: Result) -> str:
    return (f"libkvmem adds {number(result.figure(LAUNCH, 'added'))} ns to a launch of "
            f"{number(result.figure(LAUNCH, 'without'))} ns.")


# 8

def graph_sentence(result: Result) -> str:
    def do(what: str) -> str:
        return "follow it" if all(result.holds(what)) else "do NOT"
    return (f"A graph's kernel nodes follow memory that has moved; memset nodes {do('memset node')}, "
            f"copy nodes {do('copy node')}.")


# 9

def model_cases(suite: Suite) -> list[Case]:
    return [] if suite.options.softgpu else [Case([sys.executable, str(HERE / "model.py")], 120)]


def model_compare(suite: Suite, result: Result) -> None:
    if suite.options.softgpu:
        result.records.append({"kind": "skip", "text": "the software driver runs no PyTorch"})
    plain = next(iter(result.of("model")), None)
    if plain is None:
        return
    needs = plain["needs_bytes"]
    preload = {"KVMEM_HBM": str(needs // 2), "KVMEM_GPU_CAPACITY": str(needs * 5 // 4 + GIB)}
    command = [sys.executable, str(HERE / "model.py"), "--weights", str(plain["asked_bytes"])]
    outcome = suite.run(Case(command, 200, preload))
    result.outcomes.append(outcome)
    result.records += outcome.records
    ours = next((r for r in outcome.records if r["kind"] == "model"), None)
    if ours is None:
        return
    count = len(plain["tokens"])
    same = sum(a == b for a, b in zip(plain["tokens"], ours["tokens"]))
    check(result, "the same tokens", plain["tokens"] == ours["tokens"], f"{same} of {count}, the prompt's among them")
    check(result, "the same logits, bit by bit", plain["logits"] == ours["logits"], ours["logits"][:16])
    if plain["logits"] != ours["logits"]:  # whose fault is it?
        again = suite.run(Case(command, 120))
        result.outcomes.append(again)
        same_again = any(r.get("logits") == plain["logits"] for r in again.records)
        result.notes.append(f"Without libkvmem a second run says {'the same' if same_again else 'something else'}.")
    row = f"{plain['weights_bytes'] / 1e9:.1f} GB of weights, {needs / 1e9:.1f} GB needed"
    figure(result, row, "plain", "tokens/s", plain["tokens_per_s"], rates=True)
    figure(result, row, "half of it in host memory", "tokens/s", ours["tokens_per_s"], rates=True)


def model_sentence(result: Result) -> str:
    rates = [number(r["median"]) for r in result.of("figure")]
    return (f"With half of the GPU's memory that it needs, a model says the same to the bit: {rates[1]} tokens/s "
            f"against {rates[0]}.")


# 10

def advise_cases(suite: Suite) -> list[Case]:
    size = suite.room_to_move()
    own = size + 64 * MIB  # what the pool keeps ready is of the budget
    preload = {"KVMEM_HBM": str(own), "KVMEM_GPU_CAPACITY": str(own + size + 64 * MIB)}
    return [Case(suite.facts("advise", str(size)), 120, preload)]


def advise_compare(suite: Suite, result: Result) -> None:
    """What the link gave in fact 6, beside it."""
    if suite.room_to_move() < 16 * GIB:
        result.notes.append("Less than 16 GiB: the software driver, or no room (--move GIB says otherwise).")
    result.notes.append("*The first time*: host pages are created and pinned on the way; *again*: they are used again.")
    copies = next((r for r in suite.results if r.fact.name == "copies"), None)
    for record in copies.of("figure") if copies else []:
        if record["row"] in ("mapped, to the device", "mapped, to the host") and record["column"] == "2 MiB":
            result.records.append({**record, "row": f"fact 6: {record['row']}", "column": "again"})


def advise_sentence(result: Result) -> str:
    rows = [r["row"] for r in result.of("figure") if not r["row"].startswith("fact 6")]
    def rate(way: str, column: str) -> str:
        return number(next((result.figure(r, column) for r in rows if way in r), None))
    return (f"{rows[0].split(' to ')[0]} go to host memory at {rate('to the host', 'again')} GB/s "
            f"({rate('to the host', 'the first time')} when host pages are made on the way) and come back at "
            f"{rate('back', 'again')}, the same to the byte.")


FACTS = [
    Fact(1, "mixed", "Do device and host memory stand side by side in one reservation?", mixed_cases, mixed_sentence),
    Fact(2, "remap", "May memory be exchanged beside running kernels, and behind a drained device?",
         lambda s: [Case(s.facts("remap", *w), 40)
                    for w in (("drained",), ("beside", "allocation"), ("beside", "reservation"))], remap_sentence),
    Fact(3, "places", "Where can memory be had from, in which pages?",
         lambda s: [Case(s.facts("places"), 30)], places_sentence),
    Fact(4, "calls", "What does each call of memory management cost?",
         lambda s: [Case(s.facts("calls", where), 90) for where in ("device", "host")], calls_sentence, calls_compare),
    Fact(5, "direct", "Does O_DIRECT reach host pages?", lambda s: [Case(s.facts("direct"), 30)], direct_sentence),
    Fact(6, "copies", "What does the link carry?",
         lambda s: [Case(s.facts("copies", how), 40) for how in ("pinned", "mapped", "kernel", "pageable")],
         copies_sentence, copies_compare),
    Fact(7, "launch", "What does libkvmem add to a launch?", launch_cases, launch_sentence, launch_compare),
    Fact(8, "graph", "Do graphs follow memory that has moved?",
         lambda s: [Case(s.facts("graph", *w), 30)
                    for w in (("kernel",), ("memset",), ("copy", "writes"), ("copy", "reads"))], graph_sentence),
    Fact(9, "model", "Does an engine that knows nothing of kvmem say the same with half the memory?",
         model_cases, model_sentence, model_compare),
    Fact(10, "advise", "How fast does an engine's memory go to host memory and come back?",
         advise_cases, advise_sentence, advise_compare),
    # 11: how fast a whole process is parked and comes back.
]


def query(*fields: str) -> list[str]:
    """Of nvidia-smi; empty texts where it is not there or does not know."""
    try:
        out = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, text=True).stdout
    except (OSError, subprocess.TimeoutExpired):
        out = ""
    values = [v.strip() for v in (out.splitlines() or [""])[0].split(",")]
    return values if len(values) == len(fields) else [""] * len(fields)


def surroundings(suite: Suite) -> dict[str, Any]:
    driver, generation, width = ("", "", "") if suite.options.softgpu else query(
        "driver_version", "pcie.link.gen.max", "pcie.link.width.max")
    per_lane = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}  # GB/s, after encoding
    peak = None
    if generation.isdigit() and width.isdigit() and int(generation) in per_lane:
        peak = per_lane[int(generation)] * int(width)
    commit = ""
    if shutil.which("git"):
        commit = subprocess.run(["git", "-C", str(HERE), "describe", "--always", "--dirty"], stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, text=True).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": suite.device.get("name", "unknown"),
        "device_bytes": int(suite.device.get("total_bytes", 0)),
        "compute_capability": suite.device.get("compute", ""),
        "abilities": suite.device.get("abilities", ""),
        "node": suite.device.get("node", ""),
        "driver": driver or ("softgpu" if suite.options.softgpu else "unknown"),
        "cuda": suite.device.get("cuda", ""),
        "link": f"PCIe {generation} x{width}" if peak else "unknown",
        "link_peak_gb_per_s": peak,
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "host_bytes": memory_bytes("MemTotal"),
        "kvmem": commit,
    }


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


def samples(records: list[Record]) -> str:
    counts = [r["n"] for r in records if r["n"] > 0] or [0]
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


def figures(records: list[Record]) -> list[str]:
    """One table a unit; a cell is the median, and the 99th percentile in brackets."""
    lines = []
    for unit in dict.fromkeys(r["unit"] for r in records):
        of = [r for r in records if r["unit"] == unit]
        columns = list(dict.fromkeys(r["column"] for r in of))
        cells = {(r["row"], r["column"]): f"{number(r['median'])} ({number(r['p99'])})" for r in of}
        lines += table([f"{unit}: median (p99)", *columns, "samples"],
                       [[row, *(cells.get((row, c), "") for c in columns), samples([r for r in of if r["row"] == row])]
                        for row in dict.fromkeys(r["row"] for r in of)])
    return lines


def markdown(head: dict[str, Any], results: list[Result], softgpu: bool) -> str:
    peak = f", {head['link_peak_gb_per_s']:.0f} GB/s each way" if head["link_peak_gb_per_s"] else ""
    lines = [f"# {head['device']}, {head['date']}", ""]
    if softgpu:
        lines += ["**On the software driver: it says that the suite runs, and no more. Figures mean nothing.**", ""]
    lines += table(["", ""], [
        ["device", f"{head['device']}, {head['device_bytes'] / GIB:.1f} GiB, compute {head['compute_capability']}"],
        ["it says it has", f"{head['abilities']}; NUMA node {head['node']}"],
        ["driver", f"{head['driver']}, CUDA {head['cuda']}"], ["link", head["link"] + peak],
        ["host", f"{head['processors']} processors, {head['host_bytes'] / GIB:.0f} GiB, Linux {head['kernel']}"],
        ["kvmem", head["kvmem"]], ["took", f"{head['seconds']:.0f} s"]])
    lines += table(["", "question", "", "in a sentence"],
                   [[str(r.fact.number), r.fact.question, r.verdict, r.sentence] for r in results])
    for result in results:
        lines += [f"## {result.fact.number}. {result.fact.question}", ""]
        lines += [f"**{result.verdict}.** {result.sentence}", ""]
        asked = [r for r in result.records if r["kind"] in ("check", "answer")]
        if asked:
            lines += table(["asked", "", "seen"], [
                [r["name"], ("yes" if r["holds"] else "**NO**" if r["kind"] == "check" else "no"), r["text"]]
                for r in asked])
        cells = [r["cells"] for r in result.of("row")]
        lines += [line for note in result.notes for line in (note, "")]
        if cells:
            lines += table(list(cells[0]), [list(row.values()) for row in cells])
        lines += figures(result.of("figure"))
        for outcome in result.outcomes:
            if outcome.lost:
                said = outcome.errors.strip().splitlines()
                lines += [f"`{outcome.command}`: {outcome.ended}" + (f"; it said: {said[-1]}" if said else ""), ""]
    lines += ["A bold **NO** fails the fact: kvmem stands on it. With any other no it can do.", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--softgpu", action="store_true")
    parser.add_argument("--move", type=int, metavar="GIB", default=0)
    parser.add_argument("--limit", type=float, default=570, help="seconds, for all of it")
    suite = Suite(parser.parse_args())

    device = suite.run(Case(suite.facts("device"), 60))
    if device.ended == "skipped":
        print(f"gpu: {device.records[0]['text'] if device.records else 'no GPU'}")
        return 77
    suite.device = next((r["cells"] for r in device.records if r["kind"] == "row"), {})
    suite.head = head = surroundings(suite)
    for fact in FACTS:
        suite.ask(fact)
    head["seconds"] = time.monotonic() - suite.begin

    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H%MZ")
    base = suite.options.out / f"{stamp}-{re.sub(r'[^a-z0-9]+', '-', head['device'].lower())}"
    head |= {"softgpu": suite.options.softgpu, "facts": [
        {"number": r.fact.number, "name": r.fact.name, "question": r.fact.question, "verdict": r.verdict,
         "sentence": r.sentence, "notes": r.notes, "records": r.records,
         "cases": [{k: v for k, v in vars(o).items() if k != "records"} for o in r.outcomes]}
        for r in suite.results]}
    base.with_suffix(".json").write_text(json.dumps(head, indent=1) + "\n")
    base.with_suffix(".md").write_text(markdown(head, suite.results, suite.options.softgpu))
    print(f"gpu: {base.with_suffix('.md')}")
    return 1 if any(r.verdict == "FAILS" for r in suite.results) else 0


if __name__ == "__main__":
    sys.exit(main())
