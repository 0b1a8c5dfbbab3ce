"""A linear layer while it is learned which way its weights round. Axes: N outputs, K inputs, G groups, R rank, M inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.compress.change import Change
from lithe.compress.rounding import extremes, grid, spread
from lithe.model.linear import rounded_inputs

STRETCH = (-0.1, 1.1)  # of the sigmoid, so that offsets reach 0 and 1


class Rounding(nn.Module):
    """W_q = s * clip(floor(W / s) + h(V), least, greatest), h a sigmoid stretched and cut to 0..1 (AdaRound, Nagel 2020).

    V is what gives the weights as they are, plus a product of rank R; a matrix for rank 0. Trained too: steps s and, for
    input_bits, the range of what it reads, both as shares of what they were. x_MK: some of that; None: found at the first pass.
    """

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None, bits: int, group: int, rank: int, input_bits: int,
                 x_MK: Tensor | None, dice: torch.Generator):
        super().__init__()
        (self.out_features, self.in_features), self.bits, self.input_bits = weight_NK.shape, bits, input_bits
        self.weight_NK, self.bias = weight_NK, bias_N
        self.start_NG = grid(weight_NK, bits, group).to(weight_NK)
        free = lambda *shape: nn.Parameter(torch.zeros(*shape, dtype=weight_NK.dtype))
        self.a_RK = nn.Parameter(torch.randn(rank, self.in_features, generator=dice, dtype=weight_NK.dtype)) if rank else None
        self.b_NR = free(self.out_features, rank or self.in_features)
        self.stretch_NG, self.range_2 = free(*self.start_NG.shape), free(2)
        self.first: Tensor | None = None
        if x_MK is not None:
            self._see(x_MK)

    @property
    def offsets(self) -> list[nn.Parameter]:
        return [self.b_NR] if self.a_RK is None else [self.a_RK, self.b_NR]

    @property
    def steps(self) -> list[nn.Parameter]:
        return [self.stretch_NG, self.range_2] if self.input_bits else [self.stretch_NG]

    def forward(self, x: Tensor) -> Tensor:
        if self.input_bits:
            if self.first is None:
                self._see(x)
            x = rounded_inputs(x, *self.range(), self.input_bits)
        return F.linear(x, self.weight, self.bias)

    @property
    def weight(self) -> Tensor:
        """[N, K], soft offsets in it; gradients pass the floor."""
        scale_NK = spread(self.start_NG * (1 + self.stretch_NG), self.in_features)
        ratio_NK = self.weight_NK / torch.where(scale_NK == 0, 1.0, scale_NK)
        floor_NK = ratio_NK + (ratio_NK.floor() - ratio_NK).detach()
        return (floor_NK + self.soft(ratio_NK.detach())).clamp(*extremes(self.bits)) * scale_NK

    def soft(self, ratio_NK: Tensor) -> Tensor:
        """The offsets h(V) [N, K] of weights so many steps large."""
        low, high = STRETCH
        inside_NK = (ratio_NK - ratio_NK.floor() - low) / (high - low)
        moved_NK = self.b_NR if self.a_RK is None else self.b_NR @ self.a_RK
        return ((torch.logit(inside_NK) + moved_NK).sigmoid() * (high - low) + low).clamp(0, 1)

    def undecided(self, power: float) -> Tensor:
        """The mean of 1 - |2 h - 1|^power: 0 where every offset is 0 or 1."""
        scale_NK = spread(self.start_NG * (1 + self.stretch_NG.detach()), self.in_features)
        offset_NK = self.soft(self.weight_NK / torch.where(scale_NK == 0, 1.0, scale_NK))
        return (1 - (2 * offset_NK - 1).abs() ** power).mean()

    def range(self) -> tuple[Tensor, Tensor]:
        """The lowest input, and the step of inputs."""
        assert self.first is not None
        return self.first + self.range_2[0] * self.width * 2**self.input_bits, self.width * (1 + self.range_2[1])

    @torch.no_grad()
    def change(self, site: str) -> Change:
        """As it is stored: offsets cut at one half, scales in half precision."""
        scale_NG = (self.start_NG * (1 + self.stretch_NG)).half()
        scale_NK = spread(scale_NG, self.in_features).to(self.weight_NK)
        ratio_NK = self.weight_NK / torch.where(scale_NK == 0, 1.0, scale_NK)
        levels_NK = (ratio_NK.floor() + (self.soft(ratio_NK) >= 0.5)).clamp(*extremes(self.bits)).to(torch.int8)
        ranges = {}
        if self.input_bits:
            low, step = self.range()
            ranges = {site: torch.tensor([self.input_bits, float(low), float(step)])}
        return Change(levels={site: (levels_NK, scale_NG)}, ranges=ranges)

    def _see(self, x: Tensor) -> None:
        x = x.detach()
        self.first = x.min()
        self.width = (x.max() - self.first).clamp(min=1e-12) / (2**self.input_bits - 1)
