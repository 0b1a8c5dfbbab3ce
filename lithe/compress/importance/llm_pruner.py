"""Units count by what the loss would change without them, by its gradient at all their weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.calibrate import Source
from lithe.compress.groups import Group
from lithe.compress.units import by_unit

CARD = Card(paper="LLM-Pruner: On the Structural Pruning of Large Language Models", needs=("gradients",),
            promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut", "touches_only"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    taylor: str = knob("first", "first: |w g|; second: w^2 g^2; mix: |w g - w^2 g^2 / 2|; vector: the sum of w g over a unit",
                       choices=("first", "second", "mix", "vector"))


class Method:
    """Taylor terms of the coupled rows and columns of all a unit's matrices, summed (Ma et al. 2023, section 3.2)."""

    units = ("channel", "head", "half", "layer")

    def __init__(self, knobs: Knobs):
        self.taylor = knobs.taylor

    def score(self, group: Group, source: Source) -> Tensor:
        found = torch.stack([by_unit(group, source, site, self._terms(source, site)) for site in group.sites])
        return found.abs().sum(0) if self.taylor == "vector" else found.sum(0)

    def _terms(self, source: Source, site: str) -> Tensor:
        weight_NK = source.weight(site)
        if self.taylor == "second":
            return weight_NK.square() * source.squared_gradients(site).to(weight_NK)
        first_NK = weight_NK * source.mean_gradients(site).to(weight_NK)
        if self.taylor == "mix":
            return (first_NK - 0.5 * weight_NK.square() * source.squared_gradients(site).to(weight_NK)).abs()
        return first_NK if self.taylor == "vector" else first_NK.abs()
