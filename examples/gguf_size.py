#!/usr/bin/env python3
"""How much memory a GGUF model needs: JSON with weights_bytes, kv_bytes (F16, at --n-ctx) and the
parts that a benchmark needs. Reads the header only. Needs the package `gguf`."""

import argparse
import json
import sys

import gguf


def scalar(reader: gguf.GGUFReader, key: str, default=None):
    field = reader.get_field(key)
    if field is None:
        if default is None:
            raise KeyError(key)
        return default
    value = field.contents()
    return max(value) if isinstance(value, list) else value  # per layer: the largest is enough


def sizes(path: str, n_ctx: int) -> dict:
    r = gguf.GGUFReader(path)
    arch = scalar(r, "general.architecture")
    layers = int(scalar(r, f"{arch}.block_count"))
    heads = int(scalar(r, f"{arch}.attention.head_count"))
    kv_heads = int(scalar(r, f"{arch}.attention.head_count_kv", heads))
    head = int(scalar(r, f"{arch}.embedding_length")) // heads
    key = int(scalar(r, f"{arch}.attention.key_length", head))
    value = int(scalar(r, f"{arch}.attention.value_length", head))
    by_name = {t.name: int(t.n_bytes) for t in r.tensors}
    return {
        "arch": arch,
        "layers": layers,
        "weights_bytes": sum(by_name.values()),
        "kv_bytes": layers * kv_heads * (key + value) * 2 * n_ctx,
        "kv_bytes_per_token": layers * kv_heads * (key + value) * 2,
        "embedding_bytes": by_name.get("token_embd.weight", 0),
        "experts_bytes": sum(n for name, n in by_name.items() if "_exps." in name),
    }


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("model")
    ap.add_argument("--n-ctx", type=int, default=4096)
    args = ap.parse_args()
    try:
        print(json.dumps(sizes(args.model, args.n_ctx)))
    except (OSError, ValueError, KeyError) as e:
        print(f"{args.model}: not a GGUF model this script can read: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
