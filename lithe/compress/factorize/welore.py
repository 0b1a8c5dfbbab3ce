"""Matrices whose small singular values are many become pairs, by one threshold for all; the others stay dense."""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.pairs import nearest

CARD = Card(paper="From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients", row=145,
            promises=("meets_budget", "level_zero_is_identity", "touches_only", "masked_equals_cut"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    """Jaiswal et al. 2024, section 3.2: what is cut off is exactly the singular values below the threshold."""

    units = ("rank",)

    def __init__(self, knobs: Knobs):
        pass

    def change(self, group: Group, level: Level, source: Source) -> Change:
        return Change() if level is None else Change(pairs={group.sites[0]: nearest(source.weight(group.sites[0]), int(level))})
