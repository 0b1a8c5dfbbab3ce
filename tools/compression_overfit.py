"""Little text: layers fitted one by one (AdaQuant) beside all weights tuned through their rounding. A JSON line a run.

    python tools/compression_overfit.py MODEL TEXT HELD_OUT [--seeds 0 1 2] [--rows 16] [--bits 2] [--input_bits 0]
                                                        [--steps 200] [--layers]

Nats a token on held-out documents and, `_own`, on the rows that it learned from. End to end: Adam on the next token's loss,
every layer of the blocks rounded in each pass, gradients straight through, at three rates; inputs, where they are rounded too,
to the range that the dense model's have on those rows. With --layers instead: the error of each fitted layer's output on
held-out rows over that of the rounded layer, with weights of 2 bits, and with both of 4.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lithe.bench.compress._score import Documents
from lithe.compress import calibrate
from lithe.compress.calibrate import Calibration
from lithe.compress.fitness import nll
from lithe.compress.rounding import grid, nearest, spread
from lithe.compress.run import compress
from lithe.compress.surgery import copied
from lithe.model.decoder import Decoder
from lithe.model.linear import rounded_inputs
from lithe.model.load import load
from lithe.model.narrow import widen
from lithe.train.loss import next_token

LENGTH, GROUP, RATES = 128, 32, (1e-4, 3e-4, 1e-3)


class Rounded(nn.Module):
    """A weight as it would be stored; its gradient is passed on as it is."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits

    def forward(self, weight_NK: Tensor) -> Tensor:
        now_NK = weight_NK.detach()
        scale_NG = grid(now_NK, self.bits, GROUP)
        made_NK = nearest(now_NK, scale_NG, self.bits) * spread(scale_NG, now_NK.shape[1]).to(now_NK)
        return weight_NK + (made_NK - now_NK)


@contextmanager
def rounded(model: Decoder, bits: int) -> Iterator[None]:
    """All linear layers of the blocks rounded in each pass; for good behind it."""
    found = [module for module in model.layers.modules() if isinstance(module, nn.Linear)]
    for module in found:
        parametrize.register_parametrization(module, "weight", Rounded(bits))
    yield
    for module in found:
        parametrize.remove_parametrizations(module, "weight")


@torch.no_grad()
def narrowed(model: Decoder, text: Calibration, bits: int) -> None:
    """Inputs of all linear layers of the blocks rounded to their range on a text, from now on."""
    ranges: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    found = [module for module in model.layers.modules() if isinstance(module, nn.Linear)]

    def note(module: nn.Module, x: tuple[Tensor, ...]) -> None:
        low, high = ranges.get(module, (x[0].min(), x[0].max()))
        ranges[module] = torch.minimum(low, x[0].min()), torch.maximum(high, x[0].max())

    def read(module: nn.Module, x: tuple[Tensor, ...]) -> tuple[Tensor]:
        low, high = ranges[module]
        return (rounded_inputs(x[0], low, (high - low) / (2**bits - 1), bits),)

    hooks = [module.register_forward_pre_hook(note) for module in found]
    for batch in text.batches:
        model(batch["ids_BT"])
    for hook in hooks:
        hook.remove()
    for module in found:
        module.register_forward_pre_hook(read)


def end_to_end(dense: Decoder, text: Calibration, given: argparse.Namespace, rate: float) -> Decoder:
    work, steps = copied(dense).train(), given.steps
    if given.input_bits:
        narrowed(work, text, given.input_bits)
    with rounded(work, given.bits):
        tuned = [weight for weight in work.layers.parameters()]
        for weight in work.parameters():
            weight.requires_grad_(False)
        for weight in tuned:
            weight.requires_grad_(True)
        optimizer = torch.optim.Adam(tuned, lr=rate)
        for step in range(steps):
            optimizer.zero_grad()
            ids_BT = text.batches[step % len(text.batches)]["ids_BT"]
            loss, count = next_token(work, {"ids_BT": ids_BT, "targets_BT": calibrate.shifted(ids_BT)})
            (loss / count).backward()
            optimizer.step()
    return work.eval()


def run(dense: Decoder, text: Calibration, documents: Documents, given: argparse.Namespace, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"seed": seed, "bits": given.bits, "rows": given.rows, "steps": given.steps}
    found |= {"input_bits": given.input_bits} if given.input_bits else {}
    layers = f"adaquant:bits={given.bits},group={GROUP},input_bits={given.input_bits},steps="

    def tell(name: str, model: Decoder) -> None:
        found.update({name: round(documents.score(model)["loss"], 4), f"{name}_own": round(nll(model, text), 4)})

    tell("dense", dense)
    for name, step in (("rtn", f"{layers}0"), ("adaquant", f"{layers}{given.steps}")):
        tell(name, widen(compress(dense, [step], text, seed=seed).model))
    for rate in RATES:
        tell(f"end_to_end_{rate:g}", end_to_end(dense, text, given, rate))
    return found


@torch.no_grad()
def errors(dense: Decoder, made: Decoder, held: Calibration) -> dict[str, float]:
    """Of each linear layer, given what the dense model gives it: the squared distance of its output, over held-out rows."""
    other, found, hooks = dict(made.named_modules()), {}, []
    for name, module in dense.layers.named_modules(prefix="layers"):
        if isinstance(module, nn.Linear):
            def note(_: nn.Module, x: tuple[Tensor, ...], y: Tensor, name: str = name) -> None:
                found[name] = found.get(name, 0.0) + float((other[name](x[0]) - y).double().square().sum())
            hooks.append(module.register_forward_hook(note))
    for batch in held.batches:
        dense(batch["ids_BT"])
    for hook in hooks:
        hook.remove()
    return found


def by_layer(dense: Decoder, text: Calibration, held: Calibration, given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Fitted over rounded: the geometric mean over layers, the worst of them, and the share that is below 1."""
    line: dict[str, Any] = {"seed": seed, "rows": given.rows, "steps": given.steps}
    for name, form in (("w2a16", f"bits=2,group={GROUP}"), ("w4a4", f"bits=4,group={GROUP},input_bits=4")):
        rounded, fitted = (errors(dense, compress(dense, [f"adaquant:{form},steps={steps}"], text, seed=seed).model, held)
                           for steps in (0, given.steps))
        over = torch.tensor([fitted[layer] / rounded[layer] for layer in rounded])
        line |= {name: round(float(over.log().mean().exp()), 4), f"{name}_worst": round(float(over.max()), 4),
                 f"{name}_better": round(float((over < 1).double().mean()), 4)}
    return line


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "text", "held_out"):
        asked.add_argument(name)
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked.add_argument("--rows", type=int, default=16)
    asked.add_argument("--bits", type=int, default=2)
    asked.add_argument("--input_bits", type=int, default=0)
    asked.add_argument("--steps", type=int, default=200)
    asked.add_argument("--layers", action="store_true")
    given = asked.parse_args()
    dense = load(given.model, dtype="float32", fast=False)
    documents = Documents(dense, Path(given.held_out), 200, 64)
    held = calibrate.read(given.held_out, dense, length=LENGTH, tokens=64 * LENGTH, seed=0)
    for seed in given.seeds:
        text = calibrate.read(given.text, dense, length=LENGTH, tokens=given.rows * LENGTH, seed=seed)
        line = by_layer(dense, text, held, given, seed) if given.layers else run(dense, text, documents, given, seed)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
