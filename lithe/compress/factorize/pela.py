"""Every linear layer becomes a pair of thinner ones, all by the same share, to be healed by `recover=pela`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.pairs import nearest

CARD = Card(paper="PELA: Learning Parameter-Efficient Models with Low-Rank Approximation", row=102,
            promises=("meets_budget", "level_zero_is_identity", "touches_only", "masked_equals_cut"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    least: int = knob(10, "layers of fewer inputs or outputs stay as they are", low=1)
    start: str = knob("nearest", "the nearest pair, or a random one: a control", choices=("nearest", "random"))


class Method:
    """Guo et al. 2024, section 3.1: singular vectors, the roots of the singular values on both sides."""

    units = ("rank",)

    def __init__(self, knobs: Knobs):
        self.least, self.start = knobs.least, knobs.start

    def wants(self, group: Group) -> bool:
        return group.units >= self.least

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        rank, weight_NK = int(level), source.weight(site)
        if self.start == "nearest":
            return Change(pairs={site: nearest(weight_NK, rank)})
        dice = torch.Generator().manual_seed(source.seed + sum(site.encode()) * 1000)
        (n, k), size = weight_NK.shape, weight_NK.square().mean().sqrt()  # the product has entries of the weight's size
        draw = lambda rows, columns: torch.randn(rows, columns, generator=dice, dtype=torch.float64).to(weight_NK)
        return Change(pairs={site: (draw(rank, k) * size / rank**0.5, draw(n, rank))})
