"""Each weight counts by its size times the length of what it reads, compared within an output's row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lithe.card import Card
from lithe.compress.calibrate import Source
from lithe.compress.groups import Group

CARD = Card(paper="A Simple and Effective Pruning Approach for Large Language Models (Wanda)", needs=("inputs",),
            promises=("meets_budget", "level_zero_is_identity", "n_of_m", "touches_only"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    """|W| * ||x|| (Sun et al. 2024, equation 1)."""

    units, per = ("entry",), "row"

    def __init__(self, knobs: Knobs):
        pass

    def score(self, group: Group, source: Source) -> Tensor:
        (site,) = group.sites
        weight_NK = source.weight(site)
        return weight_NK.abs() * source.inputs(site).norm_K.to(weight_NK)
