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


@dataclass(frozen=True, kw_only=True)
class Knobs:
    damping: float = knob(0.01, "added to the second moments' diagonal, as a share of its mean", low=1e-6, high=1)


class Method:
    """Frantar et al. 2023, algorithm 1. A group's scale is set when its first column comes, from weights as they then are."""

    units = ("bits",)

    def __init__(self, knobs: Knobs):
        self.damping = knobs.damping

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        moment_KK = source.inputs(site).second_moment_KK
        return Change(levels={site: rounded(source.weight(site), moment_KK, int(level), source.target.group, self.damping)})


def rounded(weight_NK: Tensor, moment_KK: Tensor, bits: int, group: int, damping: float) -> tuple[Tensor, Tensor]:
    """Levels [N, K] and scales [N, G] of little error on inputs with these second moments."""
    left_NK, root_KK = weight_NK.clone(), inverse_root(moment_KK, damping).to(weight_NK)
    left_NK[:, moment_KK.diagonal() == 0] = 0  # inputs that are never there
    each, (n, k) = width(k=weight_NK.shape[1], group=group), weight_NK.shape
    levels_NK, scales = torch.zeros(n, k, dtype=torch.int8), []
    for start in range(0, k, each):
        stop = min(start + each, k)
        scale_N1 = grid(left_NK[:, start:stop], bits, -1)
        scales.append(scale_N1)
        lost_NI = torch.zeros(n, stop - start, dtype=weight_NK.dtype)
        for j in range(start, stop):
            level_N = nearest(left_NK[:, j : j + 1], scale_N1, bits)[:, 0]
            levels_NK[:, j] = level_N
            error_N = (left_NK[:, j] - level_N.to(left_NK) * scale_N1[:, 0].to(left_NK)) / root_KK[j, j]
            left_NK[:, j + 1 : stop] -= error_N[:, None] * root_KK[j, j + 1 : stop]
            lost_NI[:, j - start] = error_N
        left_NK[:, stop:] -= lost_NI @ root_KK[start:stop, stop:]
    return levels_NK, torch.cat(scales, dim=1)
