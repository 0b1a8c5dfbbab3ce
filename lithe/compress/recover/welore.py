"""Only the low-rank pairs are tuned on; dense matrices, embedding, norms and head are frozen."""

from __future__ import annotations

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
    tuned: str = knob("pairs", "the pairs, or as a control as many weights of matrices that stayed dense",
                      choices=("pairs", "dense"))


class Method:
    """Jaiswal et al. 2024, section 3.3, with the next token's loss."""

    def __init__(self, knobs: Knobs):
        self.knobs, self.steps, self.rate = knobs, knobs.steps, knobs.rate
        self.notes: dict[str, Any] = {}

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        pairs = factored(model)
        chosen = [weight for pair in pairs.values() for weight in pair.parameters()]
        count = sum(weight.numel() for weight in chosen)
        self.notes = {"optimizer_bytes": 8 * count, "optimizer_bytes_of_all": 8 * sum(w.numel() for w in model.parameters())}
        return chosen if self.knobs.tuned == "pairs" else others(model, count, seed)


def others(model: Decoder, most: int, seed: int) -> list[nn.Parameter]:
    """Weights of the blocks' dense matrices, whole matrices in a drawn order, no more than so many in all."""
    inside = {id(half) for pair in model.modules() if isinstance(pair, Factored) for half in (pair.a, pair.b)}
    dense = [module.weight for module in model.layers.modules() if isinstance(module, nn.Linear) and id(module) not in inside]
    taken, left = [], most
    for i in torch.randperm(len(dense), generator=torch.Generator().manual_seed(seed)).tolist():
        if dense[i].numel() <= left:
            taken.append(dense[i])
            left -= dense[i].numel()
    return taken
