"""Columns are masked one after another; what goes, the columns still to come make up for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.hessian import inverse_root
from lithe.compress.masking import of_pattern, of_share, parts

CARD = Card(paper="SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", needs=("moments",),
            promises=("meets_budget", "level_zero_is_identity", "n_of_m"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    block: int = knob(128, "columns whose mask is chosen together", low=1)
    damping: float = knob(0.01, "added to the second moments' diagonal, as a share of its mean", low=1e-6, high=1)


class Method:
    """Frantar and Alistarh 2023, algorithm 1."""

    units = ("entry",)

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if not level:
            return Change()
        (site,) = group.sites
        pattern = "" if source.target is None else source.target.pattern
        moment_KK = source.inputs(site).second_moment_KK
        return Change(weights={site: pruned(source.weight(site), moment_KK, float(level), pattern, self.knobs)})


def pruned(weight_NK: Tensor, moment_KK: Tensor, share: float, pattern: str, knobs: Knobs) -> Tensor:
    """The weights with this share, or all but n of m, at zero, and the others moved to make up for it."""
    left_NK, root_KK, k = weight_NK.clone(), inverse_root(moment_KK, knobs.damping).to(weight_NK), weight_NK.shape[1]
    left_NK[:, moment_KK.diagonal() == 0] = 0
    wide = knobs.block if not pattern else math.lcm(knobs.block, parts(pattern)[1])
    for start in range(0, k, wide):
        stop = min(start + wide, k)
        score = left_NK[:, start:stop].square() / root_KK.diagonal()[start:stop].square()
        keep = None if pattern else of_share(score, share, "layer")
        lost = torch.zeros_like(score)
        for j in range(start, stop):
            if pattern and (j - start) % parts(pattern)[1] == 0:  # chosen when its first column comes, from weights as they are
                m = parts(pattern)[1]
                now = left_NK[:, j : j + m].square() / root_KK.diagonal()[j : j + m].square()
                keep_NM, first = of_pattern(now, pattern), j
            mask_N = keep_NM[:, j - first] if keep is None else keep[:, j - start]
            error_N = torch.where(mask_N, 0.0, left_NK[:, j]) / root_KK[j, j]
            left_NK[:, j] = torch.where(mask_N, left_NK[:, j], 0.0)
            left_NK[:, j + 1 : stop] -= error_N[:, None] * root_KK[j, j + 1 : stop]
            lost[:, j - start] = error_N
        left_NK[:, stop:] -= lost @ root_KK[start:stop, stop:]
    return left_NK
