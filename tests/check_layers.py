#!/usr/bin/env python3
"""Fail when a source file includes a module its layer may not see.

usage: check_layers.py ROOT TABLE

Headers are included by the path below libkvmem/ or daemon/ ("base/status.h", "tier/store.h"), those
of kernels/ and ebpf/ by the whole path.
"""
import pathlib
import re
import sys

SUFFIXES = {".h", ".cc", ".c", ".cu"}
INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')


def load_table(path):
    table = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        module, _, deps = line.partition(":")
        for dep in deps.split():
            if dep not in table:
                sys.exit(f"{path}:{number}: {dep} must be declared above {module}")
        table[module.strip()] = set(deps.split())
    return table


def main():
    root, table_path = map(pathlib.Path, sys.argv[1:3])
    table = load_table(table_path)
    roots = [root / "libkvmem", root / "libkvmem" / "include", root / "daemon", root]
    faults, seen = 0, 0
    for file in sorted(p for top in ("kernels", "ebpf", "libkvmem", "daemon") for p in (root / top).rglob("*")):
        if file.suffix not in SUFFIXES:
            continue
        seen += 1
        module = file.relative_to(root).parent.as_posix()
        if module not in table:
            print(f"{file}: its folder '{module}' is not in {table_path.name}")
            faults += 1
            continue
        for number, line in enumerate(file.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            target = next((r / match[1] for r in roots if (r / match[1]).exists()), None)
            if target is None and (file.parent / match[1]).exists():
                target = file.parent / match[1]
            if target is None:
                print(f"{file}:{number}: \"{match[1]}\" is not a project header")
                faults += 1
                continue
            other = target.relative_to(root).parent.as_posix()
            if other != module and other not in table[module]:
                print(f"{file}:{number}: {module} may not include {other}")
                faults += 1
    if seen == 0:
        sys.exit(f"no sources below {root}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
