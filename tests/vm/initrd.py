#!/usr/bin/env python3
"""Writes the test machine's initial file system: busybox, init, and a kernel's modules with the modules
that they need, in the order in which they are loaded (lib/modules/order).

usage: initrd.py ROOT RELEASE INIT OUT MODULE...
    ROOT has lib/modules/RELEASE and bin/busybox; a MODULE that is built into the kernel is left out.
"""

import gzip
import lzma
import re
import sys
from pathlib import Path


def main():
    root, release, init, out = (Path(a) for a in sys.argv[1:5])
    folder = root / "lib/modules" / release
    built_in = {module_name(line) for line in (folder / "modules.builtin").read_text().split()}
    paths = {module_name(p): p for p in (folder / "kernel").rglob("*.ko*")}
    modules = {}  # by name, those that others need first

    def add(name):
        if name in modules or name in built_in:
            return
        data = paths[name].read_bytes()
        if paths[name].suffix == ".xz":
            data = lzma.decompress(data)
        # What modinfo shows; modules.dep would have to be made by depmod.
        for needed in re.search(rb"\0depends=([^\0]*)\0", data).group(1).decode().split(","):
            if needed:
                add(needed.replace("-", "_"))
        modules[name] = data

    for name in sys.argv[5:]:
        if name not in built_in and name not in paths:
            sys.exit(f"initrd.py: {release} has no module {name}")
        add(name)

    archive = Archive()
    for name in ("bin", "dev", "proc", "sys", "run", "host", "rw", "root", "lib", "lib/modules"):
        archive.add(name, 0o040755)
    archive.add("init", 0o100755, init.read_bytes())
    archive.add("bin/busybox", 0o100755, (root / "bin/busybox").read_bytes())
    for name, data in modules.items():
        archive.add(f"lib/modules/{name}.ko", 0o100644, data)
    archive.add("lib/modules/order", 0o100644, "".join(f"{name}\n" for name in modules).encode())
    archive.add("TRAILER!!!", 0)
    out.write_bytes(gzip.compress(bytes(archive.bytes), 1))


def module_name(path):
    return Path(path).name.split(".ko")[0].replace("-", "_")


class Archive:
    """The kernel's Documentation/driver-api/early-userspace/buffer-format.rst: "newc"."""

    def __init__(self):
        self.bytes = bytearray()
        self.files = 0

    def add(self, name, mode, data=b""):
        self.files += 1
        fields = (self.files, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        self.bytes += b"070701" + b"".join(b"%08x" % f for f in fields) + name.encode() + b"\0"
        self.bytes += bytes(-len(self.bytes) % 4) + data
        self.bytes += bytes(-len(self.bytes) % 4)


main()
