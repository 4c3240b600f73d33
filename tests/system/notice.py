#!/usr/bin/env python3
"""The one line reaches an engine's standard error whatever that is, and nothing else: sockets and
pipes of another user have it, a file of data that took over descriptor 2 has not, and a pipe that
nobody reads kills no engine.

usage: notice.py BUILD_DIR PROGRAM ARGS...    PROGRAM makes large allocations
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

# What it opens next becomes 2.
REUSES_2 = """
import os, sys
os.close(2)
assert os.open(sys.argv[1], os.O_CREAT | os.O_RDWR, 0o600) == 2
assert len(bytearray(200 << 20)) and len(bytearray(300 << 20))
"""
# Nobody reads, and SIGPIPE would end the engine.
UNREAD = """
import signal
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
assert len(bytearray(200 << 20))
print("alive", signal.sigpending() == set())
"""


def main() -> None:
    build, program = Path(sys.argv[1]).resolve(), sys.argv[2:]
    with tempfile.TemporaryDirectory(dir=build) as work:
        env = {**os.environ, "LD_PRELOAD": str(build / "lib/libkvmem.so"),
               "KVMEM_SOCKET": f"{work}/nobody.sock", "KVMEM_TEST_MANAGED": "0"}

        def run(command, stderr, **options):
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=stderr, timeout=60, **options)
            assert done.returncode == 0, (command, done.returncode)
            return done.stdout

        def one_line(text, what):
            assert text.startswith(b"kvmem: passing through") and text.count(b"\n") == 1, (what, text)
            print("ok", what)

        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
            run(program, theirs.fileno())
            theirs.close()
            one_line(ours.recv(4096), f"standard error is a socket ({kind.name})")

        reader, writer = os.pipe()
        nobody = {"user": 65534, "group": 65534, "extra_groups": []}
        closed = os.geteuid() != 0 or subprocess.run(["test", "-x", program[0]], **nobody).returncode != 0
        who = {} if closed else nobody
        run(program, writer, **who)
        os.close(writer)
        one_line(os.read(reader, 4096), "standard error is a pipe of " + ("another user" if who else "this user"))
        assert os.read(reader, 1) == b"", "the pipe never ended"
        os.close(reader)

        with open(f"{work}/log", "wb") as log:
            log.write(b"before\n")
            log.flush()
            run(program, log)
            log.write(b"after\n")
        text = Path(f"{work}/log").read_bytes()
        assert text.startswith(b"before\nkvmem: ") and text.endswith(b"\nafter\n"), text
        print("ok standard error is a file that others write to as well")

        data = f"{work}/data"
        run([sys.executable, "-c", REUSES_2, data], subprocess.DEVNULL)
        assert os.path.getsize(data) == 0, Path(data).read_bytes()
        print("ok a file of data that has the number 2 by now gets nothing")

        reader, writer = os.pipe()
        os.close(reader)
        assert run([sys.executable, "-c", UNREAD], writer) == b"alive True\n"
        os.close(writer)
        print("ok nobody reads: no SIGPIPE")

        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        try:
            while os.write(writer, bytes(4096)):
                pass
        except BlockingIOError:
            pass
        os.set_blocking(writer, True)
        run(program, writer)
        print("ok a full pipe holds nobody up")


if __name__ == "__main__":
    main()
