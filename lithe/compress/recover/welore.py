"""Only the low-rank pairs are tuned on; dense matrices, embedding, norms and head are frozen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lithe.card import Card, knob
from lithe.compress.calibrate import Calibration
from lithe.compress.pairs import factored
from lithe.model.decoder import Decoder
from lithe.model.linear import Factored

CARD = Card(paper="From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients", row=145,
            needs=("pairs",), promises=("zero_at_start", "touches_only"), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    steps: int = knob(400, "of training on the calibration text", low=0)
    rate: float = knob(1e-4, "peak learning rate", low=0)
    tuned: str = knob("pairs", "the pairs, or as a control at most as many weights of matrices that stayed dense; few: at most "
                               "as many weights of pairs as these have", choices=("pairs", "dense", "few"))


class Method:
    """Jaiswal et al. 2024, section 3.3, with the next token's loss."""

    def __init__(self, knobs: Knobs):
        self.knobs, self.steps, self.rate = knobs, knobs.steps, knobs.rate
        self.notes: dict[str, Any] = {}

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        pairs = [list(pair.parameters()) for pair in factored(model).values()]
        chosen, rest = [weight for pair in pairs for weight in pair], whole(model)
        self.notes = {"optimizer_bytes": 8 * size(chosen), "optimizer_bytes_of_all": 8 * size(model.parameters())}
        if self.knobs.tuned == "few":
            return drawn(pairs, sum(map(size, rest)), seed)
        return chosen if self.knobs.tuned == "pairs" else drawn(rest, size(chosen), seed)


def whole(model: Decoder) -> list[list[nn.Parameter]]:
    """The blocks' dense matrices."""
    inside = {id(half) for pair in model.modules() if isinstance(pair, Factored) for half in (pair.a, pair.b)}
    return [[module.get_parameter("weight")] for module in model.layers.modules()
            if isinstance(module, nn.Linear) and id(module) not in inside]


def size(weights: Iterable[nn.Parameter]) -> int:
    return sum(weight.numel() for weight in weights)


def drawn(weights: list[list[nn.Parameter]], most: int, seed: int) -> list[nn.Parameter]:
    """Whole matrices or pairs in a drawn order, no more than so many values in all."""
    taken: list[nn.Parameter] = []
    for i in torch.randperm(len(weights), generator=torch.Generator().manual_seed(seed)).tolist():
        taken += weights[i] if size(taken) + size(weights[i]) <= most else []
    return taken
