#!/usr/bin/env python3
"""A cooperative engine, small enough to read: beams of one prompt in a KV pool on the host.

    build/release/bin/kvmemctl run --private -- python3 examples/kv_pool.py

Beams share the pages of the prompt. With more beams than the daemon has DRAM for, those that are not
stepped go to the page store and come back when they are. On a GPU the same calls work with device=0,
once PyTorch has touched it; there torch.as_tensor(pool.view(layer), device="cuda") is a layer's keys.
"""

import os
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TREE / "libkvmem/python"))
os.environ.setdefault("KVMEM_LIBRARY", str(TREE / "build/release/lib/libkvmem.so"))
import kvmem  # pylint: disable=wrong-import-position

LAYERS, HEADS, HEAD_DIM, PROMPT, BEAMS, ANSWER = 16, 4, 128, 1000, 8, 100


def write(pool, sequence, token, value):
    """In place of a forward pass: what it would leave as keys and values of a token."""
    for layer in range(LAYERS):
        for is_value in (False, True):
            view = pool.view(layer, is_value)
            for head in range(HEADS):
                view.head(sequence, token, head)[:] = bytes([(value + layer + head) % 256]) * (HEAD_DIM * 2)


def is_right(pool, sequence, token, value):
    return all(pool.view(layer, is_value).head(sequence, token, head) == bytes([(value + layer + head) % 256]) * (HEAD_DIM * 2)
               for layer in range(LAYERS) for is_value in (False, True) for head in range(HEADS))


def main():
    with kvmem.KvPool(LAYERS, HEADS, HEAD_DIM, element_bytes=2, tokens_max=4096, sequences_max=BEAMS + 1,
                      bytes_max=256 << 20, tag="kv") as pool:
        prompt = pool.open_sequence()
        pool.extend(prompt, PROMPT)
        for token in range(PROMPT):
            write(pool, prompt, token, token)
        beams = [pool.fork(prompt, PROMPT) for _ in range(BEAMS)]
        pool.close_sequence(prompt)  # its pages stay the beams'
        for n in range(ANSWER):
            pool.step(beams)
            for beam in beams:
                write(pool, beam, PROMPT + n, 31 * beam + n)
        for beam in beams:
            assert all(is_right(pool, beam, token, token) for token in range(0, PROMPT, 7))
            assert all(is_right(pool, beam, PROMPT + n, 31 * beam + n) for n in range(ANSWER))
        stats = pool.stats()
        alone = BEAMS * -(-(PROMPT + ANSWER) * 2 * LAYERS * HEADS * HEAD_DIM * 2 // stats["page_bytes"])
        print(f"{BEAMS} beams of {PROMPT + ANSWER} tokens in {stats['bytes'] >> 20} MiB; without sharing they would take "
              f"{alone * stats['page_bytes'] >> 20} MiB")
        print(f"{stats['grown_pages']} pages that steps needed, {stats['grown_pages'] - stats['late_pages']} of them mapped ahead")


if __name__ == "__main__":
    main()
