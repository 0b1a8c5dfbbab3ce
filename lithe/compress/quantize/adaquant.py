"""Weights, scales and bias of each layer are fitted together so that the rounded layer gives what the whole one gave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.rounding import extremes, grid, nearest, spread

CARD = Card(paper="Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming", row=162,
            needs=("moments",), promises=("meets_budget", "level_zero_is_identity", "touches_only", "masked_equals_cut"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    steps: int = knob(1000, "of Adam for each layer; 0 is rounding to nearest", low=0)
    weight_rate: float = knob(1e-3, "learning rate of the weights, as a share of their root mean square", low=0)
    scale_rate: float = knob(1e-3, "of the scales, as a share of each", low=0)
    bias: bool = knob(False, "fit a bias too; layers that had none then run uncompiled in the FFN")
    bias_rate: float = knob(1e-3, "of the bias", low=0)


class Method:
    """min ||Q(W + V) x + b - W x||^2 over V, scales and b, rounding passed straight through (Hubara et al. 2021, equation 4).

    The mean square over all calibration inputs follows from their mean and second moments, so each step sees all of them.
    """

    units = ("bits",)

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        inputs = source.inputs(site)
        fit = Fit(source.weight(site), inputs.second_moment_KK, inputs.mean_K, int(level), source.target.group)
        levels_NK, scale_NG, bias_N = fit.run(self.knobs)
        old_N = source.bias(site)
        return Change(levels={site: (levels_NK, scale_NG)},
                      biases={site: bias_N if old_N is None else old_N + bias_N} if self.knobs.bias else {})


class Fit:
    """One layer; the best step counts, judged on what is stored. Axes: N outputs, K inputs, G groups."""

    def __init__(self, weight_NK: Tensor, moment_KK: Tensor, mean_K: Tensor, bits: int, group: int):
        self.weight_NK, self.bits = weight_NK, bits
        self.moment_KK, self.mean_K = moment_KK.to(weight_NK), mean_K.to(weight_NK)
        self.start_NG = grid(weight_NK, bits, group)

    def error(self, made_NK: Tensor, bias_N: Tensor) -> Tensor:
        """The mean squared error of the outputs, summed over them."""
        lost_NK = made_NK - self.weight_NK
        shifted = 2 * (bias_N * (lost_NK @ self.mean_K)).sum() + bias_N.square().sum()
        return ((lost_NK @ self.moment_KK) * lost_NK).sum() + shifted

    @torch.enable_grad()
    def run(self, knobs: Knobs) -> tuple[Tensor, Tensor, Tensor]:
        size = self.weight_NK.square().mean().sqrt()
        moved_NK, stretch_NG = torch.zeros_like(self.weight_NK), torch.zeros_like(self.start_NG.to(self.weight_NK))
        bias_N = torch.zeros(len(self.weight_NK), dtype=self.weight_NK.dtype)
        found = (moved_NK, stretch_NG, bias_N) if knobs.bias else (moved_NK, stretch_NG)
        rates = (knobs.weight_rate, knobs.scale_rate, knobs.bias_rate)
        best = (float("inf"), self.stored(moved_NK, stretch_NG, bias_N))
        optimizer = torch.optim.Adam([{"params": [p.requires_grad_()], "lr": lr} for p, lr in zip(found, rates, strict=False)])
        for step in range(knobs.steps + 1):
            with torch.no_grad():
                here = self.stored(moved_NK * size, stretch_NG, bias_N)
                error = float(self.error(here[0].to(moved_NK) * spread(here[1], here[0].shape[1]).to(moved_NK), here[2]))
                best = (error, here) if error < best[0] else best
            if step < knobs.steps:
                optimizer.zero_grad()
                self.error(self.rounded(moved_NK * size, stretch_NG), bias_N).backward()
                optimizer.step()
        return best[1]

    def rounded(self, moved_NK: Tensor, stretch_NG: Tensor) -> Tensor:
        """What the layer multiplies with: gradients pass the rounding as if it were not there, and stop where levels end."""
        low, high = extremes(self.bits)
        scale_NK = spread(self.start_NG.to(moved_NK) * (1 + stretch_NG), moved_NK.shape[1])
        safe_NK = torch.where(scale_NK == 0, 1.0, scale_NK)
        ratio_NK = ((self.weight_NK + moved_NK) / safe_NK).clamp(low, high)
        return (ratio_NK + (ratio_NK.round() - ratio_NK).detach()) * scale_NK

    def stored(self, moved_NK: Tensor, stretch_NG: Tensor, bias_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale_NG = (self.start_NG.to(moved_NK) * (1 + stretch_NG.detach())).half()
        return nearest(self.weight_NK + moved_NK.detach(), scale_NG, self.bits), scale_NG, bias_N.detach().clone()
