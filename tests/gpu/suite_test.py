#!/usr/bin/env python3
"""The acceptance suite itself, on the software driver: that it runs to its end, and that it says so when
something is wrong.

usage: suite_test.py BUILD_DIR {passes|one_fails|device_is_lost|time_is_up}
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RUN = Path(__file__).resolve().parent / "run.sh"
REPORT = Path(__file__).resolve().parent / "report.py"
NAMES = ["mixed", "remap", "places", "calls", "direct", "copies", "launch", "graph", "model", "advise"]


def suite(build: str, status: int, softgpu: str = "", limit: str = "") -> dict[str, dict[str, Any]]:
    """The facts of its report, by name."""
    with tempfile.TemporaryDirectory() as out:
        command = [RUN, "--softgpu", "--build", build, "--out", out]
        if limit:
            command = [sys.executable, REPORT, "--softgpu", "--build", build, "--out", out, "--limit", limit]
        got = subprocess.run(command, env={**os.environ, "SOFTGPU": softgpu}, stdout=subprocess.PIPE, text=True)
        assert got.returncode == status, f"exit status {got.returncode}, not {status}"
        files = sorted(Path(out).iterdir())
        assert [f.suffix for f in files] == [".json", ".md"], files
        report, text = json.loads(files[0].read_text()), files[1].read_text()
    assert report["device"] == "softgpu" and report["softgpu"]
    assert [f["name"] for f in report["facts"]] == NAMES, "a fact is missing"
    for fact in report["facts"]:
        assert f"## {fact['number']}. {fact['question']}\n\n**{fact['verdict']}.** {fact['sentence']}\n" in text
    return {fact["name"]: fact for fact in report["facts"]}


def verdicts(facts: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: fact["verdict"] for name, fact in facts.items()}


def passes(build: str) -> None:
    facts = suite(build, 0)
    settled = {"calls": "settled", "copies": "settled", "launch": "settled", "model": "skipped"}
    got = verdicts(facts)
    direct = got.pop("direct")  # where the file system has no O_DIRECT
    assert direct in ("settled", "skipped"), direct
    assert got == {name: settled.get(name, "holds") for name in NAMES if name != "direct"}, got
    assert not [case for fact in facts.values() for case in fact["cases"] if case["ended"] not in ("done", "skipped")]
    # The software driver refuses what lies in two places, and nothing else of what is asked.
    noes = {r["name"] for fact in facts.values() for r in fact["records"] if r.get("holds") is False}
    assert len(noes) == 8 and all("across the border" in name for name in noes), noes
    figures = {(r["row"], r["column"]): r for fact in facts.values() for r in fact["records"] if r["kind"] == "figure"}
    for place in ("device", "host"):
        for count in (1, 8, 64):
            for size in (2, 16, 64):
                for call in ("Reserve", "Create", "Map", "Access", "Unmap", "Release", "Free"):
                    row = f"{place}, {count} × {size} MiB"
                    medians = [f["median"] for (r, c), f in figures.items() if r == row and call in c]
                    assert medians and medians[0] > 0, (row, call)
    for how in ("pinned", "mapped", "kernel", "pageable"):
        for way in ("to the device", "to the host", "both at once, together"):
            for size in (2, 64):
                assert figures[f"{how}, {way}", f"{size} MiB"]["median"] > 0
    assert not [name for name, fact in facts.items() if name != "copies" and "unknown" in fact["sentence"]]


def one_fails(build: str) -> None:
    """A driver that refuses one call: who needs it fails and says so; who does not, holds."""
    facts = suite(build, 1, "fail=cuGraphLaunch:2:1")
    got = verdicts(facts)
    assert got["graph"] == "FAILS" and "cuGraphLaunch: CUDA_ERROR_INVALID_VALUE" in facts["graph"]["sentence"]
    assert [name for name, verdict in got.items() if verdict == "FAILS"] == ["graph"], got


def device_is_lost(build: str) -> None:
    """An error that stays: lost to each process that meets it, and all facts are asked nevertheless."""
    facts = suite(build, 1, "fail=cuCtxSynchronize:2:700,fail=cuMemRelease:1:700")
    got = verdicts(facts)
    assert got["remap"] == got["calls"] == "FAILS", got
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in facts["remap"]["sentence"], facts["remap"]["sentence"]
    assert len(facts["remap"]["cases"]) == 3 and len(facts["copies"]["cases"]) == 4


def time_is_up(build: str) -> None:
    """A device that does nothing: the first question is answered by the limit, the others are not asked."""
    facts = suite(build, 1, "late_us=600000000", limit="3")
    first = facts["mixed"]["records"]
    assert len(first) == 1 and not first[0]["holds"] and first[0]["text"] == "not done after 3 s", first
    assert facts["advise"]["verdict"] == "FAILS" and "time was up" in facts["advise"]["sentence"]


if __name__ == "__main__":
    {f.__name__: f for f in (passes, one_fails, device_is_lost, time_is_up)}[sys.argv[2]](sys.argv[1])
