#!/usr/bin/env python3
"""kvmemctl top and heat beside an engine that goes around in half of its region, which is more than
DRAM holds.

usage: views.py BUILD_DIR SCENARIO     top | heat

Exits 77 where this user may not have kernel-mode userfaults.
"""

import fcntl
import functools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import waiting

BUILD = Path(sys.argv[1]).resolve()
CTL = BUILD / "bin/kvmemctl"
WAIT_S = 40.0  # for anything at all
until = functools.partial(waiting.until, seconds=WAIT_S, every_s=0.02)
MIB = 256
SVG = "{http://www.w3.org/2000/svg}"


CHILDREN = []  # none outlives the test, which then could not end where its output is piped


def start(*args, **options):
    CHILDREN.append(subprocess.Popen(*args, **options))
    return CHILDREN[-1]


def may_serve():
    if os.access("/dev/userfaultfd", os.R_OK | os.W_OK) or os.getuid() == 0:
        return True
    try:
        return Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "1"
    except OSError:
        return False


class Daemon:
    def __init__(self, work):
        self.socket = f"{work}/sock"
        self.process = start(
            [BUILD / "bin/kvmemd", "--socket", self.socket, "--runtime-dir", work, "--dram", "96MiB",
             "--store", f"{work}/store", "--store-size", "1GiB"], stderr=subprocess.DEVNULL)
        until("the daemon answers", lambda: self.ctl("tiers").returncode == 0)

    def ctl(self, *args, **options):
        return subprocess.run([CTL, "--socket", self.socket, *args], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120, **options)

    def stop(self):
        self.process.terminate()
        assert self.process.wait(WAIT_S) == 0, "the daemon ended well"


class Engine:
    def __init__(self, daemon):
        env = {**os.environ, "LD_PRELOAD": str(BUILD / "lib/libkvmem.so"), "KVMEM_SOCKET": daemon.socket,
               "KVMEM_TEST_MANAGED": "1"}
        self.process = start([BUILD / "programs/half", str(MIB)], env=env, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "written\n"

    def stop(self):
        out, _ = self.process.communicate("end\n", WAIT_S)
        assert self.process.returncode == 0 and out.startswith("ok half"), out


# As a shell runs a job: a process group that nobody waits for could not be stopped from the terminal.
SHELL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execv(sys.argv[2], sys.argv[2:])
os.write(int(sys.argv[1]), b"%d" % pid)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
os._exit(code if code >= 0 else 200 - code)
"""


class Terminal:
    """A program on a terminal of a kind that has few ways to say a thing: what is on the screen is
    worked out from them."""

    def __init__(self, *args, rows=40, columns=110, term="vt100", **env):
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.raw = b""
        self.is_plain = term == "vt100"  # of the others only `raw` is looked at
        self.rest = b""
        self.size(rows, columns)
        environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
        environment |= {"LC_ALL": "C.UTF-8", **env}
        if term is not None:
            environment["TERM"] = term
        told, tell = os.pipe()
        self.shell = start([sys.executable, "-c", SHELL, str(tell), CTL, *args], stdin=self.slave,
                                      stdout=self.slave, stderr=self.slave, env=environment, start_new_session=True,
                                      pass_fds=[tell])
        os.close(tell)
        self.pid = int(os.read(told, 16))
        os.close(told)

    def size(self, rows, columns):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.rows, self.columns = rows, columns
        self.cells = [[" "] * columns for _ in range(rows)]
        self.y = self.x = 0
        self.first, self.last = 0, rows - 1  # what scrolls

    def press(self, keys):
        os.write(self.master, keys)

    def read(self, seconds=0.02):
        while select.select([self.master], [], [], seconds)[0]:
            part = os.read(self.master, 65536)
            self.raw += part
            if self.is_plain:
                self.show(part)

    TOKEN = re.compile(rb"\x1b\[(\??[0-9;]*)([A-Za-z])|\x1b[()].|\x1b[=>78M]|[\r\n\b\x0e\x0f\x00]|[^\x1b\r\n\b\x0e\x0f\x00]+")

    def show(self, part):
        data = self.rest + part
        at = 0
        while at < len(data):
            token = self.TOKEN.match(data, at)
            if token is None:
                break
            at = token.end()
            self.act(token)
        self.rest = data[at:]
        assert len(self.rest) < 16, self.rest[:80]

    def act(self, token):
        text = token[0]
        if token[2] is not None:
            numbers = [int(n or 0) for n in token[1].strip(b"?").split(b";")]
            first = max(1, numbers[0])
            what = token[2]
            if what == b"H":
                self.y = first - 1
                self.x = max(1, numbers[1] if len(numbers) > 1 else 1) - 1
            elif what == b"K":
                begin, end = (0, self.x + 1) if numbers[0] == 1 else (self.x, self.columns)
                self.blank(self.y, begin, end)
            elif what == b"J":
                self.blank(self.y, self.x, self.columns)
                for y in range(self.y + 1, self.rows):
                    self.blank(y, 0, self.columns)
            elif what in b"ABCD":
                self.y += {b"A": -first, b"B": first}.get(what, 0)
                self.x += {b"C": first, b"D": -first}.get(what, 0)
            elif what == b"r":
                self.first = first - 1
                self.last = (numbers[1] if len(numbers) > 1 else self.rows) - 1
                self.y = self.x = 0
            else:
                assert what in b"mhl", token[0]
        elif text == b"\r":
            self.x = 0
        elif text == b"\n":
            if self.y == self.last:
                self.cells.pop(self.first)
                self.cells.insert(self.last, [" "] * self.columns)
            else:
                self.y += 1
        elif text == b"\x1bM":
            if self.y == self.first:
                self.cells.pop(self.last)
                self.cells.insert(self.first, [" "] * self.columns)
            else:
                self.y -= 1
        elif text == b"\b":
            self.x -= 1
        elif text[0] not in b"\x1b\x0e\x0f\x00":
            for c in text.decode(errors="replace"):
                if self.y < self.rows and self.x < self.columns:
                    self.cells[self.y][self.x] = c
                self.x += 1

    def blank(self, y, begin, end):
        if y < self.rows:
            self.cells[y][begin:end] = [" "] * (min(end, self.columns) - begin)

    def lines(self):
        self.read()
        return ["".join(row).rstrip() for row in self.cells]

    def text(self):
        return "\n".join(self.lines())

    def wait_for(self, words):
        end = time.monotonic() + WAIT_S
        while words not in self.text():
            assert self.shell.poll() is None, self.raw[-2000:]
            assert time.monotonic() < end, f"no {words!r} on\n{self.text()}"

    def ended(self):
        end = time.monotonic() + WAIT_S
        while self.shell.poll() is None:
            assert time.monotonic() < end
            self.read()
        self.read()
        after = termios.tcgetattr(self.slave)
        assert after == self.before, f"the terminal is not as it was: {self.before} {after}"
        os.close(self.master)
        os.close(self.slave)
        code = self.shell.returncode
        return code if code < 200 else 200 - code


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def top(work):
    daemon = Daemon(work)
    engine = Engine(daemon)
    socket = ("--socket", daemon.socket)

    done = daemon.ctl("top", "--once", "--interval", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^ *{engine.process.pid} +256 MiB .* half$", done.stdout, re.M), done.stdout
    rates = json.loads(daemon.ctl("--json", "top", "--once", "--interval", "1").stdout)
    (row,), (region,) = rates["engines"], rates["regions"]
    assert row["faults_s"] > 0 and region["faults_s"] > 0 and rates["demotions_s"] > 0, rates
    assert 0 < region["heat_bytes"] < MIB << 20, region
    assert not rates["restarted"] and 0.9 < rates["elapsed_s"] < WAIT_S, rates
    print(f"ok rates as text and JSON: {row['faults_s']:.0f} faults/s, {rates['demotions_s']:.0f} demotions/s")

    for interval in ("0.1", "61", "x"):
        assert daemon.ctl("top", "--once", "--interval", interval).returncode == 2
    done = daemon.ctl("top")
    assert done.returncode == 2 and "kvmemctl status" in done.stderr, done
    for kind in (None, "", "dumb", "no-such-terminal"):
        terminal = Terminal(*socket, "top", term=kind)
        assert terminal.ended() == 2, kind
        assert b"kvmemctl status" in terminal.raw and b"\033" not in terminal.raw, terminal.raw
    print("ok what is no terminal, or cannot place its cursor, is told what to use")

    terminal = Terminal(*socket, "top", "--interval", "0.2")
    terminal.wait_for("regions by heat")
    terminal.wait_for("over 2")  # some 200 ms
    engine_row = re.compile(rf"^ *{engine.process.pid} +256 MiB .* ([0-9,.]+) +\S+  half$", re.M)
    until("the engine's faults are there", lambda: engine_row.search(terminal.text()))
    assert terminal.lines()[-1].startswith("q quit"), terminal.text()
    for key, words in ((b"s", "regions by resident"), (b"s", "regions by faults"), (b"s", "regions by heat"),
                       (b"h", "this help"), (b"h", "regions by heat"), (b"p", "paused")):
        terminal.press(key)
        terminal.wait_for(words)
    frozen = terminal.text()
    time.sleep(1)
    assert terminal.text() == frozen, "paused is paused"
    terminal.press(b"p")
    until("it goes on", lambda: terminal.text() != frozen and "paused" not in terminal.text())
    print("ok it shows the engine, sorts, helps, pauses")

    terminal.size(9, 50)
    terminal.wait_for("lines 1-7 of")
    assert all(len(line) <= 50 for line in terminal.lines())
    terminal.press(b"\033OB")  # down, as this terminal says it
    terminal.wait_for("lines 2-8 of")
    terminal.press(b"\033OA")
    terminal.wait_for("lines 1-7 of")
    for rows, columns in ((2, 5), (1, 1), (3, 200), (40, 110)):
        terminal.size(rows, columns)
        terminal.wait_for("kvmemd"[:columns])
    terminal.wait_for("regions by heat")
    print("ok it fits a terminal of any size, and scrolls")

    terminal.press(b"\x1a")  # as the shell's user does
    until("it is stopped", lambda: state(terminal.pid) == "T")
    terminal.read()
    assert termios.tcgetattr(terminal.slave) == terminal.before, "a stopped program leaves the terminal to the shell"
    terminal.size(40, 110)
    os.kill(terminal.pid, signal.SIGCONT)
    terminal.wait_for("regions by heat")
    print("ok stopped and continued")

    engine.stop()
    daemon.process.kill()
    daemon.process.wait()
    terminal.wait_for("is gone: start it again")
    assert "regions by" not in terminal.text(), "nothing old beside it"
    daemon = Daemon(work)
    terminal.wait_for("the daemon restarted")
    terminal.wait_for("engines by")
    terminal.press(b"q")
    assert terminal.ended() == 0
    print("ok a daemon that goes away and comes back; q ends it with 0")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        terminal = Terminal(*socket, "top", term="xterm-256color")
        until("it has drawn", lambda: terminal.read() or b"tiers" in terminal.raw)
        assert b"\033[32m" in terminal.raw, "in colour"
        if number == signal.SIGINT:
            terminal.press(b"\x03")
        else:
            os.kill(terminal.pid, number)
        assert terminal.ended() == -number
        assert b"\033[?1049l" in terminal.raw[-200:], "the shell's screen is back"
    for options, env in (((), {"NO_COLOR": "1"}), (("--color", "never"), {})):
        terminal = Terminal(*socket, *options, "top", term="xterm-256color", **env)
        until("it has drawn", lambda: terminal.read() or b"tiers" in terminal.raw)
        terminal.press(b"q")
        assert terminal.ended() == 0
        assert not re.search(rb"\033\[[0-9;]*3[0-7]m", terminal.raw), terminal.raw
    daemon.stop()
    terminal = Terminal("--socket", f"{work}/none", "top", "--interval", "0.2")
    terminal.wait_for("no daemon at")
    terminal.press(b"q")
    assert terminal.ended() == 0
    print("ok signals give the terminal back; colours only where they are wanted; no daemon at all")


def halves(svg):
    """Mean heat of the left and the right half in the last row of cells, and whether any is in DRAM."""
    root = ElementTree.fromstring(svg)
    groups = {group.get("id"): group for group in root.iter(f"{SVG}g")}
    cells = [(int(rect.get("class")[1:]), *(float(rect.get(k)) for k in ("x", "y", "width")))
             for rect in groups["heat"]]
    frame = next(rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == "axis")
    left, width = float(frame.get("x")), float(frame.get("width"))
    middle, last = left + width / 2, max(cell[2] for cell in cells)
    sums = [0.0, 0.0]
    for heat, x, y, w in cells:
        if y == last:
            sums[0] += heat * max(0.0, min(x + w, middle) - x)
            sums[1] += heat * max(0.0, x + w - max(x, middle))
    return sums[0] / (width / 2), sums[1] / (width / 2), len(groups["dram"])


def heat(work):
    daemon = Daemon(work)
    engine = Engine(daemon)
    region = json.loads(daemon.ctl("--json", "regions").stdout)["regions"][0]["region"]
    folder = Path(work, "drawn")
    folder.mkdir()
    svg = folder / "heat.svg"

    def is_learnt():
        heats = json.loads(daemon.ctl("--json", "pages", str(region)).stdout)["heat"]
        middle = len(heats) // 2
        return sum(map(int, heats[:middle])) > 3 * sum(map(int, heats[middle:]))

    until("the daemon has seen which half is in use", is_learnt)
    pages = json.loads(daemon.ctl("--json", "pages", str(region)).stdout)
    assert len(pages["heat_ppm"]) == len(pages["age_touches"]) == pages["page_count"], pages
    for digit, ppm in zip(pages["heat"], pages["heat_ppm"]):
        assert abs(int(digit) - 9 * ppm / 1e6) < 0.51, (digit, ppm)
    middle = pages["page_count"] // 2
    used, not_used = (sorted(half)[len(half) // 2] for half in (pages["age_touches"][:middle], pages["age_touches"][middle:]))
    assert used < not_used, (used, not_used)
    print("ok a number a page, heat and age, as JSON")

    done = daemon.ctl("heat", str(region), "--seconds", "4", "--interval", "0.4", "--svg", svg,
                      env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    hot, cold, in_dram = halves(svg.read_text())
    assert hot > 3 * cold and hot > 3, (hot, cold)
    assert in_dram > 0
    lines = done.stdout.splitlines()
    assert "half" in lines[0] and all(len(line) <= 80 for line in lines[1:]), done.stdout
    rows = [line.split(" s ", 1)[1] for line in lines if re.match(r"^ *[0-9.]+ s ", line)]
    assert 2 <= len(rows) <= 10, done.stdout
    for row in rows:
        heats = [0 if c == "." else int(c) for c in row]
        assert len(heats) == 64, row  # a column for two pages of 128
        assert sum(heats[:32]) > 3 * sum(heats[32:]), row
    assert lines[-1].startswith("  address 0 B") and lines[-1].endswith("256 MiB"), lines[-1]
    print(f"ok the half in use is hot ({hot:.1f} of 9), the other is not ({cold:.1f})")

    seen = json.loads(daemon.ctl("--json", "heat", f"{region}:64-127", "--seconds", "1").stdout)
    assert seen["first_page"] == 64 and seen["page_count"] == 64 and seen["samples"], seen
    print("ok of a part of the region, as JSON")

    before = svg.read_text()
    for args, code, words in (((str(region + 7),), 1, "kvmemctl regions"), (("x",), 2, "is not REGION"),
                              ((str(region), "--seconds", "0"), 2, "--seconds"),
                              ((str(region), "--interval", "90"), 2, "--interval")):
        done = daemon.ctl("heat", *args, "--svg", svg)
        assert done.returncode == code and words in done.stderr, (args, done)
    for place in ("/nonexistent/heat.svg", str(folder), "/dev/null"):
        done = daemon.ctl("heat", str(region), "--svg", place)
        assert done.returncode == 1 and "name " in done.stderr and done.stdout == "", (place, done)
    assert svg.read_text() == before and os.listdir(folder) == ["heat.svg"], os.listdir(folder)
    print("ok what cannot be drawn is said at once, and leaves what was there")

    def begin():
        child = start([CTL, "--socket", daemon.socket, "heat", str(region), "--seconds", "600",
                                  "--interval", "0.2", "--svg", svg], stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True)
        for _ in range(3):
            assert child.stdout.readline()
        assert svg.read_text() == before
        return child

    for number in (signal.SIGINT, signal.SIGTERM):
        child = begin()
        child.send_signal(number)
        out, err = child.communicate(timeout=WAIT_S)
        assert child.returncode == 0 and "address" in out, err
        assert svg.read_text() != before and halves(svg.read_text())[0] > 3
        before = svg.read_text()
    child = begin()
    child.stdout.close()  # as `| head` does
    assert child.wait(WAIT_S) == 0, child.stderr.read()
    assert svg.read_text() != before, child.stderr.read()
    child.stderr.close()
    before = svg.read_text()
    print("ok an interrupt ends it early, and what was seen is drawn")

    child = begin()
    engine.stop()
    out, err = child.communicate(timeout=WAIT_S)
    assert child.returncode == 5 and "ended early" in err, (child.returncode, err)
    assert svg.read_text() != before and os.listdir(folder) == ["heat.svg"]
    print("ok a region that goes away likewise, with the status of what is done in part")
    daemon.stop()


def main():
    if not may_serve():
        print("views: skipped, no permission for /dev/userfaultfd")
        sys.exit(77)
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="views-") as work:
        try:
            {"top": top, "heat": heat}[sys.argv[2]](work)
        finally:
            for child in CHILDREN:
                if child.poll() is None:
                    child.kill()
                    child.wait()


main()
