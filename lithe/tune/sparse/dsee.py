"""Train a low-rank product and a few entries, prune the weights beneath once, and let both recover.

What is pruned: the smallest weights (`prune`), or whole heads (`heads`): a gate on what each key-value head's queries give is
trained with a penalty on its size, and those of the smallest gates are shut. A head that is shut can be cut away once merged.
"""

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
    heads: float = knob(0.0, "share of all key-value heads, with their queries, that is pruned by gates; 0: no gates",
                        low=0, high=0.95)
    slim: float = knob(1e-4, "weight of the gates' sizes in the loss, until heads are pruned", low=0, high=10)
    by: str = knob("sum", "where a product trains, weights are ranked by the sum with the change, or by the change alone",
                   choices=("sum", "change"))
    targets: tuple[str, ...] = knob(("q_proj", "v_proj"), "linear layers that are changed, by the end of their name or by a "
                                                          "pattern of all of it, joined by +")
    pruned: tuple[str, ...] = knob(LINEARS, "linear layers that are pruned, likewise")


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        self.knobs, self.layers, self.steps = knobs, linears(model, (*knobs.targets, *knobs.pruned)), 0
        self.pruned = linears(model, knobs.pruned)
        self.gated = {site: _heads(model, site) for site in linears(model, ("o_proj",))} if knobs.heads else {}
        self.layers |= {site: layer for site, layer in linears(model, ("o_proj",)).items() if site in self.gated}
        self.parts: dict[str, Thinned] = {}
        self.shut: dict[str, Tensor] = {}  # which heads are pruned, by site

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Thinned]:
        """A is uniform within 1 / sqrt(inputs), B and the entries are zero, gates are one."""
        k, dtype, found = self.knobs, wide_dtype(model), shapes(model, self.layers)
        gates = {site: torch.ones(count, dtype=dtype) for site, count in self.gated.items()}
        parts: dict[str, Thinned] = {site: Thinned(shape, gates_H=gates.get(site)) for site, shape in found.items()}
        for site, count in self._counts(model).items():
            n, m = found[site]
            a_RK = (torch.rand(k.rank, m, generator=dice, dtype=dtype) * 2 - 1) * m**-0.5
            places = self._support(wide(self.layers[site].weight), count, dice)
            parts[site] = Dual(a_RK, torch.zeros(n, k.rank, dtype=dtype), places, torch.zeros(count, dtype=dtype), k.alpha,
                               gates_H=gates.get(site))
        return parts

    def size(self, model: Any) -> int:
        found = shapes(model, self.knobs.targets)
        return sum(self.gated.values()) + sum(self.knobs.rank * sum(found[site]) + count
                                              for site, count in self._counts(model).items())

    def begin(self, parts: dict[str, Thinned], steps: int) -> None:
        self.parts, self.steps = parts, steps

    def penalty(self, parts: dict[str, Thinned]) -> Tensor | None:
        """The gates' sizes, until heads are pruned."""
        if not self.gated or self.shut:
            return None
        return self.knobs.slim * torch.cat([self._gates(site) for site in self.gated]).abs().sum()

    @torch.no_grad()
    def update(self, parts: dict[str, Thinned], step: int, optimizers: Any) -> None:
        """Once: prune the smallest of all weights together, those that change as they now are, and the least of heads."""
        if step == max(1, round(self.knobs.turn * self.steps)):
            self._prune(parts)
            self.shut = self._least()
        for site, shut_H in self.shut.items():
            gates_H = self._gates(site)
            gates_H.masked_fill_(shut_H.to(gates_H.device), 0)

    def _least(self) -> dict[str, Tensor]:
        """The heads of the smallest gates of all, each layer's largest excepted."""
        if not self.gated:
            return {}
        sizes = {site: self._gates(site).abs() for site in self.gated}
        free = torch.cat([size_H.index_fill(0, size_H.argmax(), torch.inf) for size_H in sizes.values()])
        shut = torch.zeros(len(free), dtype=torch.bool)
        count = min(round(self.knobs.heads * len(free)), int(free.isfinite().sum()))
        shut[free.cpu().argsort(stable=True)[:count]] = True
        return dict(zip(sizes, shut.split([len(size_H) for size_H in sizes.values()]), strict=True))

    def _gates(self, site: str) -> Tensor:
        gates_H = self.parts[site].gates
        assert gates_H is not None
        return gates_H

    def _prune(self, parts: dict[str, Thinned]) -> None:
        if not self.knobs.prune:
            return
        total = sum(n * k for n, k in (parts[site].shape for site in self.pruned))
        found, _ = largest([partial(self._size, site) for site in self.pruned], round(self.knobs.prune * total), smallest=True)
        for site, places in zip(self.pruned, found, strict=True):
            parts[site].prune(places)

    def state(self) -> dict[str, Tensor]:
        shut = {f"{site}.shut": shut_H for site, shut_H in self.shut.items()}
        return shut | {site: part.pruned for site, part in self.parts.items() if len(part.pruned)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.shut = {name.removesuffix(".shut"): held.bool() for name, held in state.items() if name.endswith(".shut")}
        for site, pruned in state.items():
            if not site.endswith(".shut"):
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


def _heads(model: Any, site: str) -> int:
    """Key-value heads behind an output matrix of attention."""
    return model.config.layer(int(site.split(".")[1])).kv_heads


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
