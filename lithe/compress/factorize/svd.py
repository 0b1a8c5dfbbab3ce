"""A weight becomes the product of two thinner matrices that is nearest to it, by its singular values."""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.pairs import nearest

CARD = Card(paper="Truncated SVD (Eckart and Young 1936)", promises=("meets_budget", "level_zero_is_identity", "touches_only",
                                                                    "masked_equals_cut"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    units = ("rank",)

    def __init__(self, knobs: Knobs):
        pass

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        return Change(pairs={site: nearest(source.weight(site), int(level))})
