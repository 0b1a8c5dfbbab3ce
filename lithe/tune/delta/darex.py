"""Drop nearly all entries of a difference by chance and scale up the rest by less than their share asks: DARE at its extreme.

DAREx-q (Deng et al., 2024). At extreme rates the usual factor 1/(1-p) keeps the mean, but its variance ruins the model; 1/q
with q above 1-p gives up some of the mean. One q for all layers, as the paper advises for decoders, chosen on held-out data
with answers (--valid) or, without, by how little the last hidden states change (--unlabelled). Embeddings, norms, biases and
the head are left whole. Its other half, AdamR, is training's: `lithe tune --pull`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.tune import coding

CARD = Card(paper="DARE the Extreme: Revisiting Delta-Parameter Pruning For Fine-Tuned Models", row=100,
            promises=("touches_only",))
RANDOM = True
GRID = {"over": (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)}  # q up to 1: what lies beyond is left out


@dataclass(frozen=True, kw_only=True)
class Knobs:
    drop: float = knob(0.99, "chance that an entry is dropped: the paper's p", low=0, high=0.9999)
    over: float = knob(1.0, "q in units of 1-p: what is kept is divided by q; 1 is DARE", low=1, high=1e4)
    whole: tuple[str, ...] = knob(("embed", "lm_head", "norm", "bias"), "parts of names of tensors left whole, joined by +")
    values: str = knob(coding.HALF, "how values are written", choices=(coding.HALF, coding.SINGLE))


class Method:
    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def encode(self, name: str, delta: Tensor, dice: torch.Generator) -> coding.Coded:
        seed, kept = int(torch.randint(2**62, (), generator=dice)), 1 - self.knobs.drop
        if any(part in name for part in self.knobs.whole):
            return coding.floats(delta, self.knobs.values)
        return coding.drawn(delta / min(1.0, kept * self.knobs.over), seed, kept, self.knobs.values)
