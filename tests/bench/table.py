#!/usr/bin/env python3
"""Benchmark results, one JSON object per line on standard input, as a table."""

import json
import sys

COLUMNS = ("case", "metric", "value", "unit", "reference", "ratio")


def cell(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.3f}"


def main() -> int:
    rows = []
    for line in sys.stdin:
        try:
            rows.append([cell(json.loads(line).get(c)) for c in COLUMNS])
        except ValueError:
            print(line, end="", file=sys.stderr)
    widths = [max(len(r[i]) for r in [COLUMNS, *rows]) for i in range(len(COLUMNS))]
    right = [rows and all(r[i][:1] in "-0123456789" for r in rows) for i in range(len(COLUMNS))]
    for row in [COLUMNS, *rows]:
        print("  ".join(c.rjust(w) if r else c.ljust(w)
                        for c, w, r in zip(row, widths, right)).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
