"""Train a low-rank product beside each linear layer: the usual adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lithe.card import Card, knob
from lithe.model.adapted import Part
from lithe.model.lowrank import LowRank
from lithe.model.parts import wide_dtype
from lithe.tune.targets import LINEARS, linears

CARD = Card(paper="LoRA (Hu et al. 2021)", promises=("zero_at_start", "merge_equals_wrap", "touches_only"), trains=True)


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
        """A is uniform within 1 / sqrt(inputs), B zero, as in the authors' code."""
        k, dtype, parts = self.knobs, wide_dtype(model), {}
        for site, layer in linears(model, k.targets).items():
            a_RK = (torch.rand(k.rank, layer.in_features, generator=dice, dtype=dtype) * 2 - 1) * layer.in_features**-0.5
            b_NR = torch.zeros(layer.out_features, k.rank, dtype=dtype)
            parts[site] = LowRank(a_RK, b_NR, k.alpha, root=k.root, dropout=k.dropout)
        return parts  # type: ignore[return-value]

    def size(self, model: Any) -> int:
        layers = linears(model, self.knobs.targets).values()
        return sum(self.knobs.rank * (layer.in_features + layer.out_features) for layer in layers)
