"""Thin products learn beside a whole matrix that equals them at first, counts less and less, and is then dropped.

Axes: N outputs, K inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.card import Card, knob
from lithe.compress.calibrate import Calibration
from lithe.errors import UsageError
from lithe.model.decoder import Decoder
from lithe.model.linear import Factored
from lithe.model.site import Site
from lithe.train.batches import Batch
from lithe.train.loss import next_token

CARD = Card(paper="Building on Efficient Foundations: Effectively Training LLMs with Structured Feedforward Layers", row=168,
            promises=("zero_at_start",), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    steps: int = knob(1000, "of training on the calibration text", low=0)
    rate: float = knob(1e-3, "peak learning rate", low=0)
    guided: float = knob(0.5, "share of the steps in which the whole matrix counts; 0: never, plain training", low=0, high=1)
    saving: bool = knob(False, "in each step a layer asks its matrix only with the probability that it counts by")
    train: str = knob("all", "all weights, or the products' alone", choices=("all", "products"))


class Guided(nn.Module):
    """share * W x + (1 - share) * S(x), W a whole matrix that begins as the product."""

    def __init__(self, base: Factored):
        super().__init__()
        self.base, self.in_features, self.out_features = base, base.in_features, base.out_features
        self.guide = nn.Parameter(base.weight.detach().clone())
        self.share = 0.0

    @property
    def weight(self) -> Tensor:
        """What it multiplies with."""
        return self.share * self.guide + (1 - self.share) * self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        if not self.share:
            return self.base(x)
        return self.share * F.linear(x, self.guide, self.base.bias) + (1 - self.share) * self.base(x)


class Method:
    """Self-guided training (Wei et al. 2024, section 3.3), after pretraining or from a fresh model."""

    def __init__(self, knobs: Knobs):
        self.knobs, self.steps, self.rate = knobs, knobs.steps, knobs.rate
        self.layers: dict[str, Guided] = {}
        self.notes: dict[str, Any] = {}
        self.asked: dict[int, int] = {}  # layers that asked their matrix, by step
        self.seed = 0

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        self.seed = seed
        pairs = {name: module for name, module in model.named_modules() if isinstance(module, Factored)}
        if self.knobs.guided:
            for name, pair in pairs.items():
                self.layers[name] = Guided(pair)
                Site(name, model).swap(self.layers[name])
        if self.knobs.train == "all":
            return list(model.parameters())
        if not pairs:
            raise UsageError("this model has no products: factorize it before, or train=all")
        return [weight for layer in (self.layers or pairs).values() for weight in layer.parameters()]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the mixture of this step."""
        step = int(batch["step"])
        share = share_at(step, round(self.knobs.guided * self.steps))
        dice = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        for layer, drawn in zip(self.layers.values(), torch.rand(len(self.layers), generator=dice).tolist(), strict=True):
            layer.share = share if not self.knobs.saving or drawn < share else 0.0
        self.asked[step] = sum(layer.share > 0 for layer in self.layers.values())
        return next_token(model, {name: batch[name] for name in ("ids_BT", "targets_BT")})

    def finish(self, model: Decoder) -> None:
        """The matrices are dropped."""
        for name, layer in self.layers.items():
            Site(name, model).swap(layer.base)
        if self.layers and self.asked:
            self.notes = {"guided": round(sum(self.asked.values()) / (len(self.layers) * len(self.asked)), 4)}


def share_at(step: int, last: int) -> float:
    """By how much the whole matrix counts: from 1 by half a cosine to 0 at step `last`."""
    return 0.5 * (1 + math.cos(math.pi * step / last)) if step < last else 0.0
