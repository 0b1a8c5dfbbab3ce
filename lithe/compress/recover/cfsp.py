"""Low-rank parts beside all linear layers, of higher rank in blocks that move the residual stream further (IG-LoRA)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lithe.card import Card, knob
from lithe.compress.calibrate import Calibration, block_scores
from lithe.compress.recovery import attach
from lithe.model.decoder import Decoder
from lithe.model.lowrank import LowRank

CARD = Card(paper="CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine Activation Information", row=1,
            needs=("inputs",), promises=("zero_at_start",), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    rank: int = knob(8, "mean rank over the blocks", low=1)
    steps: int = knob(200, "of training on the calibration text", low=0)
    rate: float = knob(1e-4, "peak learning rate", low=0)
    metric: str = knob("angular", "how far a block moves the stream", choices=("angular", "cosine", "mse", "mae"))
    even: bool = knob(False, "the same rank for all: plain LoRA of the same size")


class Method:
    """Ranks in proportion to the coarse scores, the sum that of the mean rank, at least 1 each (section 3.4)."""

    def __init__(self, knobs: Knobs):
        self.knobs, self.steps, self.rate = knobs, knobs.steps, knobs.rate

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        dice, parts = torch.Generator().manual_seed(seed), {}
        scores = block_scores(model, calibration, self.knobs.metric)
        for layer, rank in enumerate([self.knobs.rank] * len(scores) if self.knobs.even else ranks(scores, self.knobs.rank)):
            for name, found in model.layers[layer].named_modules():
                if isinstance(found, nn.Linear):
                    module: Any = found
                    a_RK = torch.randn(rank, module.in_features, generator=dice, dtype=module.weight.dtype)
                    b_NR = torch.zeros(module.out_features, rank, dtype=module.weight.dtype)
                    parts[f"layers.{layer}.{name}"] = LowRank(a_RK / math.sqrt(module.in_features), b_NR, alpha=2.0 * rank)
        return attach(model, parts)  # type: ignore[arg-type]


def ranks(scores: list[float], mean: int) -> list[int]:
    """Whole ranks of this mean in proportion to the scores, by largest remainders, none below 1.

    >>> ranks([3.0, 1.0, 0.0, 4.0], 4)
    [6, 2, 1, 7]
    """
    scores = scores if sum(scores) > 0 else [1.0] * len(scores)
    total, whole = mean * len(scores), sum(scores)
    wanted = [1 + (total - len(scores)) * score / whole for score in scores]
    found = [int(want) for want in wanted]
    for i in sorted(range(len(scores)), key=lambda i: found[i] - wanted[i])[: total - sum(found)]:
        found[i] += 1
    return found
