#!/usr/bin/env python3
"""kvmemctl from outside: exit statuses, run's promises to the engine, its cleaning up.

usage: cli.py BUILD_DIR SOURCE_DIR [unittest arguments]

The daemon is a fake, so that it can be made to fail; engines are small scripts, for which
libkvmem stays inert.
"""
import contextlib
import json
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BUILD, SOURCE = (pathlib.Path(p).resolve() for p in sys.argv[1:3])
HERE = pathlib.Path(__file__).resolve().parent
CTL = str(BUILD / "bin" / "kvmemctl")
FAKE = str(HERE / "fake_kvmemd.py")


def library():
    built = BUILD / "lib" / "libkvmem.so"
    return str(built) if built.exists() else "/lib/x86_64-linux-gnu/libm.so.6"


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def state(pid):
    """As in ps: R, S, T stopped, Z zombie; "" when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""


def alive(pid):
    return state(pid) not in ("", "Z")


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvmem-cli-")
        self.addCleanup(folder.cleanup)
        self.tmp = pathlib.Path(folder.name)
        for name in ("run", "cache"):
            (self.tmp / name).mkdir(mode=0o700)
        self.record = self.tmp / "record"
        self.env = {k: v for k, v in os.environ.items()
                    if not k.startswith("KVMEM") and k != "LD_PRELOAD"}
        self.env |= {"XDG_RUNTIME_DIR": str(self.tmp / "run"), "XDG_CACHE_HOME": str(self.tmp / "cache"),
                     "KVMEM_SOCKET": str(self.tmp / "no.sock")}

    def wish(self, *wishes):
        self.env["FAKE_KVMEMD"] = " ".join((f"record={self.record}", *wishes))

    def starts(self):
        if not self.record.exists():
            return []
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def ctl(self, *args, **kwargs):
        return subprocess.run([CTL, *args], env=self.env, capture_output=True, text=True, timeout=60,
                              **kwargs)

    def run_args(self, *args):
        return [CTL, "run", "--kvmemd", FAKE, "--library", library(), *args]

    def run_engine(self, *args, **kwargs):
        return subprocess.run(self.run_args(*args), env=self.env, capture_output=True, text=True,
                              timeout=60, **kwargs)

    @contextlib.contextmanager
    def running(self, *args, **kwargs):
        child = subprocess.Popen(self.run_args(*args), env=self.env, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True, process_group=0, **kwargs)
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()
            child.communicate()

    def assert_clean(self):
        left = [str(p.relative_to(self.tmp)) for d in ("run", "cache") for p in (self.tmp / d).rglob("*")
                if p != self.tmp / "cache" / "kvmem"]
        self.assertEqual(left, [])
        self.assertEqual([s["pid"] for s in self.starts() if alive(s["pid"])], [])


class Statuses(Case):
    def test_no_daemon_is_3_and_says_how_to_start_one(self):
        for command in (["status"], ["tiers"], ["regions"], ["pages", "1"], ["explain", "1:2"],
                        ["promote", "1"], ["drain", "dram"]):
            done = self.ctl(*command)
            self.assertEqual(done.returncode, 3, command)
            self.assertIn("kvmemctl run", done.stderr)

    def test_errors_are_json_when_asked(self):
        done = self.ctl("status", "--json")
        self.assertEqual(json.loads(done.stdout)["exit_status"], 3)

    def test_a_wrong_command_line_is_2(self):
        for command in ([], ["stat"], ["pages"], ["pages", "x"], ["explain", "1"], ["explain", "1:2-3"],
                        ["status", "--loud"], ["promote", "1:5-2"], ["config"], ["--color", "blue", "status"]):
            self.assertEqual(self.ctl(*command).returncode, 2, command)

    def test_help_and_version_are_0(self):
        self.assertIn("Exit status", self.ctl("--help").stdout)
        self.assertEqual(self.ctl("run", "--help").returncode, 0)
        self.assertRegex(self.ctl("--version").stdout, r"^kvmemctl \d+\.\d+")

    def test_config_check(self):
        self.assertEqual(self.ctl("config", "check", str(SOURCE / "daemon/packaging/kvmemd.toml")).stdout,
                         f"{SOURCE}/daemon/packaging/kvmemd.toml: ok\n")
        bad = self.tmp / "bad.toml"
        bad.write_text("[dram]\nbudgit = 1\n[log]\nlevel = 3\n")
        done = self.ctl("config", "check", str(bad))
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"{bad}:2: dram.budgit: no such key; did you mean dram.budget?", done.stderr)
        self.assertIn(f"{bad}:4: log.level", done.stderr)
        done = self.ctl("config", "check", str(bad), "--json")
        self.assertEqual([p["line"] for p in json.loads(done.stdout)["problems"]], [2, 4])
        self.assertEqual(self.ctl("config", "check", str(self.tmp / "none")).returncode, 1)

    def test_config_shown_checks_ok(self):
        shown = self.tmp / "shown.toml"
        shown.write_text(self.ctl("config", "show").stdout)
        self.assertEqual(self.ctl("config", "check", str(shown)).returncode, 0)

    def test_readme_names_every_key(self):
        readme = (SOURCE / "README.md").read_text()
        for key in json.loads(self.ctl("config", "keys", "--json").stdout):
            self.assertIn(f"`{key['key']}`", readme)
            self.assertIn(f"`{key['default']}`", readme)

    def test_actions(self):
        for refuse, code in ((0, 0), (2, 5)):
            socket = str(self.tmp / f"s{refuse}")
            env = self.env | {"FAKE_KVMEMD": f"refuse={refuse}"}
            daemon = subprocess.Popen([FAKE, "--socket", socket], env=env)
            self.addCleanup(daemon.wait)
            self.addCleanup(daemon.kill)
            self.assertTrue(wait_until(lambda: self.ctl("--socket", socket, "tiers").returncode == 0))
            done = self.ctl("demote", "1:0-3", "--socket", socket)
            self.assertEqual(done.returncode, code)
            self.assertIn("demoting 4 of 4 pages", done.stdout)


class Run(Case):
    def test_engine_gets_its_arguments_environment_and_standard_input(self):
        self.wish()
        done = self.run_engine("--", "sh", "-c", 'echo "$@"; echo $LD_PRELOAD; echo $KVMEM_SOCKET; cat',
                               "x", "--json", "--", "-v", "a b", input="input")
        lines = done.stdout.splitlines()
        self.assertEqual(lines[0], "--json -- -v a b")
        self.assertEqual(lines[1], library())
        self.assertTrue(lines[2].startswith(str(self.tmp / "run")), lines[2])
        self.assertEqual(lines[3], "input")
        self.assertEqual(done.stderr, "")
        self.assertEqual(done.returncode, 0)
        self.assert_clean()

    def test_two_dashes_may_be_left_out(self):
        self.wish()
        self.assertEqual(self.run_engine("echo", "-n", "x").stdout, "x")

    def test_what_is_preloaded_already_stays(self):
        self.wish()
        self.env["LD_PRELOAD"] = "/lib/x86_64-linux-gnu/libdl.so.2"
        done = self.run_engine("--", "sh", "-c", "echo $LD_PRELOAD")
        self.assertEqual(done.stdout, f"{library()}:/lib/x86_64-linux-gnu/libdl.so.2\n")

    def test_exit_status_is_the_engines(self):
        self.wish()
        for script, status in (("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)):
            self.assertEqual(self.run_engine("--", "sh", "-c", script).returncode, status, script)
        self.assert_clean()

    def test_engine_that_cannot_run_is_126_or_127(self):
        self.wish()
        self.assertEqual(self.run_engine("--", "/nonexistent").returncode, 127)
        self.assertEqual(self.run_engine("--", "/etc/passwd").returncode, 126)
        self.assertEqual(self.run_engine().returncode, 125)
        self.assertEqual(self.run_engine("--dram", "lots", "--", "true").returncode, 125)
        self.assert_clean()

    def test_private_daemon_gets_flags_log_and_no_stray_descriptor(self):
        self.wish()
        self.env["LD_PRELOAD"] = library()
        done = self.run_engine("--dram", "64MiB", "--store-size", "512MiB", "--", "true")
        self.assertEqual(done.returncode, 0, done.stderr)
        start = self.starts()[0]
        argv = start["argv"]
        value = lambda name: argv[argv.index(name) + 1]
        self.assertIn("--foreground", argv)
        self.assertEqual(value("--dram"), "64MiB")
        self.assertEqual(value("--store-size"), "512MiB")
        self.assertTrue(value("--store").startswith(str(self.tmp / "cache/kvmem")))
        self.assertTrue(value("--socket").startswith(value("--runtime-dir")))
        self.assertEqual(value("--ready-fd"), "3")
        self.assertEqual(start["sid"], start["pid"])
        self.assertEqual(start["fds"][:4], [0, 1, 2, 3])
        self.assertLessEqual(len(start["fds"]), 6)  # and the record, and the listing itself
        self.assertEqual(start["preload"], None if "libkvmem" in library() else library())
        self.assert_clean()

    def test_store_of_the_callers_choice(self):
        self.wish()
        disk = self.tmp / "disk"
        disk.mkdir()
        self.run_engine("--store", str(disk), "--", "true")
        self.run_engine("--store", str(disk / "file"), "--store-size", "1GiB", "--", "true")
        self.run_engine("--store", "none", "--", "true")
        stores = [s["argv"][s["argv"].index("--store") + 1] for s in self.starts()]
        self.assertTrue(stores[0].startswith(str(disk) + "/kvmem-run-"), stores[0])
        self.assertEqual(stores[1:], [str(disk / "file"), ""])
        self.assertEqual(list(disk.iterdir()), [])

    def test_store_that_was_there_stays(self):
        self.wish()
        store = self.tmp / "store"
        store.write_text("mine")
        self.run_engine("--store", str(store), "--", "true")
        self.assertEqual(store.read_text(), "mine")

    def test_daemon_that_answers_is_used(self):
        self.wish()
        socket = str(self.tmp / "system.sock")
        daemon = subprocess.Popen([FAKE, "--socket", socket], env=self.env)
        self.addCleanup(daemon.wait)
        self.addCleanup(daemon.kill)
        self.assertTrue(wait_until(lambda: self.ctl("--socket", socket, "tiers").returncode == 0))
        self.env["KVMEM_SOCKET"] = socket
        script = ("--", "sh", "-c", "echo $KVMEM_SOCKET")
        self.assertEqual(self.run_engine(*script).stdout.strip(), socket)
        self.assertEqual(len(self.starts()), 1)
        for own in (("--private",), ("--dram", "64MiB"), ("--store", "none")):
            self.assertNotEqual(self.run_engine(*own, *script).stdout.strip(), socket)
        self.assertEqual(len(self.starts()), 4)
        self.assertTrue(alive(daemon.pid))

    def test_engine_runs_without_a_daemon_and_one_line_says_why(self):
        for options, wish, words in (({"--kvmemd": "/bin/false"}, "", "cannot serve"),
                                     ({}, "die", "no memory on the moon")):
            self.wish(*wish.split())
            options = {"--kvmemd": FAKE, "--library": library()} | options
            flags = [word for option in options.items() for word in option]
            done = self.ctl("run", *flags, "--", "sh", "-c", "echo served:$LD_PRELOAD; exit 4")
            self.assertEqual(done.stdout, "served:\n", words)
            self.assertEqual(done.returncode, 4)
            self.assertIn(words, done.stderr)
            self.assertIn("runs without kvmem", done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assert_clean()

    def test_a_mistake_on_the_command_line_starts_no_engine(self):
        for mistake, words in ((("--library", "/nonexistent"), "no /nonexistent"),
                               (("--kvmemd", "/nonexistent"), "/nonexistent is not a program"),
                               (("--store", "/nonexistent/store"), "no folder /nonexistent"),
                               (("--store", "/dev/null"), "no file, folder or block device"),
                               (("--json-report", "/nonexistent/r"), "cannot write /nonexistent/r"),
                               (("--drm", "64MiB"), "--drm is no option"),
                               (("--drm=64MiB",), "--drm=64MiB is no option"),
                               (("python3",), "python3 is no option")):
            done = self.ctl("run", *mistake, "--", "sh", "-c", "echo ran")
            self.assertEqual((done.returncode, done.stdout), (125, ""), mistake)
            self.assertIn(words, done.stderr)
        done = self.ctl("run", "--drm", "64MiB", "sh", "-c", "echo ran")
        self.assertEqual((done.returncode, done.stdout), (125, ""))
        self.assert_clean()

    def test_report_holds_the_daemons_status_and_the_run(self):
        self.wish()
        report = self.tmp / "report.json"
        self.run_engine("--json-report", str(report), "--", "sh", "-c", "sleep 1.5; exit 3")
        content = json.loads(report.read_text())
        self.assertEqual(content["counters"]["demotions"], 7)
        self.assertEqual(content["last_seen"]["daemon"]["version"], "fake")
        self.assertEqual(content["run"]["exit_status"], 3)
        self.assertTrue(content["run"]["served"])
        self.assertEqual(content["run"]["daemon_restarts"], 0)
        self.assertGreater(content["run"]["wall_s"], 1)

    def test_kept_folders_stay(self):
        self.wish()
        done = self.run_engine("--keep", "--", "true")
        kept = re.findall(r"kept (\S+)", done.stderr)
        self.assertEqual(len(kept), 2)
        for folder in kept:
            self.assertTrue(os.path.isdir(folder))

    def test_stubborn_daemon_is_killed_in_time(self):
        self.wish("stubborn")
        began = time.monotonic()
        done = self.run_engine("--", "true")
        self.assertEqual(done.returncode, 0)
        self.assertLess(time.monotonic() - began, 15)
        self.assert_clean()


class Signals(Case):
    # Counts signals and leaves with the number of each.
    ENGINE = """
import os, signal, sys, time
seen = {}
def note(n, _): seen[n] = seen.get(n, 0) + 1
for n in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGINT): signal.signal(n, note)
done = []
signal.signal(signal.SIGTERM, lambda *_: done.append(1))
print("up", os.getpid(), flush=True)
while not done: time.sleep(0.01)
print({signal.Signals(k).name: v for k, v in sorted(seen.items())}, flush=True)
sys.exit(9)
"""

    def test_signals_to_kvmemctl_reach_the_engine_once(self):
        self.wish()
        with self.running("--", sys.executable, "-c", self.ENGINE) as child:
            self.assertTrue(child.stdout.readline().startswith("up"))
            for n in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGINT):
                child.send_signal(n)
                time.sleep(0.05)
            child.send_signal(signal.SIGTERM)
            out, err = child.communicate(timeout=30)
            self.assertEqual(out.strip(), "{'SIGHUP': 1, 'SIGINT': 1, 'SIGUSR1': 1, 'SIGUSR2': 1, 'SIGWINCH': 1}")
            self.assertEqual(child.returncode, 9, err)
        self.assert_clean()

    def test_terminals_interrupt_reaches_the_engine_once(self):
        self.wish()
        pid, master = pty.fork()
        if pid == 0:
            os.execve(CTL, self.run_args("--", sys.executable, "-c", self.ENGINE), self.env)
        text = b""
        def read_until(word):
            nonlocal text
            while word not in text:
                text += os.read(master, 4096)
        read_until(b"up ")
        time.sleep(0.2)
        os.write(master, b"\x03")
        time.sleep(0.3)
        os.kill(pid, signal.SIGTERM)
        read_until(b"}")
        self.assertIn(b"{'SIGINT': 1}", text)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 9)
        os.close(master)
        self.assert_clean()

    def test_stopping_kvmemctl_stops_the_engine_and_continues_it(self):
        self.wish()
        with self.running("--", sys.executable, "-c", "import os,time\nprint(os.getpid(),flush=True)\ntime.sleep(60)") as child:
            engine = int(child.stdout.readline())
            child.send_signal(signal.SIGTSTP)
            self.assertTrue(wait_until(lambda: state(engine) == "T" and state(child.pid) == "T"))
            child.send_signal(signal.SIGCONT)
            self.assertTrue(wait_until(lambda: state(engine) != "T" and state(child.pid) != "T"))
            child.send_signal(signal.SIGTERM)
            child.communicate(timeout=30)
            self.assertEqual(child.returncode, 143)

    def test_interrupt_while_the_daemon_starts(self):
        self.wish("hang")
        with self.running("--", "true") as child:
            self.assertTrue(wait_until(self.starts))
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=30)
            self.assertEqual(child.returncode, 130)
        self.assert_clean()


class Deaths(Case):
    SLEEPER = "import os,time\nprint(os.getpid(),flush=True)\ntime.sleep(60)"

    def test_daemon_that_is_killed_is_started_again_in_place(self):
        self.wish()
        report = self.tmp / "report.json"
        with self.running("--json-report", str(report), "--", sys.executable, "-c", self.SLEEPER) as child:
            child.stdout.readline()
            for n in range(1, 4):
                self.assertTrue(wait_until(lambda: len(self.starts()) == n))
                time.sleep(0.5)
                os.kill(self.starts()[-1]["pid"], signal.SIGKILL)
            self.assertTrue(wait_until(lambda: len(self.starts()) == 4))
            time.sleep(0.5)
            child.send_signal(signal.SIGTERM)
            _, err = child.communicate(timeout=30)
        self.assertEqual(err.count("starting it again"), 3, err)
        self.assertEqual(len({tuple(s["argv"]) for s in self.starts()}), 1)
        self.assertEqual(json.loads(report.read_text())["run"]["daemon_restarts"], 3)
        self.assert_clean()

    def test_daemon_that_dies_again_and_again_is_given_up(self):
        self.wish("die_after=0.01")
        with self.running("--", sys.executable, "-c", self.SLEEPER) as child:
            child.stdout.readline()
            lines = []
            while "not started again" not in "".join(lines):
                lines.append(child.stderr.readline())
                self.assertTrue(lines[-1])
            starts = len(self.starts())
            self.assertLessEqual(starts, 12)
            time.sleep(1)
            self.assertEqual(len(self.starts()), starts)
            self.assertIsNone(child.poll())  # the engine is the user's to stop
            child.send_signal(signal.SIGTERM)
            child.communicate(timeout=30)
            self.assertEqual(child.returncode, 143)
        self.assert_clean()

    def test_kvmemctl_that_is_killed_leaves_the_engine_its_daemon_and_then_nothing(self):
        self.wish()
        with self.running("--", sys.executable, "-c", self.SLEEPER) as child:
            engine = int(child.stdout.readline())
            daemon = self.starts()[0]["pid"]
            child.kill()
            child.wait()
            time.sleep(0.3)
            self.assertTrue(alive(daemon))
            self.assertTrue(alive(engine))
            os.kill(engine, signal.SIGTERM)
            self.assertTrue(wait_until(lambda: not alive(daemon)))
            self.assertTrue(wait_until(lambda: not list((self.tmp / "run").iterdir())))
        self.assert_clean()

    def test_left_overs_of_a_run_that_was_cut_off_are_removed_by_the_next(self):
        self.wish()
        stale = self.tmp / "cache/kvmem/kvmem-run-gone"
        stale.mkdir(parents=True)
        (stale / "lock").touch()
        (stale / "store").write_text("x" * 4096)
        self.run_engine("--", "true")
        self.assert_clean()


class Terminal(Case):
    def test_colours_and_width_are_the_terminals(self):
        self.wish()
        socket = str(self.tmp / "s")
        daemon = subprocess.Popen([FAKE, "--socket", socket], env=self.env)
        self.addCleanup(daemon.wait)
        self.addCleanup(daemon.kill)
        self.assertTrue(wait_until(lambda: self.ctl("--socket", socket, "tiers").returncode == 0))
        self.assertNotIn("\033", self.ctl("--socket", socket, "status").stdout)
        self.assertIn("\033[1m", self.ctl("--socket", socket, "status", "--color", "always").stdout)
        pid, master = pty.fork()
        if pid == 0:
            os.execve(CTL, [CTL, "--socket", socket, "status"], self.env | {"TERM": "xterm"})
        text = b""
        with contextlib.suppress(OSError):  # EIO at its end
            while part := os.read(master, 4096):
                text += part
        os.waitpid(pid, 0)
        self.assertIn(b"\033[1mkvmemd fake", text)

    def test_top_asks_once_an_interval_and_waits_for_no_answer_to_leave(self):
        for wish in ("", "silent"):
            requests = self.tmp / f"requests{wish}"
            socket = str(self.tmp / f"s{wish}")
            daemon = subprocess.Popen([FAKE, "--socket", socket],
                                      env=self.env | {"FAKE_KVMEMD": f"requests={requests} {wish}"})
            self.addCleanup(daemon.wait)
            self.addCleanup(daemon.kill)
            self.assertTrue(wait_until(lambda: os.path.exists(socket)))
            pid, master = pty.fork()
            if pid == 0:
                os.execve(CTL, [CTL, "--socket", socket, "top", "--interval", "0.5"], self.env | {"TERM": "vt100"})
            self.assertTrue(wait_until(requests.exists))
            began = time.monotonic()
            while time.monotonic() < began + 2.2:  # keys and sizes are no reason to ask
                os.write(master, b"s")
                os.kill(pid, signal.SIGWINCH)
                if select.select([master], [], [], 0.05)[0]:
                    os.read(master, 4096)
            asked = [float(line) for line in requests.read_text().split()]
            if wish == "silent":
                self.assertEqual(len(asked), 1)  # it is still waiting for that one
            else:
                self.assertGreater(len(asked), 1)
                self.assertLessEqual(len(asked), 2 + (asked[-1] - asked[0]) / 0.5)
            os.write(master, b"q")
            left = time.monotonic()
            with contextlib.suppress(OSError):
                while os.read(master, 4096):
                    pass
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
            self.assertLess(time.monotonic() - left, 5)  # of the ten that an answer may take
            os.close(master)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
