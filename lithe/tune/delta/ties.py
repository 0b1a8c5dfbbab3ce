"""Merge differences entry by entry: thin each, let them vote for a sign, and take the mean of those that agree.

TIES-Merging (Yadav et al., 2023), section 4: trim, elect, disjoint merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.tune import coding, whole

CARD = Card(paper="TIES-Merging: Resolving Interference When Merging Models", promises=("meets_budget", "touches_only"))
GRID = {"scale": (0.4, 0.6, 0.8, 1.0, 1.2, 1.5)}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    share: float = knob(0.2, "of the entries of each difference that are kept; 1 keeps all", low=1e-6, high=1)
    scale: float = knob(1.0, "the merged difference is multiplied by it: the paper's lambda", low=0, high=100)


class Method:
    turns = whole.TURNS

    def __init__(self, knobs: Knobs):
        self.knobs, self.groups = knobs, whole.Groups(knobs.share, "all")

    def read(self, name: str, delta: Tensor, turn: int) -> None:
        self.groups.read(name, delta, turn)

    def encode(self, name: str, delta: Tensor, dice: torch.Generator) -> coding.Coded:
        return coding.kept(delta, self.groups.of(name, delta).largest(name, delta), coding.SINGLE)

    def combine(self, deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Of M differences with weights: the sign with the larger sum, and the weighted mean of what has it."""
        total, share, elected = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
        for delta, weight in zip(deltas, weights, strict=True):
            elected += weight * delta
        for delta, weight in zip(deltas, weights, strict=True):
            agrees = (delta * elected > 0).to(delta.dtype)
            total += weight * delta * agrees
            share += abs(weight) * agrees
        return self.knobs.scale * total / share.clamp_min(torch.finfo(share.dtype).tiny)
