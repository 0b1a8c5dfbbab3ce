"""Weights of small size are let go first: each alone, or the units whose weights are small together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card
from lithe.compress.calibrate import Source
from lithe.compress.groups import Group
from lithe.compress.units import by_unit

CARD = Card(paper="Magnitude pruning (Han et al. 2015)",
            promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut", "n_of_m", "touches_only"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    """|W|, compared within a layer; of a unit the root mean square of all its weights."""

    units, per = ("entry", "channel", "head", "half", "layer"), "layer"

    def __init__(self, knobs: Knobs):
        pass

    def score(self, group: Group, source: Source) -> Tensor:
        if group.unit == "entry":
            return source.weight(group.sites[0]).abs()
        squares = [by_unit(group, source, site, source.weight(site).square()) for site in group.sites]
        return (torch.stack(squares).sum(0) / group.each).sqrt()
