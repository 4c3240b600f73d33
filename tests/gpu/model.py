#!/usr/bin/env python3
"""A language model with random weights generates greedily: tokens, and how fast.

One JSON object on standard output: what was generated, a hash of every logit's bits, how much memory of
the GPU it took. Run twice by report.py, once with libkvmem preloaded. Exits 77 without torch or
transformers, or where torch finds no GPU.
"""

import argparse
import hashlib
import json
import os
import sys
import time

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SPARE = 2 << 30  # of the GPU's memory, left alone
LONG_ENOUGH_S = 12.0
GENERATIONS = 3


def skip(why: str) -> None:
    print(json.dumps({"kind": "skip", "text": why}), flush=True)
    sys.exit(77)


def layers_of(hidden: int, vocabulary: int, weights_bytes: int) -> int:
    """Of 4 hidden² (attention) and 3 × hidden × 2.75 hidden (feed-forward) words of two bytes each."""
    a_layer = int((4 + 3 * 2.75) * hidden * hidden * 2)
    return max(1, (weights_bytes - 2 * vocabulary * hidden * 2) // a_layer)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cpu: to try this program where there is no GPU")
    parser.add_argument("--weights", type=int, default=0, help="bytes; default: by the GPU's free memory")
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        skip(f"{error.name} is not installed")
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        skip("torch finds no GPU")
    weights = options.weights
    if weights == 0:
        free, _ = torch.cuda.mem_get_info()
        weights = min(8 << 30, (free - SPARE) // 3)
    if on_gpu and weights < 1 << 30:
        skip("the GPU has too little memory that is free")

    torch.manual_seed(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and nothing reads it
    torch.set_default_dtype(torch.bfloat16)
    transformers.logging.set_verbosity_error()
    vocabulary, hidden = 32000, 4096 if weights >= 1 << 30 else 256
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers_of(hidden, vocabulary, weights), num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 128, max_position_embeddings=2048, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=0)
    with torch.device(options.device), torch.no_grad():
        model = transformers.LlamaForCausalLM(config).eval()
        prompt = torch.randint(1, vocabulary, (1, 16))

    def generate(count: int):
        return model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False,
                              output_logits=True, return_dict_in_generate=True)

    generate(2)  # not counted
    rates, tokens, logits = [], None, None
    begin = time.monotonic()
    while len(rates) < GENERATIONS and (not rates or time.monotonic() - begin < LONG_ENOUGH_S):
        start = time.monotonic()
        said = generate(options.tokens)
        if on_gpu:
            torch.cuda.synchronize()
        rates.append(options.tokens / (time.monotonic() - start))
        tokens = said.sequences[0].tolist()
        logits = hashlib.sha256(torch.stack(said.logits).float().cpu().numpy().tobytes()).hexdigest()
    print(json.dumps({
        "kind": "model", "asked_bytes": weights, "tokens": tokens, "logits": logits, "tokens_per_s": rates,
        "weights_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "needs_bytes": torch.cuda.max_memory_reserved() if on_gpu else 0,
        "torch": torch.__version__, "transformers": transformers.__version__}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
