"""One shared array beside networks pruned before they are trained: a JSON line a run (docs/log/compress/stable_rps.md).

    python tools/sharing.py TEXT HELD_OUT [--times 4 10] [--seeds 0] [--ways grasp] [--steps 300] [--rate 3e-3]

A byte model (3 layers of width 96) from scratch. Of its layers' weights 1 / times are left: as slots of an array that all read
(folded or hashed), or as those entries that stay by chance, by size, by |w g| of one batch (SNIP), by w H g (GraSP), or by
their size after a first training, begun anew from where they were (lottery ticket). TEXT, HELD_OUT: .jsonl or .txt, either .gz.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from learned import learn
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lithe.compress import calibrate
from lithe.compress.calibrate import Calibration, shifted
from lithe.compress.fitness import nll
from lithe.compress.run import compress
from lithe.compress.surgery import copied
from lithe.compress.thinned import Thinned, settle, thin
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.model.load import load
from lithe.train.loss import next_token

SHAPE = Config(vocab=256, width=96, layers=3, heads=4, kv_heads=4, ffn=256, context=128)
WAYS = ("fold", "hash", "random", "magnitude", "snip", "grasp", "lottery")


def read(path: str, count: int) -> Calibration:
    """So many bytes of a file's texts, 768 a batch."""
    texts = "\n".join(calibrate._texts(Path(path), load("zoo:tiny-draft", fast=False)))
    return calibrate.of_ids(list(texts.encode()[:count]), length=128, rows_each=6)


def fresh(seed: int, shape: Config = SHAPE) -> Decoder:
    """Normal weights of deviation 1 / sqrt(inputs)."""
    model, dice = Decoder(shape), torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data = torch.randn(weight.shape, generator=dice) * weight.shape[1] ** -0.5
    return model


def trained(model: Decoder, text: Calibration, steps: int, rate: float) -> Decoder:
    for weight in model.parameters():
        weight.requires_grad_(True)
    return learn(model, text, steps, rate)


def scores(way: str, layers: dict[str, Thinned], start: Decoder, text: Calibration, ask: Any, seed: int) -> dict[str, Tensor]:
    """What stays of each layer where the highest of all stay."""
    if way == "random":
        dice = torch.Generator().manual_seed(seed)
        return {name: torch.rand(layer.weight.shape, generator=dice) for name, layer in layers.items()}
    if way == "magnitude":
        return {name: layer.weight.detach().abs() for name, layer in layers.items()}
    if way == "lottery":
        done = trained(copied(start), text, ask.steps, ask.rate)
        return {name: done.get_parameter(f"{name}.weight").detach().abs() for name in layers}
    work, ids_BT = copied(start), text.batches[0]["ids_BT"]
    for weight in work.parameters():
        weight.requires_grad_(True)
    weights = [work.get_parameter(f"{name}.weight") for name in layers]
    with sdpa_kernel(SDPBackend.MATH):  # the fused one has no second derivative
        loss, tokens = next_token(work, {"ids_BT": ids_BT, "targets_BT": shifted(ids_BT)})
        slopes = torch.autograd.grad(loss / tokens, weights, create_graph=way == "grasp")
        if way == "snip":
            told = [(slope * weight).abs() for slope, weight in zip(slopes, weights, strict=True)]
        else:
            turned = torch.autograd.grad(torch.stack([(slope * slope.detach()).sum() for slope in slopes]).sum(), weights)
            told = [weight * turn for weight, turn in zip(weights, turned, strict=True)]
    return {name: score.detach() for name, score in zip(layers, told, strict=True)}


def run(way: str, times: float, text: Calibration, judge: Calibration, ask: Any, seed: int) -> dict[str, Any]:
    start = fresh(seed)
    if way in ("fold", "hash"):
        step = f"recover=stable_rps:times={times:g},map={way},start=drawn,steps={ask.steps},rate={ask.rate}"
        return {"loss": nll(compress(start, [step], text, seed=seed).model, judge)}
    if way == "dense":
        return {"loss": nll(trained(start, text, ask.steps, ask.rate), judge)}
    work = copied(start)
    layers = thin(work, "*", straight=False)
    score = scores(way, layers, start, text, ask, seed)
    flat = torch.cat([part.flatten() for part in score.values()])
    least = flat.topk(round(len(flat) / times)).values[-1]
    for name, layer in layers.items():
        layer.choose(score[name] >= least)
    left = sum(int(layer.mask.sum()) for layer in layers.values())
    trained(work, text, ask.steps, ask.rate)
    settle(work, layers)
    thinnest = min(float(layer.mask.float().mean()) for layer in layers.values())
    return {"loss": nll(work, judge), "left": left, "thinnest": thinnest}


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("text")
    ask.add_argument("held_out")
    ask.add_argument("--times", type=float, nargs="+", default=[4, 10])
    ask.add_argument("--seeds", type=int, nargs="+", default=[0])
    ask.add_argument("--steps", type=int, default=300)
    ask.add_argument("--rate", type=float, default=3e-3)
    ask.add_argument("--ways", nargs="+", default=["dense", *WAYS])
    asked = ask.parse_args()
    text, judge = read(asked.text, 240_000), read(asked.held_out, 24_576)
    for seed in asked.seeds:
        every = [(1.0, "dense"), *((times, way) for times in asked.times for way in WAYS)]
        for times, way in ((times, way) for times, way in every if way in asked.ways):
            found = run(way, times, text, judge, asked, seed)
            told = {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}
            said = {"way": way, "times": times, "seed": seed, "steps": asked.steps, "rate": asked.rate}
            print(json.dumps(said | told), flush=True)


if __name__ == "__main__":
    main()
