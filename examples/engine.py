#!/usr/bin/env python3
"""Runs a GGUF model on the CPU with llama.cpp (the package `xllamacpp`, as PyPI has it).

Greedy decoding with a fixed prompt, so two runs of the same model must give the same tokens; the
digest also covers the probabilities of the best tokens, which change with almost any wrong byte.
Knows nothing of kvmem. Prints one JSON object.
"""

import argparse
import hashlib
import json
import math
import os
import random
import resource
import struct
import sys
import time


def parse_args() -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("model")
    how = ap.add_mutually_exclusive_group()
    how.add_argument("--mmap", dest="mmap", action="store_true", default=True,
                     help="map the weights from the file (default)")
    how.add_argument("--no-mmap", dest="mmap", action="store_false",
                     help="read the weights into allocated memory")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--n-ctx", type=int, default=4096)
    ap.add_argument("--n-predict", type=int, default=32)
    ap.add_argument("--n-prompt", type=int, default=16, help="random tokens, if no --prompt")
    ap.add_argument("--prompt", help="text, instead of random tokens")
    ap.add_argument("--warmup", action="store_true", help="let the engine touch all weights first")
    ap.add_argument("--output", help="write the JSON here instead of standard output")
    ap.add_argument("--progress", action="store_true", help="a line per token on standard error")
    ap.add_argument("--verbose", action="store_true", help="the engine's own log")
    return ap.parse_args()


def read_bytes() -> int:
    """What this process made the disk read."""
    try:
        with open("/proc/self/io") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("read_bytes"))
    except OSError:
        return 0


def load(args: argparse.Namespace):
    import xllamacpp as xl

    p = xl.CommonParams()
    p.model.path = args.model
    modes = xl.llama_load_mode
    p.load_mode = modes.LLAMA_LOAD_MODE_MMAP if args.mmap else modes.LLAMA_LOAD_MODE_NONE
    p.lazy_mode = xl.llama_lazy_mode.LLAMA_LAZY_MODE_OFF
    p.no_extra_bufts = True  # compute on the weights where they are, no repacked copy
    p.fit_params = False  # the sizes below are meant
    p.n_gpu_layers = 0
    p.n_ctx = args.n_ctx
    p.n_parallel = 1
    p.n_batch = p.n_ubatch = 128
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = args.threads
    p.warmup = args.warmup
    p.cache_ram_mib = 0  # no copies of finished prompts
    p.n_threads_http = 2
    p.ui = False
    p.use_jinja = False
    p.sampling.seed = 1
    p.verbosity = 4 if args.verbose else 0
    return xl.Server(p)


def digest(steps: list[dict]) -> str:
    h = hashlib.sha256()
    for step in steps:
        for top in [step, *step["top_logprobs"]]:
            logprob = top["logprob"]  # null where the engine computed a NaN
            h.update(struct.pack("<id", top["id"], math.nan if logprob is None else logprob))
    return h.hexdigest()


def generate(server, args: argparse.Namespace) -> tuple[list[dict], list[float], dict]:
    """The decoded steps, when each arrived, and the engine's own timings."""
    rng = random.Random(1)
    steps, times, last = [], [], {}

    def on_chunk(chunk: dict) -> bool:
        last.update(chunk)
        for choice in chunk.get("choices", []):
            steps.extend((choice["logprobs"] or {}).get("content", []))
        while len(times) < len(steps):
            times.append(time.monotonic())
            if args.progress:
                print(f"token {len(times)}/{args.n_predict} read_bytes {read_bytes()}",
                      file=sys.stderr, flush=True)
        return False

    server.handle_completions({
        "prompt": args.prompt or [1] + [rng.randrange(300, 1000) for _ in range(args.n_prompt)],
        "n_predict": args.n_predict,
        "temperature": 0.0,
        "top_k": 1,
        "seed": 1,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
        "logprobs": 5,
    }, on_chunk)
    if "timings" not in last:
        raise RuntimeError(f"the engine answered: {json.dumps(last)[:500]}")
    return steps, times, last["timings"]


def main() -> int:
    args = parse_args()
    began = time.monotonic()
    server = load(args)
    loaded = time.monotonic()
    read_load = read_bytes()
    try:
        steps, times, timings = generate(server, args)
    except RuntimeError as e:
        print(e, file=sys.stderr)
        return 1
    usage = resource.getrusage(resource.RUSAGE_SELF)
    tokens = [s["id"] for s in steps]
    result = {
        "tokens": tokens,
        "digest": digest(steps),
        "n_tokens": len(tokens),
        "tokens_per_s": timings["predicted_per_second"],
        "prompt_tokens_per_s": timings["prompt_per_second"],
        "token_times_s": [round(t - loaded, 6) for t in times],
        "load_s": loaded - began,
        "run_s": time.monotonic() - loaded,
        "read_bytes_load": read_load,
        "read_bytes_run": read_bytes() - read_load,
        "major_faults": usage.ru_majflt,
        "minor_faults": usage.ru_minflt,
        "max_rss_bytes": usage.ru_maxrss * 1024,
        "mmap": args.mmap,
        "threads": args.threads,
    }
    out = open(args.output, "w") if args.output else sys.stdout
    print(json.dumps(result), file=out, flush=True)
    return 0


if __name__ == "__main__":
    # The answer is out: skip the interpreter's teardown of the engine's server threads.
    status = main()
    sys.stderr.flush()
    os._exit(status)
