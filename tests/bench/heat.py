#!/usr/bin/env python3
"""How well kvmem's heat of pages agrees with what a program did, counted by the program itself.

bench_heat uses a buffer in one of several ways (its first lines say which) under a daemon of its own,
which knows nothing of it: once with room for all of it in DRAM (fits), once for half (half). The
daemon is asked for each page's heat once in a while, and what is asked is: had we kept the K pages
that it calls hottest, which share of the accesses of the next seconds would have gone to them?

  top K %   that share; reference: the share of the K % of pages that were really used most
  recall    of the pages that were really used most, those among our K %
  noticed   from a change of phase until the new phase's ratio is 0.9 and stays so for two looks
  daemon    its CPU time, in % of one CPU; what is asked of it for the measurement is part of that
  visit     time of a visit, sleeps not counted, beside that without kvmem
  samples, faults   pages unmapped to be sampled, and page faults of the program, a second

Where pages are said to be equally hot, each is as likely as another to be among the K: what is printed
is the expectation. By chance a top 10 % has 10 % of the accesses.

Sources, each a peer on the same run:
  kvmem   the daemon's heat
  age     the daemon's order: the least time since a page was used or passed, in touches of pages
  faults  the least time since the last page fault that the program took on the page, as the kernel
          traces them (tracefs, mounted apart; needs root)
  DAMON   the kernel's monitor on the program's addresses, an average over the looks, newer ones more.
          Only where no kdamond is there: to add one removes the others. Needs DAMON_VADDR, which the
          test machine has: tests/vm/run.sh 6.12 -- python3 tests/bench/heat.py --mib 512 --rate 1024

With --sampling, instead: how often a page must be looked at, had the daemon an estimate of each page's
frequency (daemon/heat/frequency.h), which it has not yet. The ways of looking (bench_heat_sampling.cc
says which) are tried on traces of the same patterns:
  0.95 from       the least rate of looks, at a half-life, from which on both ratios are 0.95
  top K % at 1/s  the ratios at one look a page and second
  noticed at 1/s  as above

Figures are of one run each; on a machine that others use, times are noisy, shares hardly.
"""

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
from huge_pages import huge_pages  # noqa: E402  pylint: disable=wrong-import-position

BUILD = Path(os.environ.get("KVMEM_BUILD", ROOT / "build" / "release"))
PAGE = 2 << 20
MIB = 1 << 20
PATTERNS = ("zipf", "phase", "cyclic", "scanhot", "sparse", "chase", "decode", "moe")
SHARES = (10, 25)
SOURCES = ("kvmem", "age", "faults", "DAMON")
WINDOW_S = 4.0  # of accesses that an estimate is judged by; a sixth of the run, if that is less
PHASE_WINDOW_S = 1.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def emit(case: str, metric: str, value, unit: str, reference=None) -> None:
    def short(number):
        return None if number is None else round(number, 4)

    ratio = value / reference if value is not None and reference else None
    print(json.dumps({"bench": "heat", "case": case, "metric": metric, "value": short(value), "unit": unit,
                      "reference": short(reference), "ratio": short(ratio)}), flush=True)


# Estimates against the truth.


def chosen(scores: list[float], count: int) -> list[float]:
    """How likely each page is to be among the `count` of highest score, equals drawn by lot."""
    order = sorted(range(len(scores)), key=lambda page: -scores[page])
    edge = scores[order[count - 1]]
    above = sum(score > edge for score in scores)
    equal = sum(score == edge for score in scores)
    return [1.0 if score > edge else (count - above) / equal if score == edge else 0.0 for score in scores]


def judge(scores: list[float], truth: list[float], percent: int) -> tuple[float, float, float]:
    """The share of the accesses that the hottest `percent` of the pages get, the most that so many
    could get, and the share of those best that are among the former."""
    count = max(1, len(truth) * percent // 100)
    total = sum(truth) or 1
    best = sorted(truth, reverse=True)[:count]
    ours = chosen(scores, count)
    really = chosen(truth, count)
    return (sum(p * t for p, t in zip(ours, truth)) / total, sum(best) / total,
            sum(a * b for a, b in zip(ours, really)) / count)


class Truth:
    def __init__(self, path: str):
        with open(path, encoding="utf-8") as f:
            self.told = json.load(f)
        self.start_s = self.told["start_ns"] / 1e9
        self.slice_s = self.told["slice_ns"] / 1e9
        self.end_s = self.start_s + len(self.told["slices"]) * self.slice_s
        self.changed_s = self.told["changed_ns"] / 1e9

    def accesses(self, from_s: float, seconds: float) -> list[int] | None:
        """By page, in the whole slices of those seconds; None where they were not counted to the end."""
        first = math.ceil((from_s - self.start_s) / self.slice_s)
        last = first + max(1, round(seconds / self.slice_s))
        if first < 0 or last > len(self.told["slices"]):
            return None
        return [sum(counts) for counts in zip(*self.told["slices"][first:last])]


# Peers.


class Damon:
    """A kdamond of our own on a process's addresses; gone at the end, whatever happens."""

    ADMIN = Path("/sys/kernel/mm/damon/admin/kdamonds")

    @classmethod
    def why_not(cls) -> str:
        try:
            there = int((cls.ADMIN / "nr_kdamonds").read_text())
            if there != 0:
                return f"{there} kdamond(s) of others are there"
            (cls.ADMIN / "nr_kdamonds").write_text("1")
            try:
                (cls.ADMIN / "0/contexts/nr_contexts").write_text("1")
                if "fvaddr" not in (cls.ADMIN / "0/contexts/0/avail_operations").read_text().split():
                    return "the kernel has no DAMON_VADDR"
            finally:
                (cls.ADMIN / "nr_kdamonds").write_text("0")
        except OSError as error:
            return f"{error.strerror}: {error.filename}"
        return ""

    def __init__(self, pid: int, address: int, pages: int):
        self.address, self.pages = address, pages
        self.heat = [0.0] * pages
        if int((self.ADMIN / "nr_kdamonds").read_text()) != 0:
            raise OSError("somebody else has added a kdamond")
        (self.ADMIN / "nr_kdamonds").write_text("1")
        try:
            self.set("contexts/nr_contexts", 1)
            context = "contexts/0/"
            # With vaddr it finds out itself what to look at: all but the two largest gaps. Beside what
            # libkvmem reserves there are more, and it looks at terabytes of nothing.
            self.set(context + "operations", "fvaddr")
            # As the kernel's documentation has it; more regions than by default, so that there could
            # be one for each page.
            for name, value in (("intervals/sample_us", 5000), ("intervals/aggr_us", 100_000),
                                ("intervals/update_us", 1_000_000), ("nr_regions/min", 10),
                                ("nr_regions/max", max(1000, 2 * pages))):
                self.set(context + "monitoring_attrs/" + name, value)
            self.set(context + "targets/nr_targets", 1)
            self.set(context + "targets/0/pid_target", pid)
            self.set(context + "targets/0/regions/nr_regions", 1)
            self.set(context + "targets/0/regions/0/start", address)
            self.set(context + "targets/0/regions/0/end", address + pages * PAGE)
            scheme = context + "schemes/0/"
            self.set(context + "schemes/nr_schemes", 1)
            self.set(scheme + "action", "stat")
            for name in ("sz", "nr_accesses", "age"):
                self.set(scheme + f"access_pattern/{name}/max", (1 << 32) - 1 if name != "sz" else (1 << 63))
            self.set("state", "on")
        except OSError:
            self.close()
            raise

    def set(self, name: str, value) -> None:
        (self.ADMIN / "0" / name).write_text(str(value))

    def look(self) -> list[float]:
        with contextlib.suppress(OSError):  # the process has ended
            self.set("state", "update_schemes_tried_regions")
        now = [0.0] * self.pages
        tried = self.ADMIN / "0/contexts/0/schemes/0/tried_regions"
        for region in tried.iterdir():
            if not region.is_dir():
                continue
            start, end, accesses = (int((region / n).read_text()) for n in ("start", "end", "nr_accesses"))
            first = max(0, (start - self.address) // PAGE)
            for page in range(first, min(self.pages, (end - self.address + PAGE - 1) // PAGE)):
                low, high = self.address + page * PAGE, self.address + (page + 1) * PAGE
                now[page] += accesses * (min(high, end) - max(low, start)) / PAGE
        self.heat = [0.7 * old + 0.3 * new for old, new in zip(self.heat, now)]
        return self.heat

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.set("state", "off")
        (self.ADMIN / "nr_kdamonds").write_text("0")


class Faults:
    """Page faults of a process, in their order, from a trace instance of our own."""

    def __init__(self, pid: int, address: int, pages: int):
        self.address, self.pages, self.pid = address, pages, pid
        self.last = [-1] * pages
        self.count = 0
        self.work = tempfile.mkdtemp(prefix="kvmem-heat-trace.")
        self.instance = Path(self.work) / f"instances/kvmem-heat-{os.getpid()}"
        self.mounted = False
        try:
            subprocess.run(["mount", "-t", "tracefs", "none", self.work], check=True, stderr=subprocess.PIPE)
            self.mounted = True
            self.instance.mkdir()
            for name, value in (("buffer_size_kb", 4096), ("set_event_pid", pid),
                                ("events/exceptions/page_fault_user/enable", 1)):
                (self.instance / name).write_text(str(value))
            self.pipe = os.open(self.instance / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, subprocess.CalledProcessError):
            self.pipe = -1
            self.close()
            raise
        self.rest = b""

    def look(self) -> list[float]:
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.pipe, 1 << 20):
                self.rest += part
        *lines, self.rest = self.rest.split(b"\n")
        for line in lines:
            at = line.find(b"address=")
            if at < 0:
                continue
            self.count += 1
            page = (int(line[at + 8:].split()[0], 16) - self.address) // PAGE
            if 0 <= page < self.pages:
                self.last[page] = self.count
        return list(map(float, self.last))

    def close(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
        if self.mounted:
            with contextlib.suppress(OSError):
                (self.instance / "events/enable").write_text("0")
            with contextlib.suppress(OSError):
                self.instance.rmdir()
            subprocess.run(["umount", self.work], check=False)
        os.rmdir(self.work)


# A run.


class Daemon:
    def __init__(self, work: str, dram_bytes: int, store_bytes: int):
        config = Path(work, "kvmemd.toml")
        config.write_text(f'[dram]\nbudget = {dram_bytes}\n[nvme]\npath = "{work}/store"\nsize = {store_bytes}\n'
                          "[ebpf]\nenable = false\n", encoding="utf-8")
        self.socket = f"{work}/sock"
        self.ready, write = os.pipe()
        self.process = subprocess.Popen(
            [BUILD / "bin/kvmemd", "--config", config, "--socket", self.socket, "--runtime-dir", work,
             "--ready-fd", str(write)], pass_fds=(write,), stderr=subprocess.DEVNULL)
        os.close(write)

    def wait_ready(self) -> None:
        if os.read(self.ready, 16) != b"READY\n":
            sys.exit("heat: the daemon did not start")

    def ask(self, *words: str) -> dict:
        got = subprocess.run([BUILD / "bin/kvmemctl", "--socket", self.socket, "--json", *words], check=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return json.loads(got.stdout)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        os.close(self.ready)
        self.process.terminate()
        self.process.wait(60)


class Exerciser:
    """To be closed, whatever happens; of use when it is ready."""

    def __init__(self, work: str, pattern: str, args: argparse.Namespace, socket: str | None, seconds: float,
                 *more: str):
        self.out = f"{work}/truth.json"
        env = dict(os.environ)
        if socket is not None:
            env |= {"LD_PRELOAD": str(BUILD / "lib/libkvmem.so"), "KVMEM_SOCKET": socket}
        self.process = subprocess.Popen(
            [BUILD / "bin/bench_heat", pattern, "--out", self.out, "--mib", str(args.mib), "--seconds", str(seconds),
             "--rate", str(args.rate), "--seed", str(args.seed), *more], env=env, stdout=subprocess.PIPE, text=True)
        self.address, self.pages = 0, 0

    def wait_ready(self) -> None:
        words = self.process.stdout.readline().split()
        if not words or words[0] != "ready":
            sys.exit("heat: bench_heat did not start")
        self.address, self.pages = int(words[1], 16), int(words[2])

    def finish(self) -> Truth:
        if (code := self.process.wait()) != 0:
            sys.exit(f"heat: bench_heat exited {code}")
        return Truth(self.out)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


class Looks:
    """What each source says, look by look, while the program runs."""

    def __init__(self, daemon: Daemon, program: Exerciser, args: argparse.Namespace, stack: contextlib.ExitStack):
        self.daemon, self.program = daemon, program
        self.looks: list[dict] = []
        regions = [r for r in daemon.ask("regions")["regions"] if r["pid"] == program.process.pid]
        if [r["page_count"] for r in regions] != [program.pages] or program.address % PAGE != 0:
            sys.exit(f"heat: the buffer is not one region: {regions}")
        self.region = str(regions[0]["region"])
        say(f"  backing: {regions[0]['backing']}")
        self.peers: dict = {}
        for name, make in (("faults", Faults), ("DAMON", Damon)):
            if name in args.skip:
                continue
            try:
                self.peers[name] = make(program.process.pid, program.address, program.pages)
                stack.callback(self.peers[name].close)
            except (OSError, subprocess.CalledProcessError) as error:
                args.skip[name] = str(error)
                say(f"heat: without {name}: {error}")

    def take(self) -> None:
        at_s = time.monotonic()
        try:
            pages = self.daemon.ask("pages", self.region)
        except subprocess.CalledProcessError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.program.process.wait(10)  # its region is gone because it is
                return
            sys.exit(f"heat: kvmemctl: {error.stderr.decode().strip()}")
        ages = pages["age_touches"]
        told = {"kvmem": pages["heat_ppm"], "age": [-math.inf if age is None else -age for age in ages]}
        for name, peer in self.peers.items():
            told[name] = peer.look()
        self.looks.append({"at_s": at_s, **told})

    def take_all(self, every_s: float) -> None:
        due_s = time.monotonic() + every_s
        while self.program.process.poll() is None:
            time.sleep(max(0.0, min(0.05, due_s - time.monotonic())))
            if time.monotonic() >= due_s:
                due_s = max(due_s + every_s, time.monotonic())
                self.take()


def noticed_s(looks: list[dict], source: str, truth: Truth, percent: int) -> float | None:
    good = None
    for look in looks:
        if look["at_s"] < truth.changed_s:
            continue
        then = truth.accesses(look["at_s"], PHASE_WINDOW_S)
        if then is None:
            break
        got, most, _ = judge(look[source], then, percent)
        if got < 0.9 * most:
            good = None
        elif good is None:
            good = look["at_s"] - truth.changed_s
        else:
            return good
    return None


def is_steady(look: dict, window_s: float, truth: Truth, pattern: str) -> bool:
    """Long enough after the start, or after a change, and the window ends before the next one."""
    length = truth.end_s - truth.start_s
    since = (look["at_s"] - truth.start_s) / length
    if pattern != "phase":
        return since > 0.4
    return since > 0.75 or (since > 0.25 and look["at_s"] + window_s < truth.changed_s)


def run(pattern: str, fits: bool, args: argparse.Namespace, plain_ns: float) -> None:
    case = f"{pattern}, {'fits' if fits else 'half'}"
    say(case)
    size = args.mib * MIB
    dram = size * 9 // 8 if fits else size // 2
    memory = contextlib.nullcontext() if args.small_pages else huge_pages(dram)
    with tempfile.TemporaryDirectory(dir=args.on, prefix="bench_heat.") as work, memory, contextlib.ExitStack() as stack:
        daemon = stack.enter_context(contextlib.closing(Daemon(work, dram, 2 * size)))
        daemon.wait_ready()
        program = stack.enter_context(contextlib.closing(Exerciser(work, pattern, args, daemon.socket, args.seconds)))
        program.wait_ready()
        looks = Looks(daemon, program, args, stack)
        before, cpu_s, begin_s = daemon.ask("status")["counters"], daemon.cpu_s(), time.monotonic()
        looks.take_all(args.every / 2 if pattern == "phase" else args.every)
        seconds = time.monotonic() - begin_s
        cpu_s = daemon.cpu_s() - cpu_s
        after = daemon.ask("status")["counters"]
        truth = program.finish()

    window_s = min(WINDOW_S, args.seconds / 6)
    steady = [(look, then) for look in looks.looks if is_steady(look, window_s, truth, pattern)
              and (then := truth.accesses(look["at_s"], window_s)) is not None]
    if not steady:
        sys.exit("heat: --seconds is too short for a look")
    sources = [s for s in SOURCES if s in steady[0][0]]
    for percent in SHARES:
        for source in sources:
            judged = [judge(look[source], then, percent) for look, then in steady]
            got, most, recall = (sum(part) / len(judged) for part in zip(*judged))
            emit(case, f"top {percent} %: {source}", got, "of accesses", most)
            emit(case, f"recall of top {percent} %: {source}", recall, "of pages")
    if pattern == "phase":
        for source in sources:
            emit(case, f"change noticed: {source}", noticed_s(looks.looks, source, truth, 10), "s")
    emit(case, "daemon's CPU", cpu_s / seconds * 100, "%")
    emit(case, "visit", truth.told["busy_ns"] / truth.told["visits"] / 1e3, "us", plain_ns / 1e3)
    emit(case, "longest visit", truth.told["longest_visit_ns"] / 1e6, "ms")
    emit(case, "samples", (after["samples"] - before["samples"]) / seconds, "1/s")
    faults = sum(after[name] - before[name] for name in ("faults_missing", "faults_minor", "faults_wp"))
    emit(case, "faults", faults / seconds, "1/s")


def sampling(pattern: str, args: argparse.Namespace) -> None:
    say(f"{pattern}, sampling")
    seconds = 20 if pattern == "chase" else 40  # of whose links there are many
    with tempfile.TemporaryDirectory(dir=args.on, prefix="bench_heat.") as work:
        trace = f"{work}/trace"
        pages = args.mib * MIB // PAGE
        with contextlib.closing(Exerciser(work, pattern, args, None, seconds, "--trace", trace)) as program:
            program.finish()
        got = subprocess.run([BUILD / "bin/bench_heat_sampling", trace, str(pages)], check=True, stdout=subprocess.PIPE,
                             text=True).stdout
    tried: dict[tuple, list[dict]] = {}
    for line in got.splitlines():
        one = json.loads(line)
        tried.setdefault((one["way"], one["half_life_s"]), []).append(one)
    for (way, half_life_s), runs in tried.items():
        case = f"{pattern}, {way}, {half_life_s:g} s"
        runs.sort(key=lambda run: -run["rate"])
        enough = None
        for one in runs:
            if min(one["tenth"], one["quarter"]) < 0.95:
                break
            enough = one["rate"]
        emit(case, "0.95 from", enough, "1/page/s")
        for one in runs:
            if one["rate"] != 1:
                continue
            emit(case, "top 10 % at 1/s", one["tenth"], "of the most")
            emit(case, "top 25 % at 1/s", one["quarter"], "of the most")
            if pattern == "phase":
                emit(case, "noticed at 1/s", one["noticed_s"] if one["noticed_s"] >= 0 else None, "s")


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--pattern", choices=PATTERNS, action="append")
    ap.add_argument("--budget", choices=("fits", "half"), action="append")
    ap.add_argument("--mib", type=int, default=1024, help="the buffer (default 1024; 4096 for what does not fit a cache)")
    ap.add_argument("--seconds", type=float, default=24, help="of each run (default 24)")
    ap.add_argument("--rate", type=float, default=8192, help="visits a second (default 8192)")
    ap.add_argument("--every", type=float, default=1.0, help="seconds between two looks; half of that for phase")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--small-pages", action="store_true", help="do not ask the kernel for huge pages")
    ap.add_argument("--on", default=str(ROOT / "build"), help="folder on the disk for the store")
    ap.add_argument("--without", choices=("faults", "DAMON"), action="append", default=[])
    ap.add_argument("--sampling", action="store_true", help="how often a page must be looked at, without a daemon")
    ap.add_argument("--json", action="store_true", help="(always: run.sh makes the table)")
    args = ap.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was set up is taken down
    if args.sampling:
        for pattern in args.pattern or PATTERNS:
            sampling(pattern, args)
        return 0
    args.skip = dict.fromkeys(args.without, "not wanted")
    if "DAMON" not in args.skip and (why := Damon.why_not()):
        args.skip["DAMON"] = why
        say(f"heat: without DAMON: {why}")
    for pattern in args.pattern or PATTERNS:
        with tempfile.TemporaryDirectory(dir=args.on, prefix="bench_heat.") as work:
            with contextlib.closing(Exerciser(work, pattern, args, None, min(args.seconds, 6))) as program:
                plain = program.finish().told
        for budget in args.budget or ("fits", "half"):
            run(pattern, budget == "fits", args, plain["busy_ns"] / plain["visits"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
