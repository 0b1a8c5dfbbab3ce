"""Each weight is rounded to the nearest level of its group."""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.rounding import grid, nearest

CARD = Card(paper="Round to nearest", promises=("meets_budget", "level_zero_is_identity", "touches_only", "masked_equals_cut"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    units = ("bits",)

    def __init__(self, knobs: Knobs):
        pass

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        weight_NK = source.weight(site)
        scale_NG = grid(weight_NK, int(level), source.target.group)
        return Change(levels={site: (nearest(weight_NK, scale_NG, int(level)), scale_NG)})
