#!/usr/bin/env python3
"""That what bench_heat says it did is what it did, and that heat.py judges by it: counts of seeded runs
against what each pattern is, and against the kernel's word on which pages were touched.

usage: heat_check.py BENCH_HEAT
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import heat  # noqa: E402  pylint: disable=wrong-import-position

PROGRAM = str(Path(sys.argv[1]).resolve())
MIB, PAGES, VISITS, LINES = 512, 256, 8_000, 4
TENTH = PAGES // 10
OS_PAGES = heat.PAGE // os.sysconf("SC_PAGESIZE")


def run(work, pattern, *options):
    out = Path(work, "out.json")
    subprocess.run([PROGRAM, pattern, "--out", out, "--mib", str(MIB), "--rate", "0", "--visits", str(VISITS),
                    "--seconds", "1", "--slice-ms", "1", "--lines", str(LINES), "--bare", *options], check=True, stdout=subprocess.DEVNULL)
    told = json.loads(out.read_text(encoding="utf-8"))
    told["counts"] = [sum(c) for c in zip(*told["slices"])]
    return told


def near(got, share, of):
    """A count of `of` draws, each with the probability `share`: within 5 standard deviations."""
    assert abs(got - share * of) < 5 * math.sqrt(share * (1 - share) * of), (got, share * of)


def harmonic(n):
    return sum(1 / i for i in range(1, n + 1))


def visits_of(told, pages):
    assert all(told["counts"][p] % LINES == 0 for p in pages)
    return sum(told["counts"][p] for p in pages) // LINES


def zipf(told):
    (hot,) = told["hot_sets"]
    near(visits_of(told, hot), harmonic(TENTH) / harmonic(PAGES), VISITS)
    near(visits_of(told, hot[:1]), 1 / harmonic(PAGES), VISITS)
    assert sorted(hot) != list(range(TENTH)), "the hottest pages lie anywhere"


def phase(told):
    first, second = told["hot_sets"]
    assert not set(first) & set(second) and len(first) == len(second) == TENTH
    for hot in (first, second):
        near(visits_of(told, hot), 0.9 / 2 + 0.1 * TENTH / PAGES, VISITS)
    slices = (told["changed_ns"] - told["start_ns"]) // told["slice_ns"]
    before = [sum(c) for c in zip(*told["slices"][:slices])]
    assert sum(before[p] for p in second) < 0.03 * sum(before), "the change is when it is said to be"


def cyclic(told):
    alive = [p for p in range(PAGES) if p % 32 < 16]
    counts = {told["counts"][p] // LINES for p in alive}
    assert counts <= {VISITS // len(alive), VISITS // len(alive) + 1}, counts
    assert visits_of(told, alive) == VISITS


def scanhot(told):
    (hot,) = told["hot_sets"]
    assert visits_of(told, range(PAGES)) == VISITS
    scanned = VISITS // 2 // PAGES
    rest = set(range(PAGES)) - set(hot)
    assert all(told["counts"][p] // LINES in (scanned, scanned + 1) for p in rest)


def sparse(told):
    (hot,) = told["hot_sets"]
    near(visits_of(told, hot), 0.5, VISITS)
    assert {told["os_pages"][p] for p in hot} == {1}, "one line of each"
    assert all(told["os_pages"][p] >= LINES for p in range(PAGES) if told["counts"][p] and p not in hot)
    dense = sorted((told["counts"][p] for p in range(PAGES) if p not in hot), reverse=True)
    near(sum(dense[:PAGES // 4 - TENTH]) // LINES, 0.4, VISITS)


def chase(told):
    nodes = {512: 4096, 16: 16}  # of the kernel's pages: of links, where every one has some
    rounds = sum(told["counts"]) // sum(4096 if p < TENTH else 512 if p < PAGES * 3 // 10 else 16 for p in range(PAGES))
    (hot,) = told["hot_sets"]
    for p in range(PAGES):
        links = 4096 if p in hot else nodes[told["os_pages"][p]] if told["os_pages"][p] == 16 else 512
        assert links * rounds <= told["counts"][p] <= links * (rounds + 1), (p, links, told["counts"][p])


def decode(told):
    embedding, layers = PAGES // 10, 16
    kv = (PAGES - embedding) // 8 // layers
    weights = (PAGES - embedding - kv * layers) // layers
    tokens = visits_of(told, range(embedding))
    for p in range(embedding, embedding + weights * layers):
        assert told["counts"][p] // LINES in (tokens - 1, tokens), p
    # A token is written to every layer's cache, and all pages with tokens are read.
    slabs = range(embedding + weights * layers, embedding + (weights + kv) * layers)
    written = sum(told["counts"][p] for p in slabs) - LINES * (VISITS - visits_of(told, set(range(PAGES)) - set(slabs)))
    assert written == layers * tokens, (written, tokens)


def moe(told):
    layer, experts, pages_each = PAGES // 16, 8, PAGES // 16 * 3 // 4 // 8
    shared = layer - experts * pages_each
    tokens = told["counts"][0] // LINES
    for n in range(16):
        first = n * layer
        assert all(told["counts"][p] // LINES in (tokens - 1, tokens) for p in range(first, first + shared))
        chosen = [told["counts"][first + shared + e * pages_each] // LINES for e in range(experts)]
        assert 2 * tokens - 2 <= sum(chosen) <= 2 * tokens, (n, chosen)
        assert max(chosen) > 3 * min(chosen), "some experts are chosen more often"


def on_signal(work):
    out = Path(work, "asked.json")
    with subprocess.Popen([PROGRAM, "zipf", "--out", out, "--mib", str(MIB), "--seconds", "600", "--lines",
                           str(LINES), "--bare"],
                          stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout.readline().startswith("ready 0x")
            program.send_signal(signal.SIGUSR1)
            end = time.monotonic() + 60
            while not out.exists():
                assert time.monotonic() < end and program.poll() is None, "nothing was written"
                time.sleep(0.01)
            told = json.loads(out.read_text(encoding="utf-8"))
            assert sum(map(sum, told["slices"])) == told["visits"] * LINES
            assert program.poll() is None, "it goes on"
        finally:
            program.kill()


def judged():
    truth = [8.0, 4, 2, 2, 0, 0, 0, 0, 0, 0]
    assert heat.judge(truth, truth, 20) == (0.75, 0.75, 1.0)
    got, most, recall = heat.judge([1.0] * 10, truth, 20)  # knows nothing: chance
    assert abs(got - 0.2) < 1e-9 and most == 0.75 and abs(recall - 0.2) < 1e-9
    assert heat.judge([0, 0, 9, 5, 5, 0, 0, 0, 0, 0], truth, 20)[0] == (2 + 2 / 2 + 0 / 2) / 16
    assert sum(heat.chosen([3, 3, 3, 1, 2], 2)) == 2


def windows(work):
    told = {"start_ns": 10_000_000_000, "slice_ns": 100_000_000, "changed_ns": 0,
            "slices": [[n, 1] for n in range(50)]}
    path = Path(work, "truth.json")
    path.write_text(json.dumps(told), encoding="utf-8")
    truth = heat.Truth(str(path))
    assert truth.accesses(11.05, 0.3) == [11 + 12 + 13, 3], "whole slices after the moment"
    assert truth.accesses(14.75, 0.3) is None, "not all of it was counted"


def main():
    checks = (zipf, phase, cyclic, scanhot, sparse, chase, decode, moe)
    assert {c.__name__ for c in checks} == set(heat.PATTERNS)
    with tempfile.TemporaryDirectory() as work:
        for check in checks:
            lines = 16 * LINES if check is chase else LINES  # a few times around
            told = run(work, check.__name__, "--lines", str(lines))
            assert told["visits"] == VISITS
            if check is not decode:  # which writes as well
                assert sum(told["counts"]) == VISITS * lines
            touched = [bool(c) for c in told["counts"]]
            assert touched == [bool(n) for n in told["os_pages"]], "the kernel has other pages"
            assert max(told["os_pages"]) <= OS_PAGES
            check(told)
            print(f"ok {check.__name__}")
        same, other = run(work, "zipf"), run(work, "zipf", "--seed", "2")
        assert same["counts"] == run(work, "zipf")["counts"] != other["counts"]
        print("ok a seed is a run")
        on_signal(work)
        print("ok counts when they are asked for")
        judged()
        windows(work)
        print("ok judging")
    for words in ([], ["zipf"], ["nothing", "--out", "/dev/null"], ["zipf", "--out", "/dev/null", "--mib", "x"]):
        done = subprocess.run([PROGRAM, *words], stderr=subprocess.PIPE, check=False)
        assert done.returncode == 2 and done.stderr, words
    return 0


if __name__ == "__main__":
    sys.exit(main())
