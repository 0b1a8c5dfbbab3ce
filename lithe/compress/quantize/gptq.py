"""Columns are rounded one after another; what rounding loses, the columns still to come make up for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.hessian import inverse_root
from lithe.compress.rounding import grid, nearest, width

CARD = Card(paper="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", needs=("moments",),
            promises=("meets_budget", "level_zero_is_identity", "touches_only", "masked_equals_cut"))
STEPS = 40  # of the shrinking of ranges


@dataclass(frozen=True, kw_only=True)
class Knobs:
    damping: float = knob(0.01, "added to the second moments' diagonal, as a share of its mean", low=1e-6, high=1)
    order: bool = knob(False, "loudest inputs first, scales set before all of them; a group is still of neighbours")
    clip: float = knob(0.0, "the most by which a group's range is shrunk where that loses less; 0: never", low=0, high=0.9)


class Method:
    """Frantar et al. 2023, algorithm 1. A group's scale is set when its first column comes, from weights as they then are.

    `order` and `clip` are the authors' later options (act-order with static groups, and a search for ranges; theirs weighs all
    errors alike, this one by what is left of them once later columns have answered).
    """

    units = ("bits",)

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        moment_KK = source.inputs(site).second_moment_KK
        return Change(levels={site: rounded(source.weight(site), moment_KK, int(level), source.target.group, self.knobs)})


def rounded(weight_NK: Tensor, moment_KK: Tensor, bits: int, group: int, knobs: Knobs) -> tuple[Tensor, Tensor]:
    """Levels [N, K] and scales [N, G] of little error on inputs with these second moments."""
    (n, k), loud_K = weight_NK.shape, moment_KK.diagonal()
    each = width(k, group)
    turn_K = loud_K.argsort(descending=True, stable=True) if knobs.order else torch.arange(k)
    left_NK = torch.where(loud_K == 0, 0.0, weight_NK)[:, turn_K]  # inputs that are never there lose their weights
    root_KK = inverse_root(moment_KK[turn_K][:, turn_K], knobs.damping).to(weight_NK)
    weigh_K = root_KK.diagonal().pow(-2)
    levels_NK, scale_NG = torch.zeros(n, k, dtype=torch.int8), torch.zeros(n, -(-k // each), dtype=torch.float16)
    if knobs.order:
        for g in range(scale_NG.shape[1]):
            own = turn_K // each == g
            scale_NG[:, g] = ranged(left_NK[:, own], weigh_K[own], bits, knobs.clip)
    for start in range(0, k, each):
        stop = min(start + each, k)
        if not knobs.order:
            scale_NG[:, start // each] = ranged(left_NK[:, start:stop], weigh_K[start:stop], bits, knobs.clip)
        lost_NI = torch.zeros(n, stop - start, dtype=weight_NK.dtype)
        for j in range(start, stop):
            scale_N1 = scale_NG[:, turn_K[j] // each, None]
            level_N = nearest(left_NK[:, j : j + 1], scale_N1, bits)[:, 0]
            levels_NK[:, turn_K[j]] = level_N
            error_N = (left_NK[:, j] - level_N.to(left_NK) * scale_N1[:, 0].to(left_NK)) / root_KK[j, j]
            left_NK[:, j + 1 : stop] -= error_N[:, None] * root_KK[j, j + 1 : stop]
            lost_NI[:, j - start] = error_N
        left_NK[:, stop:] -= lost_NI @ root_KK[start:stop, stop:]
    return levels_NK, scale_NG


def ranged(weight_NI: Tensor, weigh_I: Tensor, bits: int, clip: float) -> Tensor:
    """Scales [N] of a group: of its whole range, or of the shrunk one that loses least by these weights of squared errors."""
    whole_N1 = grid(weight_NI, bits, -1)
    best_N1, least_N = whole_N1, None
    for i in range(round(STEPS * clip) + 1 if clip else 0):
        tried_N1 = (whole_N1.to(weight_NI) * (1 - i / STEPS)).half()
        error_N = (nearest(weight_NI, tried_N1, bits).to(weight_NI) * tried_N1.to(weight_NI) - weight_NI).square() @ weigh_I
        better_N = torch.ones_like(error_N, dtype=torch.bool) if least_N is None else error_N < least_N
        best_N1 = torch.where(better_N[:, None], tried_N1, best_N1)
        least_N = error_N if least_N is None else torch.where(better_N, error_N, least_N)
    return best_N1[:, 0]
