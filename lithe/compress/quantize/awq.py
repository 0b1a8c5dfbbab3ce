"""Channels that are read loudest are scaled up before rounding, so that rounding costs them less; large weights are clipped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.allocation import Plan
from lithe.compress.calibrate import Calibration, Source
from lithe.compress.change import Change, dequantized
from lithe.compress.groups import Group, Level
from lithe.compress.rounding import grid, nearest
from lithe.compress.smooth import group_errors, smooth
from lithe.compress.step import Target
from lithe.model.decoder import Decoder

CARD = Card(paper="AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration",
            needs=("moments",), promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    grid: int = knob(20, "exponents from 0 below 1 that are tried; 1: no scaling", low=1)
    clip: bool = knob(True, "shrink the range of a group where that costs its outputs less")
    shrink: float = knob(0.5, "the most by which a range is shrunk", low=0, high=0.95)


class Method:
    """Lin et al. 2024, sections 3.2 and 4: s = mean |x|^a, a of least squared error of what the reading layers give, then a
    clip of each group. Query and key matrices are not clipped, as in the authors' code. Levels are even around zero here."""

    units = ("bits",)

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def smooth(self, model: Decoder, calibration: Calibration | None, levels: Plan, target: Target) -> None:
        bits = int(min(level for level in levels.values() if level is not None))

        def find(weights, inputs, even) -> Tensor:
            loud_K = even(inputs.abs_K / max(1, inputs.tokens)).clamp(min=1e-4)
            found = [scaled(loud_K, i / self.knobs.grid) for i in range(self.knobs.grid)]
            lost = lambda s_K: sum(self.error(w, s_K, inputs.second_moment_KK, bits, target.group) for w in weights)
            return min(found, key=lost)

        if self.knobs.grid > 1:
            smooth(model, calibration, levels, find, moments=True)

    def error(self, weight_NK: Tensor, s_K: Tensor, moment_KK: Tensor, bits: int, group: int) -> float:
        """Mean squared error of outputs where the weights are rounded behind this scaling."""
        wide_NK = weight_NK * s_K
        scale_NG = grid(wide_NK, bits, group)
        lost_NK = dequantized(nearest(wide_NK, scale_NG, bits), scale_NG).to(wide_NK) / s_K - weight_NK
        return float((lost_NK @ moment_KK.to(lost_NK) * lost_NK).sum())

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        bits, weight_NK, inner = int(level), source.weight(site), source.target.group
        scale_NG = grid(weight_NK, bits, inner)
        if self.knobs.clip and not site.endswith(("q_proj", "k_proj")):
            moment_KK, least_NG, whole_NG = source.inputs(site).second_moment_KK, None, scale_NG
            for i in range(int(20 * self.knobs.shrink)):
                tried_NG = (whole_NG.to(weight_NK) * (1 - i / 20)).half()
                lost_NK = dequantized(nearest(weight_NK, tried_NG, bits), tried_NG).to(weight_NK) - weight_NK
                error_NG = group_errors(lost_NK, moment_KK, inner)
                better_NG = error_NG < least_NG if least_NG is not None else torch.ones_like(error_NG, dtype=torch.bool)
                scale_NG = torch.where(better_NG, tried_NG, scale_NG)
                least_NG = torch.where(better_NG, error_NG, error_NG if least_NG is None else least_NG)
        return Change(levels={site: (nearest(weight_NK, scale_NG, bits), scale_NG)})


def scaled(loud_K: Tensor, exponent: float) -> Tensor:
    """Factors of this exponent, their largest times their smallest 1."""
    s_K = (loud_K**exponent).clamp(min=1e-4)
    return s_K / (s_K.max() * s_K.min()).sqrt()
