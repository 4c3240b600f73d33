#!/usr/bin/env python3
"""Runs a command in a memory cgroup of its own: memlimit.py BYTES [--drop FILE] -- COMMAND ARGS...

Cgroup v2 where its memory controller can be had, else v1; swap is not allowed to help. The cgroup
is removed when the command ends, however it ends. --drop puts FILE out of the page cache first, so
that its pages are charged to this cgroup when read again. Exits as the command does, or with 125
and a line on standard error if no such cgroup can be made.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

V1 = "/sys/fs/cgroup/memory"
V2 = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
CANNOT = 125


class NoCgroup(Exception):
    pass


def put(path: str, text: str) -> None:
    with open(path, "w") as f:
        f.write(text)


def make_v2(root: str, name: str, limit: int) -> str:
    with open(f"{root}/cgroup.controllers") as f:
        if "memory" not in f.read().split():
            raise NoCgroup("the memory controller is not in the v2 hierarchy")
    with open(f"{root}/cgroup.subtree_control") as f:
        if "memory" not in f.read().split():
            raise NoCgroup("the memory controller is not enabled for children of the v2 root")
    path = f"{root}/{name}"
    os.mkdir(path)
    try:
        put(f"{path}/memory.max", str(limit))
        if os.path.exists(f"{path}/memory.swap.max"):
            put(f"{path}/memory.swap.max", "0")
    except OSError:
        os.rmdir(path)
        raise
    return path


def make_v1(name: str, limit: int) -> str:
    path = f"{V1}/{name}"
    os.mkdir(path)
    try:
        put(f"{path}/memory.limit_in_bytes", str(limit))
        if os.path.exists(f"{path}/memory.memsw.limit_in_bytes"):
            put(f"{path}/memory.memsw.limit_in_bytes", str(limit))
    except OSError:
        os.rmdir(path)
        raise
    return path


def make(limit: int) -> str:
    name, why = f"kvmem-{os.getpid()}", []
    for root in V2:
        try:
            return make_v2(root, name, limit)
        except (OSError, NoCgroup) as e:
            why.append(str(e))
    try:
        return make_v1(name, limit)
    except OSError as e:
        raise NoCgroup("; ".join([*why, str(e)])) from e


def drop_cache(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)  # only clean pages can be dropped
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def peak_bytes(cgroup: str) -> int:
    for name in ("memory.peak", "memory.max_usage_in_bytes"):
        try:
            with open(f"{cgroup}/{name}") as f:
                return int(f.read())
        except OSError:
            continue
    return 0


def remove(cgroup: str) -> None:
    """A killed command's pages and children can hold the cgroup for a moment."""
    for _ in range(50):
        try:
            os.rmdir(cgroup)
            return
        except OSError:
            time.sleep(0.1)
    print(f"memlimit.py: could not remove {cgroup}", file=sys.stderr)


def run(cgroup: str | None, command: list[str], on_line: Callable[[str], None] | None = None) -> int:
    """The command's exit code, 128 + N for signal N. on_line gets its standard error by lines.

    SIGTERM, SIGINT and SIGHUP are passed on to the command, so that ends here run.
    """
    def enter() -> None:
        if cgroup:
            put(f"{cgroup}/cgroup.procs", str(os.getpid()))

    child = subprocess.Popen(command, preexec_fn=enter, text=True,
                             stderr=subprocess.PIPE if on_line else None)

    def pass_on(signum: int, _frame) -> None:
        child.send_signal(signum)

    old = {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        if on_line:
            for line in child.stderr:
                on_line(line)
        code = child.wait()
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
    return code if code >= 0 else 128 - code


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("limit", type=int)
    ap.add_argument("--drop")
    ap.add_argument("--peak", help="write the most memory the cgroup held, in bytes, to this file")
    ap.add_argument("command", nargs=argparse.REMAINDER)
    args = ap.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        ap.error("no command")
    if args.drop:
        drop_cache(args.drop)
    try:
        cgroup = make(args.limit)
    except NoCgroup as e:
        print(f"memlimit.py: no memory cgroup can be made: {e}", file=sys.stderr)
        return CANNOT
    try:
        return run(cgroup, command)
    finally:
        if args.peak:
            put(args.peak, str(peak_bytes(cgroup)))
        remove(cgroup)


if __name__ == "__main__":
    sys.exit(main())
