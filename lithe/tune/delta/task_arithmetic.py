"""Add differences up, each with its weight: what was learned is added, or with a weight below zero taken away.

Task arithmetic (Ilharco et al., 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.tune import coding

CARD = Card(paper="Editing Models with Task Arithmetic", promises=("level_zero_is_identity", "touches_only"))
GRID = {"scale": (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)}
ZERO = {"scale": 0.0}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    scale: float = knob(1.0, "the sum is multiplied by it: the paper's lambda", low=-100, high=100)


class Method:
    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def encode(self, name: str, delta: Tensor, dice: torch.Generator) -> coding.Coded:
        return coding.floats(self.knobs.scale * delta, coding.SINGLE)

    def combine(self, deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        total = torch.zeros_like(deltas[0])
        for delta, weight in zip(deltas, weights, strict=True):
            total += weight * delta
        return total
