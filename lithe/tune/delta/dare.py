"""Drop most entries of a difference by chance and scale up the rest: its mean is what it was.

DARE (Yu et al., 2023). Which entries stay is drawn anew by whoever reads the file, from a seed in it: only values are written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.tune import coding

CARD = Card(paper="Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
            promises=("touches_only",))
RANDOM = True


@dataclass(frozen=True, kw_only=True)
class Knobs:
    drop: float = knob(0.9, "chance that an entry is dropped: the paper's p", low=0, high=0.9999)
    values: str = knob(coding.HALF, "how values are written", choices=(coding.HALF, coding.SINGLE))


class Method:
    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def encode(self, name: str, delta: Tensor, dice: torch.Generator) -> coding.Coded:
        seed, kept = int(torch.randint(2**62, (), generator=dice)), 1 - self.knobs.drop
        return coding.drawn(delta / kept, seed, kept, self.knobs.values)
