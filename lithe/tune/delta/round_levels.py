"""Round a difference to whole numbers of a step, and write them by how often they occur.

Uniform quantization with a wider zero, the usual companion of an entropy code (Sullivan 1996); here as a baseline.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.tune import coding, whole

CARD = Card(paper="uniform threshold quantization of differences (baseline)", promises=("touches_only",))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    step: float = knob(1.0, "in deviations of what is measured together", low=1e-4, high=100)
    zero: float = knob(0.65, "entries below this many steps become zero", low=0.5, high=1)
    scope: str = knob("tensor", "what is measured together: all tensors, those of a kind, or each alone", choices=whole.SCOPES)


class Method:
    turns = 1

    def __init__(self, knobs: Knobs):
        self.knobs, self.groups = knobs, whole.Groups(1.0, knobs.scope)

    def read(self, name: str, delta: Tensor, turn: int) -> None:
        self.groups.read(name, delta, turn)

    def encode(self, name: str, delta: Tensor, dice: torch.Generator) -> coding.Coded:
        step = self.knobs.step * self.groups.of(name, delta).deviation
        if not step:
            return coding.same(delta.numel())
        sizes = (delta.abs() / step + 1 - self.knobs.zero).floor()
        return coding.levels(delta, sizes * delta.sign(), step)
