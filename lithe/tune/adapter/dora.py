"""Train direction and length of each weight row apart: a low-rank product, normed, times a magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lithe.card import Card, knob
from lithe.model.adapted import Part, wide
from lithe.model.lowrank import Directed, lengths_of
from lithe.model.parts import wide_dtype
from lithe.tune.targets import LINEARS, linears

CARD = Card(paper="DoRA (Liu et al. 2024)", promises=("zero_at_start", "merge_equals_wrap", "touches_only"), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    rank: int = knob(8, "rank of the product", low=1, high=4096)
    alpha: float = knob(16.0, "the product is scaled by alpha / rank", low=0, high=1e6)
    root: bool = knob(False, "scale by alpha / sqrt(rank) instead (rsLoRA)")
    dropout: float = knob(0.0, "share of inputs dropped while training", low=0, high=0.99)
    targets: tuple[str, ...] = knob(LINEARS, "linear layers by the end of their name or by a pattern of all of it, joined by +")


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        self.knobs = knobs

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Part]:
        """The magnitude starts as the rows' lengths, so that nothing changes."""
        k, dtype, parts = self.knobs, wide_dtype(model), {}
        for site, layer in linears(model, k.targets).items():
            a_RK = (torch.rand(k.rank, layer.in_features, generator=dice, dtype=dtype) * 2 - 1) * layer.in_features**-0.5
            b_NR = torch.zeros(layer.out_features, k.rank, dtype=dtype)
            magnitude_N = lengths_of(wide(layer.weight)).to(dtype)
            parts[site] = Directed(a_RK, b_NR, k.alpha, magnitude_N, root=k.root, dropout=k.dropout)
        return parts  # type: ignore[return-value]

    def size(self, model: Any) -> int:
        return sum(self.knobs.rank * (layer.in_features + layer.out_features) + layer.out_features
                   for layer in linears(model, self.knobs.targets).values())
