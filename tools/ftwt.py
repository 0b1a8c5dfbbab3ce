"""Whether predicted channels beat one fixed mask of as many: a JSON line a share of mass (docs/log/compress/ftwt.md).

    python tools/ftwt.py MODEL TEXT HELD_OUT [--taus 0.6 0.8 0.95] [--steps 300] [--tokens 131072] [--seed 0] [--tune]
    python tools/ftwt.py relu TEXT HELD_OUT [--trained 1500]     a byte model with ReLU FFNs, trained here on TEXT
    python tools/ftwt.py 576x1536 | 135m     time of an FFN, or of a token of a model at 135M's shape, whole and gathered

Predictors learn on TEXT, weights stay as they are. On HELD_OUT: the share of the wanted channels that is found by predictors,
and by a fixed mask of as many (those wanted most often in TEXT, or in HELD_OUT itself: in sight); the loss under either, under
the wanted channels themselves and under as many drawn ones; the work that is left, foretold from TEXT and as it came. --tune
trains the FFNs as well, beside the predictors and, with as many steps, under a fixed mask of as many channels.

Axes: M tokens, F channels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from learned import learn as learn_on
from pruned_speed import model as random_model, seconds
from sharing import SHAPE, fresh, read as read_bytes, trained
from torch import Tensor

from lithe.compress import calibrate
from lithe.compress.calibrate import Calibration
from lithe.compress.fitness import nll
from lithe.compress.recover.ftwt import wanted
from lithe.compress.run import compress
from lithe.compress.surgery import copied
from lithe.decode.plan import plan
from lithe.model.chosen import Chosen
from lithe.model.decoder import NONE, Decoder
from lithe.model.fast import fuse
from lithe.model.load import load
from lithe.model.modules import FFN

LENGTH = 128
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


def watched(model: Decoder, text: Calibration, each: Callable[[int, Chosen, Tensor], None]) -> None:
    """Call each(layer, ffn, its input [M, C]) on a text."""
    for number, block in enumerate(model.layers):
        ffn: Any = block.mlp  # type: ignore[union-attr]
        ffn.register_forward_pre_hook(lambda ffn, given, number=number: each(number, ffn, given[0].flatten(0, -2)))
    with torch.no_grad():
        for batch in text.batches:
            model(batch["ids_BT"], logits=NONE)
    for block in model.layers:
        block.mlp._forward_pre_hooks.clear()  # type: ignore[union-attr,operator]


def often(model: Decoder, text: Calibration, tau: float) -> Tensor:
    """How often each channel of each layer [L, F] is wanted."""
    counts = torch.zeros(len(model.layers), model.config.ffn)

    def each(number: int, ffn: Chosen, x: Tensor) -> None:
        counts[number] += wanted(ffn._inner(x), ffn.down_proj.weight, tau).float().sum(0)

    watched(model, text, each)
    return counts / text.tokens


class Masked(torch.nn.Module):
    """An FFN under a mask that is worked out from its input and its inner activations."""

    def __init__(self, ffn: Chosen, mask: Callable[[Chosen, Tensor, Tensor], Tensor]):
        super().__init__()
        self.ffn, self.mask = ffn, mask

    def forward(self, x: Tensor) -> Tensor:
        inner = self.ffn._inner(x)
        return self.ffn.down_proj(inner * self.mask(self.ffn, x, inner))


def loss(model: Decoder, text: Calibration, mask: Callable[[int], Callable]) -> float:
    """Nats a token under masks, a maker for each layer; the model is as it was after that."""
    before = [block.mlp for block in model.layers]  # type: ignore[union-attr]
    for number, block in enumerate(model.layers):
        block.mlp = Masked(before[number], mask(number))  # type: ignore[union-attr,arg-type]
    found = nll(model, text)
    for block, old in zip(model.layers, before, strict=True):
        block.mlp = old  # type: ignore[union-attr]
    return found


def fixed_and_tuned(dense: Decoder, learn: Calibration, judge: Calibration, fixed: list[Tensor], steps: int) -> float:
    """The loss where every FFN keeps these channels for all tokens and its weights were trained for so many steps."""
    work = compress(dense, ["recover=ftwt:steps=0"], learn).model
    weights = []
    for block, kept in zip(work.layers, fixed, strict=True):
        ffn: Any = block.mlp  # type: ignore[union-attr]
        ffn.choose_b.bias.data.fill_(-1.0).index_fill_(0, kept, 1.0)
        weights += [w for layer in (ffn.gate_proj, ffn.up_proj, ffn.down_proj) for w in layer.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    return nll(learn_on(work, learn, steps, 1e-3).requires_grad_(False), judge)


def measured(dense: Decoder, learn: Calibration, judge: Calibration, tau: float, steps: int, seed: int, tune: bool) -> dict:
    step = f"recover=ftwt:tau={tau},steps={steps}" + ("" if tune else ",tune=none,settle=1")
    model = compress(dense, [step], learn, seed=seed).model
    usual_LF = often(model, learn, tau)
    layers, width = usual_LF.shape
    hits, sizes = torch.zeros(3), torch.zeros(2)  # found by predictors, by the fixed mask, by the one made in sight

    def judged(number: int, ffn: Chosen, x: Tensor) -> None:
        on, target = ffn.logits(x) > 0, wanted(ffn._inner(x), ffn.down_proj.weight, tau)
        taken[number] += on.float().sum() / judge.tokens
        hits[0] += (on & target).sum()
        sizes[0], sizes[1] = sizes[0] + on.sum(), sizes[1] + target.sum()

    taken = torch.zeros(layers)
    watched(model, judge, judged)
    sight_LF = often(model, judge, tau)
    fixed = [usual_LF[n].topk(round(float(taken[n]))).indices for n in range(layers)]
    hits[1] = sum(sight_LF[n][kept].sum() for n, kept in enumerate(fixed)) * judge.tokens
    hits[2] = sum(sight_LF[n].topk(len(kept)).values.sum() for n, kept in enumerate(fixed)) * judge.tokens
    dice = torch.Generator().manual_seed(seed)
    flat = lambda kept: torch.zeros(width).index_fill(0, kept, 1.0)
    drawn = [torch.randperm(width, generator=dice)[: len(kept)] for kept in fixed]
    ways: dict[str, Callable[[int], Callable]] = {
        "predicted": lambda n: lambda ffn, x, inner: (ffn.logits(x) > 0).to(inner),
        "wanted": lambda n: lambda ffn, x, inner: wanted(inner, ffn.down_proj.weight, tau).to(inner),
        "fixed": lambda n: lambda ffn, x, inner: flat(fixed[n]), "drawn": lambda n: lambda ffn, x, inner: flat(drawn[n])}
    work = 3 * dense.config.width * width  # products of a token in one FFN
    spent = sum(w.numel() for w in (model.layers[0].mlp.choose_a.weight, model.layers[0].mlp.choose_b.weight))  # type: ignore
    recall = hits / sizes[1]
    found = {"tau": tau, "seed": seed, "steps": steps, "judged": judge.tokens, "dense": nll(dense, judge),
             "recall": float(recall[0]), "recall_fixed": float(recall[1]), "recall_fixed_in_sight": float(recall[2]),
             "precision": float(hits[0] / sizes[0]), "on": float(sizes[0]) / judge.tokens / layers / width,
             "foretold_on": float(usual_LF.mean()), "wanted_on": float(sizes[1]) / judge.tokens / layers / width}
    found |= {"work": found["on"] + spent / work, "predictor": spent / work}
    found |= {f"loss_{name}": loss(model, judge, mask) for name, mask in ways.items()}
    if tune:
        found["loss_fixed_and_tuned"] = fixed_and_tuned(dense, learn, judge, fixed, steps)
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}


@torch.no_grad()
def choosing(ffn: Chosen, share: float, dice: torch.Generator) -> Chosen:
    """With a drawn share of its channels on, whatever it reads."""
    width = ffn.up_proj.out_features
    ffn.choose_b.weight.zero_()
    ffn.choose_b.bias.fill_(-1.0).index_fill_(0, torch.randperm(width, generator=dice)[: round(share * width)], 1.0)
    return ffn


@torch.no_grad()
def timed(width: int, inner: int, turns: int = 300) -> dict[str, Any]:
    """Medians over turns of milliseconds at one row, the ways one after another in each turn: the whole FFN, and gathered with
    its predictor by the share of channels that are on."""
    dice, ffn = torch.Generator().manual_seed(0), lambda: FFN(width, inner, activation="silu", gated=True)
    ways: dict[str, FFN] = {"whole": ffn()}
    ways |= {f"{share:g}": choosing(Chosen(ffn(), width // 8), share, dice) for share in SHARES}
    x, marks = torch.randn(1, width, generator=dice), {name: [] for name in ways}  # type: ignore[var-annotated]
    for _ in range(turns + 5):
        for name, way in ways.items():
            began = time.perf_counter()
            way(x)
            marks[name].append(time.perf_counter() - began)
    told = {name: round(1000 * statistics.median(seconds[5:]), 4) for name, seconds in marks.items()}
    return {"shape": [width, inner], "threads": torch.get_num_threads(), "ms": told}


def decoded(rounds: int = 7) -> dict[str, Any]:
    """Medians of milliseconds a token of plain decoding: compiled, layer by layer as choosing models run, and choosing."""
    dense, dice = random_model(0), torch.Generator().manual_seed(0)
    ways = {"compiled": plan(fuse(copied(dense), "fp32")), "whole": plan(copied(dense))}
    chosen = compress(dense, ["recover=ftwt:steps=0"], calibrate.of_ids(range(64), length=32)).model
    for share in SHARES:
        made = copied(chosen)
        for block in made.layers:
            choosing(block.mlp, share, dice)  # type: ignore[union-attr,arg-type]
        ways[f"{share:g}"] = plan(made)
    marks = [[seconds(way, 24) for way in ways.values()] for _ in range(rounds + 1)][1:]
    middle = [round(1000 * statistics.median(column), 2) for column in zip(*marks, strict=True)]
    return {"shape": "135m", "threads": torch.get_num_threads(), "ms": dict(zip(ways, middle, strict=True))}


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("model")
    ask.add_argument("text", nargs="?")
    ask.add_argument("held_out", nargs="?")
    ask.add_argument("--taus", type=float, nargs="+", default=[0.6, 0.8, 0.95])
    ask.add_argument("--steps", type=int, default=300)
    ask.add_argument("--tune", action="store_true")
    ask.add_argument("--tokens", type=int, default=131072)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--trained", type=int, default=1500)
    asked = ask.parse_args()
    if asked.text is None:
        told = decoded() if asked.model == "135m" else timed(*map(int, asked.model.split("x")))
        print(json.dumps(told), flush=True)
        return
    if asked.model == "relu":
        model = fresh(asked.seed, SHAPE.replace(activation="relu"))
        learn, judge = read_bytes(asked.text, 800 * asked.trained), read_bytes(asked.held_out, 24_576)
        model = trained(model, learn, asked.trained, 3e-3).requires_grad_(False)
    else:
        model = load(asked.model, dtype="float32", fast=False)
        learn = calibrate.read(asked.text, model, length=LENGTH, tokens=asked.tokens, seed=asked.seed)
        judge = calibrate.read(asked.held_out, model, length=LENGTH, tokens=8192, seed=0)
    for tau in asked.taus:
        found = measured(model, learn, judge, tau, asked.steps, asked.seed, asked.tune)
        print(json.dumps({"model": asked.model} | found), flush=True)


if __name__ == "__main__":
    main()
