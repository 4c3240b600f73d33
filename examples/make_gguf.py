#!/usr/bin/env python3
"""Writes a GGUF model with random weights of a real architecture.

The weights are noise, but the shape, the tensor names and the arithmetic are those of a real
model, so an engine loads and runs it as it would any other: what matters here is which bytes are
touched, in what order, and whether they are the right ones. Two architectures:

  dense   `llama`: every token reads every weight, in the same order
  moe     `qwen3moe`: each token reads the experts that the router picks

The same arguments always give the same file. Needs the packages `gguf` and `numpy`.

How the noise keeps meaning. Every matrix is N(0, 1/fan_in), so activations neither die nor
explode, each layer adds as much to the residual stream as the embedding did, and the next token
depends on all of them: a wrong byte in a weight changes what comes out.

How the router is skewed. A channel of the embedding is constant and no layer writes to it, so
after the norm it acts as a bias input to the router; its weights there fall off with the rank of
the expert: logit = router_noise - skew * ln(rank). skew 0 gives every expert the same chance;
1 is about Zipf's law. Which expert has which rank differs from layer to layer.
"""

import argparse
import math
import os
import re
import sys
import time
from dataclasses import dataclass
from statistics import NormalDist

import gguf
import numpy as np

VOCAB = 1024
SPECIALS = 3 + 256  # <unk>, <s>, </s> and the bytes come first
CONTEXT = 32768
HEAD = 128  # width of an attention head
BIAS_CHANNEL = 0  # constant in the embedding, read by the router alone
BIAS_VALUE = 4.0
Q8_BLOCK = 32


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]  # slowest first, as numpy has it
    kind: str  # weight | bias (filled by hand, stored as F32)
    std: float = 0.0
    skew: float = 0.0


@dataclass(frozen=True)
class Shape:
    embd: int
    ff: int
    heads: int
    kv_heads: int
    experts: int
    experts_used: int


def shape_for(arch: str, size_bytes: int, experts: int, experts_used: int) -> Shape:
    """Widths of a model that has at least three layers at this size (F16)."""
    wide = size_bytes >= 900 << 20
    if arch == "dense":
        return Shape(2048, 5632, 16, 8, 0, 0) if wide else Shape(1024, 2816, 8, 4, 0, 0)
    if wide:
        return Shape(2048, 768, 16, 4, experts, experts_used)
    return Shape(1024, 512, 8, 4, experts, experts_used)


def layer_tensors(i: int, s: Shape, skew: float) -> list[Tensor]:
    e, kv = s.embd, s.kv_heads * HEAD
    out = [
        Tensor(f"blk.{i}.attn_norm.weight", (e,), "bias"),
        Tensor(f"blk.{i}.attn_q.weight", (s.heads * HEAD, e), "weight", 1.5 / math.sqrt(e)),
        Tensor(f"blk.{i}.attn_k.weight", (kv, e), "weight", 1.5 / math.sqrt(e)),
        Tensor(f"blk.{i}.attn_v.weight", (kv, e), "weight", 1 / math.sqrt(e)),
        Tensor(f"blk.{i}.attn_output.weight", (e, s.heads * HEAD), "weight", 2 / math.sqrt(e)),
        Tensor(f"blk.{i}.ffn_norm.weight", (e,), "bias"),
    ]
    if not s.experts:
        return out + [
            Tensor(f"blk.{i}.ffn_gate.weight", (s.ff, e), "weight", 1 / math.sqrt(e)),
            Tensor(f"blk.{i}.ffn_up.weight", (s.ff, e), "weight", 1 / math.sqrt(e)),
            Tensor(f"blk.{i}.ffn_down.weight", (e, s.ff), "weight", 2 / math.sqrt(s.ff)),
        ]
    x = s.experts
    return out + [
        Tensor(f"blk.{i}.attn_q_norm.weight", (HEAD,), "bias"),
        Tensor(f"blk.{i}.attn_k_norm.weight", (HEAD,), "bias"),
        Tensor(f"blk.{i}.ffn_gate_inp.weight", (x, e), "bias", 1 / math.sqrt(e), skew),
        Tensor(f"blk.{i}.ffn_gate_exps.weight", (x, s.ff, e), "weight", 1 / math.sqrt(e)),
        Tensor(f"blk.{i}.ffn_up_exps.weight", (x, s.ff, e), "weight", 1 / math.sqrt(e)),
        Tensor(f"blk.{i}.ffn_down_exps.weight", (x, e, s.ff), "weight", 4 / math.sqrt(s.ff)),
    ]


def all_tensors(s: Shape, layers: int, skew: float) -> list[Tensor]:
    out = [Tensor("token_embd.weight", (VOCAB, s.embd), "weight", 1.0)]
    for i in range(layers):
        out += layer_tensors(i, s, skew)
    out.append(Tensor("output_norm.weight", (s.embd,), "bias"))
    out.append(Tensor("output.weight", (VOCAB, s.embd), "weight", 2 / math.sqrt(s.embd)))
    return out


class Noise:
    """Normal numbers by table: one random 16-bit word picks one of 65536 quantiles."""

    def __init__(self, seed: int):
        self.seed = seed
        inv = NormalDist().inv_cdf
        half = np.array([inv((i + 0.5) / 65536) for i in range(32768, 65536)], np.float32)
        self.quantiles = np.concatenate([-half[::-1], half])

    def words(self, index: int, count: int) -> np.ndarray:
        raw = np.random.Philox(key=[self.seed, index]).random_raw((count + 3) // 4)
        return raw.view(np.uint16)[:count]

    def f16(self, index: int, shape: tuple[int, ...], std: float) -> np.ndarray:
        table = (self.quantiles * np.float32(std)).astype(np.float16)
        return table[self.words(index, math.prod(shape))].reshape(shape)


def silence_bias_channel(t: Tensor, data: np.ndarray) -> None:
    """The bias channel is BIAS_VALUE in the embedding, and nothing writes or reads it later."""
    if t.name == "token_embd.weight":
        data[:, BIAS_CHANNEL] = BIAS_VALUE
    elif re.search(r"attn_output|ffn_down", t.name):
        data[..., BIAS_CHANNEL, :] = 0
    else:
        data[..., BIAS_CHANNEL] = 0


def silence_bytes(t: Tensor, data: np.ndarray) -> None:
    """Specials and bytes are never the answer: the text stays valid UTF-8 and never ends early."""
    if t.name == "output.weight":
        data[:SPECIALS] = 0


def router(t: Tensor, noise: Noise, index: int) -> np.ndarray:
    data = noise.f16(index, t.shape, t.std).astype(np.float32)
    rank = np.argsort(noise.words(index + 1_000_000, t.shape[0]), kind="stable") + 1
    # After the norms the channel is BIAS_VALUE / rms, and rms is about BIAS_VALUE / 2 here.
    data[:, BIAS_CHANNEL] = -t.skew * np.log(rank)
    return data


def quantize_q8_0(data: np.ndarray) -> np.ndarray:
    return gguf.quants.quantize(data.astype(np.float32), gguf.GGMLQuantizationType.Q8_0)


def tensor_data(t: Tensor, index: int, noise: Noise, wtype: str, moe: bool) -> np.ndarray:
    if t.kind == "bias":
        return router(t, noise, index) if t.std else np.ones(t.shape, np.float32)
    data = noise.f16(index, t.shape, t.std)
    silence_bytes(t, data)
    if moe:
        silence_bias_channel(t, data)
    return quantize_q8_0(data) if wtype == "q8_0" else data


def tensor_bytes(t: Tensor, wtype: str) -> int:
    n = math.prod(t.shape)
    if t.kind == "bias":
        return 4 * n
    return n // Q8_BLOCK * (Q8_BLOCK + 2) if wtype == "q8_0" else 2 * n


def add_tokenizer(w: gguf.GGUFWriter) -> None:
    """A small SentencePiece vocabulary: three specials, 256 bytes, then made-up pieces."""
    kinds = gguf.TokenType
    tokens = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % i for i in range(256)]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256
    scores = [0.0] * len(tokens)
    letters = "etaoinshrdlucmfw"
    pieces = ["\u2581", *letters] + [a + b for a in letters for b in letters]
    pieces += ["\u2581" + p for p in pieces[1:]]
    pieces += [a + b + c for a in letters for b in letters for c in letters]
    for p in pieces[: VOCAB - SPECIALS]:
        tokens.append(p.encode())
        types.append(kinds.NORMAL)
        scores.append(-float(len(scores)))
    w.add_tokenizer_model("llama")
    w.add_token_list(tokens)
    w.add_token_scores(scores)
    w.add_token_types(types)
    w.add_unk_token_id(0)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(True)


def add_metadata(w: gguf.GGUFWriter, s: Shape, layers: int, wtype: str) -> None:
    w.add_name("random weights")
    w.add_context_length(CONTEXT)
    w.add_embedding_length(s.embd)
    w.add_block_count(layers)
    w.add_feed_forward_length(s.ff)
    w.add_head_count(s.heads)
    w.add_head_count_kv(s.kv_heads)
    w.add_key_length(HEAD)
    w.add_value_length(HEAD)
    w.add_rope_dimension_count(HEAD)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(VOCAB)
    w.add_file_type(
        gguf.LlamaFileType.MOSTLY_Q8_0 if wtype == "q8_0" else gguf.LlamaFileType.MOSTLY_F16
    )
    if s.experts:
        w.add_expert_count(s.experts)
        w.add_expert_used_count(s.experts_used)
        w.add_expert_feed_forward_length(s.ff)
    add_tokenizer(w)


def parse_size(text: str) -> int:
    m = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not m:
        raise argparse.ArgumentTypeError(f"not a size: {text!r} (try 700M or 1.5G)")
    return int(float(m[1]) * 1024 ** " KMGT".index(m[2].upper() or " "))


def parse_args() -> argparse.Namespace:
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("output")
    ap.add_argument("--arch", choices=("dense", "moe"), default="dense")
    ap.add_argument("--size", type=parse_size, default="1G", help="of the file, about (default 1G)")
    ap.add_argument("--type", choices=("f16", "q8_0"), default="f16", help="of the matrices")
    ap.add_argument("--experts", type=int, default=32)
    ap.add_argument("--experts-used", type=int, default=4)
    ap.add_argument("--skew", type=float, default=1.0, help="of the routing (default 1, 0: none)")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--quiet", action="store_true", help="no progress line")
    args = ap.parse_args()
    if args.experts_used > args.experts:
        ap.error("--experts-used is more than --experts")
    return args


def main() -> int:
    args = parse_args()
    moe = args.arch == "moe"
    s = shape_for(args.arch, args.size, args.experts, args.experts_used)
    fixed = sum(tensor_bytes(t, args.type) for t in all_tensors(s, 0, 0))
    per_layer = sum(tensor_bytes(t, args.type) for t in layer_tensors(0, s, 0))
    layers = max(1, round((args.size - fixed) / per_layer))
    tensors = all_tensors(s, layers, args.skew)
    total = sum(tensor_bytes(t, args.type) for t in tensors)

    # Complete or absent: written beside the target, renamed at the end.
    part = f"{args.output}.part"
    w = gguf.GGUFWriter(part, "qwen3moe" if moe else "llama")
    add_metadata(w, s, layers, args.type)
    for t in tensors:
        nbytes = tensor_bytes(t, args.type)
        if t.kind == "bias":
            w.add_tensor_info(t.name, t.shape, np.dtype(np.float32), nbytes)
        elif args.type == "q8_0":
            rows = (*t.shape[:-1], t.shape[-1] // Q8_BLOCK * (Q8_BLOCK + 2))
            q8 = gguf.GGMLQuantizationType.Q8_0
            w.add_tensor_info(t.name, rows, np.dtype(np.uint8), nbytes, raw_dtype=q8)
        else:
            w.add_tensor_info(t.name, t.shape, np.dtype(np.float16), nbytes)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()

    noise, done, began = Noise(args.seed), 0, time.monotonic()
    show = sys.stderr.isatty() and not args.quiet
    for index, t in enumerate(tensors):
        w.write_tensor_data(tensor_data(t, index, noise, args.type, moe))
        done += tensor_bytes(t, args.type)
        if show:
            print(f"\r{args.output}: {done >> 20} of {total >> 20} MiB", end="", file=sys.stderr)
    w.close()
    os.replace(part, args.output)
    if not args.quiet:
        took = time.monotonic() - began
        start = "\r" if show else ""
        print(f"{start}{args.output}: {total >> 20} MiB, {layers} layers, {took:.1f} s",
              file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
