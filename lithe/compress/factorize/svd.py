"""A weight becomes the product of two thinner matrices that is nearest to it, by its singular values."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lithe.card import Card
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level

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
        rank, weight_NK = int(level), source.weight(site)
        u_NR, s_R, v_RK = torch.linalg.svd(weight_NK, full_matrices=False)
        root_R = s_R[:rank].sqrt()
        return Change(pairs={site: (root_R[:, None] * v_RK[:rank], u_NR[:, :rank] * root_R)})
