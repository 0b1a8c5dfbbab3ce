"""Train a low-rank product and a few entries, prune the weights beneath once, and let both recover."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.errors import UsageError
from lithe.model.adapted import wide
from lithe.model.dual import Dual, Thinned
from lithe.model.parts import wide_dtype
from lithe.ops.largest import largest
from lithe.tune.entries import drawn, shapes
from lithe.tune.targets import LINEARS, linears

CARD = Card(paper="DSEE: Dually Sparsity-embedded Efficient Tuning of Pre-trained Language Models (Chen et al. 2023)", row=113,
            promises=("zero_at_start", "merge_equals_wrap", "touches_only"), trains=True)
SMALL, GROWTH, INNER = 0.01, 5, 2  # of the decomposition: what is no outlier, rows a round adds, steps of a round


@dataclass(frozen=True, kw_only=True)
class Knobs:
    rank: int = knob(16, "rank of the product", low=1, high=4096)
    alpha: float = knob(16.0, "the change is scaled by alpha / rank", low=0, high=1e6)
    entries: int = knob(64, "entries of each weight that train beside the product", low=1, high=10_000_000)
    density: float = knob(0.0, "share of the targets' entries that trains in all, product included; 0: as entries says",
                          low=0, high=0.5)
    support: str = knob("outliers", "which entries: outliers from a low-rank part of the weight, magnitude, or random",
                        choices=("outliers", "magnitude", "random"))
    rounds: int = knob(100, "rounds of finding the low-rank part", low=1, high=10_000)
    prune: float = knob(0.3, "share of all weights that is pruned; 0: none", low=0, high=0.95)
    turn: float = knob(1 / 3, "share of the steps before pruning", low=0, high=1)
    by: str = knob("sum", "where a product trains, weights are ranked by the sum with the change, or by the change alone",
                   choices=("sum", "change"))
    targets: tuple[str, ...] = knob(("q_proj", "v_proj"), "linear layers that are changed, by the end of their name or by a "
                                                          "pattern of all of it, joined by +")
    pruned: tuple[str, ...] = knob(LINEARS, "linear layers that are pruned, likewise")


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        self.knobs, self.layers, self.steps = knobs, linears(model, (*knobs.targets, *knobs.pruned)), 0
        self.pruned = linears(model, knobs.pruned)
        self.parts: dict[str, Thinned] = {}

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Thinned]:
        """A is uniform within 1 / sqrt(inputs), B and the entries are zero."""
        k, dtype, found = self.knobs, wide_dtype(model), shapes(model, self.layers)
        parts: dict[str, Thinned] = {site: Thinned(shape) for site, shape in found.items()}
        for site, count in self._counts(model).items():
            n, m = found[site]
            a_RK = (torch.rand(k.rank, m, generator=dice, dtype=dtype) * 2 - 1) * m**-0.5
            places = self._support(wide(self.layers[site].weight), count, dice)
            parts[site] = Dual(a_RK, torch.zeros(n, k.rank, dtype=dtype), places, torch.zeros(count, dtype=dtype), k.alpha)
        return parts

    def size(self, model: Any) -> int:
        found = shapes(model, self.knobs.targets)
        return sum(self.knobs.rank * sum(found[site]) + count for site, count in self._counts(model).items())

    def begin(self, parts: dict[str, Thinned], steps: int) -> None:
        self.parts, self.steps = parts, steps

    @torch.no_grad()
    def update(self, parts: dict[str, Thinned], step: int, optimizers: Any) -> None:
        """Once: prune the smallest of all weights together, those that change as they now are."""
        if step != max(1, round(self.knobs.turn * self.steps)) or not self.knobs.prune:
            return
        total = sum(n * k for n, k in (parts[site].shape for site in self.pruned))
        found, _ = largest([partial(self._size, site) for site in self.pruned], round(self.knobs.prune * total), smallest=True)
        for site, places in zip(self.pruned, found, strict=True):
            parts[site].prune(places)

    def state(self) -> dict[str, Tensor]:
        return {site: part.pruned for site, part in self.parts.items() if len(part.pruned)}

    def restore(self, state: dict[str, Tensor]) -> None:
        for site, pruned in state.items():
            self.parts[site].pruned = pruned.to(self.parts[site].pruned)

    def _counts(self, model: Any) -> dict[str, int]:
        """Entries that train, by site."""
        found, k = shapes(model, self.knobs.targets), self.knobs
        if not k.density:
            counts = {site: k.entries for site in found}
        else:
            counts = {site: round(k.density * n * m) - k.rank * (n + m) for site, (n, m) in found.items()}
        for site, (n, m) in found.items():
            if not 1 <= counts[site] <= n * m // 2:
                raise UsageError(f"{counts[site]} entries of {site} cannot train beside a product of rank {k.rank}: take "
                                 "another rank, density or number of entries")
        return counts

    def _support(self, weight_NK: Tensor, count: int, dice: torch.Generator) -> Tensor:
        if self.knobs.support == "random":
            return drawn(count, (len(weight_NK), weight_NK.shape[1]), dice)
        rest = weight_NK if self.knobs.support == "magnitude" else residual(weight_NK, self.knobs.rank, self.knobs.rounds, dice)
        return largest([rest.abs], count)[0][0]

    def _size(self, site: str) -> Tensor:
        part, weight_NK = self.parts[site], wide(self.layers[site].weight)
        if not isinstance(part, Dual):
            return weight_NK.abs()
        change_NK = part.matrix().to(weight_NK)
        return (change_NK if self.knobs.by == "change" else weight_NK + change_NK).abs()


def residual(weight_NK: Tensor, rank: int, rounds: int, dice: torch.Generator) -> Tensor:
    """W less a low-rank part that is found while outliers are left out (GreBsmo, Zhou and Tao 2013): W - U V.

    Outliers are what is left of W - U V above SMALL; the rank grows greedily, by the directions in which most is left.
    """
    v_RK = torch.randn(1, weight_NK.shape[1], generator=dice, dtype=weight_NK.dtype).to(weight_NK)
    outliers_NK, left_NK = torch.zeros_like(weight_NK), weight_NK
    for _ in range(rounds):
        for _ in range(INNER):
            u_NR = torch.linalg.qr((weight_NK - outliers_NK) @ v_RK.T).Q
            v_RK = u_NR.T @ (weight_NK - outliers_NK)
            left_NK = weight_NK - u_NR @ v_RK
            outliers_NK = torch.where(left_NK.abs() < SMALL, 0.0, left_NK)
        more = min(GROWTH, rank - len(v_RK))
        if more > 0:
            v_RK = torch.cat([v_RK, torch.linalg.qr(left_NK - outliers_NK).R[:more]])
    return left_NK
