"""Plain decoding of a model at the shape of SmolLM-135M, whole and cut, turn by turn: one JSON line a precision and ratio.

    python tools/pruned_speed.py [--ratios 0.3 0.5] [--kinds fp32 int8] [--tokens 24] [--rounds 5] [--threads 2]
    python tools/pruned_speed.py --narrow 0.25               the residual stream narrower, as PAT and SliceGPT leave it
    python tools/pruned_speed.py --memory 2048 8192 32768    what compressing takes, by tokens of calibration

Weights are random: what is timed does not depend on them. `share` is the speed-up over the ratio of the bytes of all weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from multiprocessing import get_context

import torch

from lithe.compress.calibrate import of_ids
from lithe.compress.residual import narrowed, target
from lithe.compress.run import compress
from lithe.compress.surgery import copied
from lithe.decode.loop import run
from lithe.decode.plan import DecodePlan, plan
from lithe.model import runtime
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.model.fast import fuse
from lithe.sampling.sequence import Sequence

SHAPE = Config(vocab=49152, width=576, layers=30, heads=9, kv_heads=3, ffn=1536, context=256, tied=True)
PROMPT = list(range(100, 116))


def model(seed: int) -> Decoder:
    made, dice = Decoder(SHAPE).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=dice) * weight.shape[-1] ** -0.5)
    return made


def seconds(made: DecodePlan, tokens: int) -> float:
    """Of a token, the prompt's pass left out."""
    sequence, begun, first = Sequence(PROMPT, limit=tokens + 1, context=SHAPE.context), 0.0, 0
    for _ in run(made, [sequence]):
        if not begun:
            begun, first = time.perf_counter(), len(sequence.tokens)
    return (time.perf_counter() - begun) / (len(sequence.tokens) - first)


def memory(tokens: int) -> str:
    """The most that a process held while it compressed the model by Wanda, over the bytes of its float32 weights."""
    held = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    empty = held()
    dense = model(0)
    weights, before = 4 * sum(w.numel() for w in dense.parameters()), held()
    text = of_ids(torch.randint(SHAPE.vocab, (tokens,), generator=torch.Generator().manual_seed(0)), length=SHAPE.context)
    began = time.perf_counter()
    compress(dense, ["wanda:ratio=0.5"], text)
    told = {"loaded": round((before - empty) / weights, 3), "peak": round((held() - empty) / weights, 3)}
    seconds = round(time.perf_counter() - began)
    return json.dumps({"tokens": text.tokens, "weights_mb": round(weights / 1e6)} | told | {"seconds": seconds})


def main() -> None:
    read = argparse.ArgumentParser()
    read.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5])
    read.add_argument("--narrow", type=float, nargs="+")
    read.add_argument("--kinds", nargs="+", default=["fp32", "int8"])
    read.add_argument("--tokens", type=int, default=24)
    read.add_argument("--rounds", type=int, default=5)
    read.add_argument("--threads", type=int, default=2)
    read.add_argument("--memory", type=int, nargs="+")
    asked = read.parse_args()
    for tokens in asked.memory or ():
        with get_context("spawn").Pool(1) as alone:  # a process remembers its peak
            print(alone.apply(memory, (tokens,)), flush=True)
    if asked.memory:
        return
    dense = model(0)
    weights = lambda m: sum(w.numel() for w in m.parameters())
    for ratio in asked.narrow or asked.ratios:
        cut = (narrowed(dense, torch.arange(target(SHAPE.width, ratio))) if asked.narrow
               else compress(dense, [f"magnitude_pruning:unit=width,ratio={ratio}"]).model)
        sizes = weights(dense), weights(cut)
        for kind in asked.kinds:
            plans = [plan(fuse(copied(made), kind)) for made in (dense, cut)]
            for made in plans:
                runtime.take_threads(made.model, asked.threads)
            times = [[seconds(made, asked.tokens) for made in plans] for _ in range(asked.rounds + 1)][1:]
            whole, less = (statistics.median(column) for column in zip(*times, strict=True))
            faster = statistics.median(a / b for a, b in times)
            unit = "stream" if asked.narrow else "width"
            print(json.dumps({"unit": unit, "ratio": ratio, "kind": kind, "threads": asked.threads, "values": sizes, "ms": [
                round(1000 * whole, 2), round(1000 * less, 2)], "speed_up": round(faster, 3), "bytes_ratio": round(
                sizes[0] / sizes[1], 3), "share": round(faster * sizes[1] / sizes[0], 3), "compiled": [
                bool(made.model.fast) for made in plans]}), flush=True)


if __name__ == "__main__":
    main()
