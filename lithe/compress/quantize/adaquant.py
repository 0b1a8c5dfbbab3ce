"""Weights, scales, input range and bias of each layer are fitted together: rounded, it is to give what it gave whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.rounding import extremes, grid, nearest, spread
from lithe.model.linear import rounded_inputs

CARD = Card(paper="Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming", row=162,
            needs=("inputs",), promises=("meets_budget", "level_zero_is_identity", "touches_only", "masked_equals_cut"))
QUICK = {"steps": 20}
ROWS = 4096  # of inputs that a layer is fitted on


@dataclass(frozen=True, kw_only=True)
class Knobs:
    steps: int = knob(1000, "of Adam for each layer; 0 is rounding to nearest", low=0)
    batch: int = knob(50, "inputs a step", low=1)
    input_bits: int = knob(0, "round inputs to so many bits of a fitted range; 0 leaves them to the kernels", low=0,
                           high=16)
    weight_rate: float = knob(1e-3, "learning rate of the weights, as a share of their root mean square", low=0)
    scale_rate: float = knob(1e-3, "of the scales, as a share of each", low=0)
    range_rate: float = knob(1e-2, "of the input range, as a share of it", low=0)
    bias: bool = knob(False, "fit a bias too; an FFN that had none then runs uncompiled")
    bias_rate: float = knob(1e-3, "of the bias", low=0)


class Method:
    """min ||Q_w(W + V) Q_a(x) + b - y||^2 over V, scales, ranges and b (Hubara et al. 2021, equation 4), rounding passed
    straight through. x is what the layer reads behind rounded ones, y what it gave in the dense model."""

    units = ("bits",)

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        bits, weight_NK, old_N = int(level), source.weight(site), source.bias(site)
        x_MK, dense_MK = (source.rows(site, ROWS, dense=dense).to(weight_NK) for dense in (False, True))
        fit = Fit(weight_NK, x_MK, dense_MK @ weight_NK.mT, bits, source.target.group, self.knobs)
        fit.run(torch.Generator().manual_seed(source.seed))
        levels_NK, scale_NG, bias_N, low, step = fit.best
        return Change(levels={site: (levels_NK, scale_NG)},
                      biases={site: bias_N if old_N is None else old_N + bias_N} if self.knobs.bias else {},
                      ranges={site: torch.tensor([self.knobs.input_bits, low, step])} if self.knobs.input_bits else {})


class Fit:
    """One layer. Axes: M inputs, N outputs, K inputs of each, G groups. Of all states judged on all inputs the best counts."""

    def __init__(self, weight_NK: Tensor, x_MK: Tensor, wanted_MN: Tensor, bits: int, group: int, knobs: Knobs):
        self.weight_NK, self.x_MK, self.wanted_MN, self.bits, self.knobs = weight_NK, x_MK, wanted_MN, bits, knobs
        self.size, self.start_NG = weight_NK.square().mean().sqrt(), grid(weight_NK, bits, group)
        self.first, self.width = x_MK.min(), (x_MK.max() - x_MK.min()).clamp(min=1e-12) / max(1, 2**knobs.input_bits - 1)
        free = lambda *shape: torch.zeros(*shape, dtype=weight_NK.dtype, requires_grad=True)
        self.moved_NK, self.stretch_NG = free(*weight_NK.shape), free(*self.start_NG.shape)
        self.bias_N, self.range_2 = free(len(weight_NK)), free(2)
        self.error, self.best = float("inf"), self.stored()

    @torch.enable_grad()
    def run(self, dice: torch.Generator) -> None:
        knobs = self.knobs
        rates = [(self.moved_NK, knobs.weight_rate), (self.stretch_NG, knobs.scale_rate)]
        rates += [(self.bias_N, knobs.bias_rate)] if knobs.bias else []
        rates += [(self.range_2, knobs.range_rate)] if knobs.input_bits else []
        optimizer = torch.optim.Adam([{"params": [value], "lr": rate} for value, rate in rates])
        for step in range(knobs.steps + 1):
            if step % max(1, knobs.steps // 20) == 0:
                self.judge()
            if step < knobs.steps:
                picked = torch.randint(len(self.x_MK), (knobs.batch,), generator=dice)
                optimizer.zero_grad()
                lost = self.read(self.x_MK[picked]) @ self.made().mT + self.bias_N - self.wanted_MN[picked]
                lost.square().sum(1).mean().backward()
                optimizer.step()

    @torch.no_grad()
    def judge(self) -> None:
        """Keep this state if it is the best yet, as it would be stored."""
        levels_NK, scale_NG, bias_N, _, _ = found = self.stored()
        made_NK = levels_NK.to(self.x_MK) * spread(scale_NG, levels_NK.shape[1]).to(self.x_MK)
        error = float((self.read(self.x_MK) @ made_NK.mT + bias_N - self.wanted_MN).square().sum(1).mean())
        if error < self.error:
            self.error, self.best = error, found

    def read(self, x_MK: Tensor) -> Tensor:
        """Inputs as the layer reads them."""
        return rounded_inputs(x_MK, *self.range(), self.knobs.input_bits) if self.knobs.input_bits else x_MK

    def range(self) -> tuple[Tensor, Tensor]:
        """The lowest input and the step of the input range."""
        return self.first + self.range_2[0] * self.width * 2**self.knobs.input_bits, self.width * (1 + self.range_2[1])

    def made(self) -> Tensor:
        """What the layer multiplies with: gradients pass the rounding, and stop where levels end."""
        low, high = extremes(self.bits)
        scale_NK = spread(self.start_NG.to(self.moved_NK) * (1 + self.stretch_NG), self.moved_NK.shape[1])
        safe_NK = torch.where(scale_NK == 0, 1.0, scale_NK)
        ratio_NK = ((self.weight_NK + self.moved_NK * self.size) / safe_NK).clamp(low, high)
        return (ratio_NK + (ratio_NK.round() - ratio_NK).detach()) * scale_NK

    @torch.no_grad()
    def stored(self) -> tuple[Tensor, Tensor, Tensor, float, float]:
        scale_NG = (self.start_NG.to(self.moved_NK) * (1 + self.stretch_NG)).half()
        levels_NK = nearest(self.weight_NK + self.moved_NK * self.size, scale_NG, self.bits)
        low, step = self.range()
        return levels_NK, scale_NG, self.bias_N.detach().clone(), float(low), float(step)
