"""Keep the largest entries of a difference: the plain way to thin one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.tune import coding, whole

CARD = Card(paper="magnitude pruning of differences (baseline)", promises=("meets_budget", "touches_only"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    share: float = knob(0.2, "of the entries that are kept", low=1e-6, high=1)
    scope: str = knob("all", "what is ranked together: all tensors, those of a kind, or each alone", choices=whole.SCOPES)
    values: str = knob(coding.HALF, "how values are written", choices=(coding.HALF, coding.SINGLE))


class Method:
    turns = whole.TURNS

    def __init__(self, knobs: Knobs):
        self.knobs, self.groups = knobs, whole.Groups(knobs.share, knobs.scope)

    def read(self, name: str, delta: Tensor, turn: int) -> None:
        self.groups.read(name, delta, turn)

    def encode(self, name: str, delta: Tensor, dice: torch.Generator) -> coding.Coded:
        return coding.kept(delta, self.groups.of(name, delta).largest(name, delta), self.knobs.values)
