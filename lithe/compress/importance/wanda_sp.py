"""Channels and heads count by the sum of Wanda's scores in the matrix that reads them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lithe.card import Card
from lithe.compress.calibrate import Source
from lithe.compress.groups import Group
from lithe.compress.units import by_unit, reader

CARD = Card(paper="Wanda-SP (An et al. 2024, a baseline of FLAP)", needs=("inputs",),
            promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut", "touches_only"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    """Sum over a unit's columns of |W| * ||x||, in down_proj or o_proj."""

    units = ("channel", "head")

    def __init__(self, knobs: Knobs):
        pass

    def score(self, group: Group, source: Source) -> Tensor:
        site = reader(group)
        weight_NK = source.weight(site)
        return by_unit(group, source, site, weight_NK.abs() * source.inputs(site).norm_K.to(weight_NK))
