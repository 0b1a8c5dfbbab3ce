"""A weight becomes a low-rank, a block-diagonal and dense, or a twice block-diagonal product, fitted to it or drawn afresh.

Axes: N outputs, K inputs, R inner width, G blocks, S outputs and P inputs of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.allocation import Option
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.step import Target
from lithe.errors import UnsupportedError, UsageError
from lithe.model.blocks import product

CARD = Card(paper="Building on Efficient Foundations: Effectively Training LLMs with Structured Feedforward Layers", row=168,
            promises=("meets_budget", "level_zero_is_identity", "touches_only", "masked_equals_cut"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    form: str = knob("low_rank", "of the product", choices=("low_rank", "block_dense", "block_shuffle"))
    blocks: int = knob(2, "blocks of block_dense, whose rank is a multiple; of block_shuffle, whose inner width is the thinner "
                          "side, they are the level", low=1)
    start: str = knob("weights", "what it begins as: the nearest to the weights; the paper's draw (the nearest to a normal "
                                 "draw, blocks orthogonal); or plain normal factors",
                      choices=("weights", "fresh", "random"))


class Method:
    """Wei et al. 2024, sections 3.1 and 3.2. Fits are closed: each is a set of truncated singular value decompositions."""

    units = ("rank",)

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def options(self, group: Group, module: Any, target: Target, item: int) -> list[Option]:
        """Ranks, or counts of blocks."""
        inputs, outputs, thin = module.in_features, module.out_features, group.units
        full = [Option(level=None, cost=float(group.weights * item))]
        if self.knobs.form == "block_shuffle":
            if target.rank is not None:
                raise UsageError("block_shuffle has blocks, not a rank: say ratio, bytes or levels")
            counts = target.levels or [2**i for i in range(1, 8)]
            legal = [int(g) for g in counts if not (thin % int(g * g) or inputs % g or outputs % g)]
            return [Option(level=g, cost=float(thin * (inputs + outputs) // g * item)) for g in legal] + full
        g = self.knobs.blocks if self.knobs.form == "block_dense" else 1
        if inputs % g:
            raise UnsupportedError(f"{group.name}: its {inputs} inputs do not divide into {g} blocks")
        each, rank = inputs / g + outputs, target.rank
        if rank is not None:
            if rank > min(thin, g * min(inputs // g, outputs)) or rank % g:
                raise UsageError(f"{group.name}: rank {rank} is more than its {thin}, or no multiple of {g} blocks")
            return [Option(level=rank, cost=rank * each * item)]
        most = min(int((group.weights - 1) // each), thin)
        return [Option(level=int(r), cost=r * each * item)
                for r in target.levels or range(g, most + 1, max(1, most // 64 // g) * g)] + full

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        weight_NK, form = source.weight(site), self.knobs.form
        start = self.knobs.start
        g = self.knobs.blocks if form == "block_dense" else int(level) if form == "block_shuffle" else 1
        if start != "weights":
            dice = torch.Generator().manual_seed(source.seed * 1_000_003 + sum(map(ord, site)))
            drawn = torch.randn(weight_NK.shape, generator=dice, dtype=weight_NK.dtype)
            weight_NK = drawn * weight_NK.square().mean().sqrt()
        rank = min(weight_NK.shape) if form == "block_shuffle" else int(level)
        a, b = shuffled(weight_NK, g) if form == "block_shuffle" else dense(weight_NK, rank, g)
        if start == "random" or (start == "fresh" and form != "low_rank"):
            a, b = (_drawn(t, start, dice) for t in (a, b))
            scale = (weight_NK.square().mean() / product(a, b).square().mean()).sqrt().sqrt()  # of the product as of the weight
            a, b = a * scale, b * scale
        return Change(pairs={site: (a, b)})


def dense(weight_NK: Tensor, rank: int, g: int) -> tuple[Tensor, Tensor]:
    """The nearest product: a [G, R/G, K/G], or [R, K] where G is 1, and b [N, R]. Each block of inputs is a problem apart."""
    u_GNR, s_GR, v_GRP = torch.linalg.svd(torch.stack(weight_NK.chunk(g, 1)), full_matrices=False)
    each = rank // g
    root_GR = s_GR[:, :each].sqrt()
    a_GRP, b_GNR = root_GR[..., None] * v_GRP[:, :each], u_GNR[..., :each] * root_GR[:, None]
    return (a_GRP[0] if g == 1 else a_GRP), torch.cat(tuple(b_GNR), 1)


def shuffled(weight_NK: Tensor, g: int) -> tuple[Tensor, Tensor]:
    """The nearest twice block-diagonal product: a [G, R/G, K/G], b [G, N/G, R/G], R the thinner side.

    From stretch i of the inputs to every G-th output from j on goes a rank of R/G^2: a problem apart for each i and j.
    """
    n, k = weight_NK.shape
    each = min(n, k) // (g * g)
    part_GGSP = weight_NK.view(n // g, g, g, k // g).permute(2, 1, 0, 3)  # by stretch of inputs, then by stride of outputs
    u, s, v = torch.linalg.svd(part_GGSP, full_matrices=False)
    root = s[..., :each].sqrt()
    down_GGRP, up_GGSR = root[..., None] * v[..., :each, :], u[..., :each] * root[..., None, :]
    a = down_GGRP.transpose(1, 2).reshape(g, each * g, k // g)  # inner entries by stretch, rank, stride
    b = up_GGSR.permute(1, 2, 0, 3).reshape(g, n // g, g * each)  # of a stride, entries come by stretch, then by rank
    return a, b


def _drawn(like: Tensor, start: str, dice: torch.Generator) -> Tensor:
    """Normal factors of deviation 1 / sqrt(inputs), or orthogonal ones, block by block."""
    drawn = torch.randn(like.shape, generator=dice, dtype=like.dtype) * like.shape[-1] ** -0.5
    if start == "random":
        return drawn
    u, _, v = torch.linalg.svd(drawn, full_matrices=False)
    return u @ v
