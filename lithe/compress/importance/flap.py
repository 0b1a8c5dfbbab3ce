"""Channels and heads count by how much what they give fluctuates: a constant can be put into a bias."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lithe.card import Card
from lithe.compress.calibrate import Source
from lithe.compress.groups import Group
from lithe.compress.units import by_unit, reader

CARD = Card(paper="Fluctuation-based Adaptive Structured Pruning for Large Language Models (FLAP)", needs=("inputs",),
            promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut", "touches_only"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    """The variance of an input times the squared length of its column, summed over a unit (An et al. 2024, section 4.1)."""

    units = ("channel", "head")

    def __init__(self, knobs: Knobs):
        pass

    def score(self, group: Group, source: Source) -> Tensor:
        site = reader(group)
        weight_NK = source.weight(site)
        return by_unit(group, source, site, weight_NK.square() * source.inputs(site).variance_K.to(weight_NK))
