"""Train ever more entries: each step adds those whose gradient is large for a weight so small."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.model.adapted import wide
from lithe.model.parts import wide_dtype
from lithe.model.sparse import Sparse
from lithe.ops.largest import largest
from lithe.tune.entries import Moving, move, shapes
from lithe.tune.targets import LINEARS, linears

CARD = Card(paper="Step-by-Step Unmasking for Parameter-Efficient Fine-tuning (Agarwal et al. 2024)", row=3,
            promises=("zero_at_start", "merge_equals_wrap", "touches_only"), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    density: float = knob(0.01, "share of all entries that train at the end", low=1e-6, high=0.5)
    power: float = knob(1.0, "how much small weights are preferred; 0: gradients alone decide", low=0, high=4)
    eps: float = knob(1e-3, "added to a weight's size", low=1e-8, high=1)
    every: int = knob(1, "steps from one choice to the next, which takes as many more", low=1, high=1_000_000)
    turns: int = knob(1, "groups of sites that take turns, so that fewer whole gradients are held", low=1, high=10_000)
    targets: tuple[str, ...] = knob(LINEARS, "linear layers by the end of their name or by a pattern of all of it, joined by +")


class Method(Moving):
    def __init__(self, knobs: Knobs, model: Any):
        super().__init__(knobs, model)
        self.layers = linears(model, knobs.targets)
        self.budget = round(knobs.density * sum(n * k for n, k in shapes(model, knobs.targets).values()))
        self.seen: dict[str, Tensor] = {}  # this step's whole gradients
        self.most = 0

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Sparse]:
        """Nothing trains yet: the first step's gradients choose the first entries."""
        none = torch.zeros(0, dtype=wide_dtype(model))
        return {site: Sparse(torch.zeros(0), none.clone(), shape) for site, shape in shapes(model, self.knobs.targets).items()}

    def size(self, model: Any) -> int:
        """None at first; `budget` at the end."""
        return 0

    def begin(self, parts: dict[str, Sparse], steps: int) -> None:
        super().begin(parts, steps)
        self._watch()

    @torch.no_grad()
    def update(self, parts: dict[str, Sparse], step: int, optimizers: list[torch.optim.Optimizer]) -> None:
        """Let the best entries join, and take this step with them."""
        self.step = step
        if self.seen:
            for site, gradient in self.seen.items():
                gradient.div_(self._size(site, slice(None)))  # from here on a signed score
            scores = [partial(self._score, site) for site in self.seen]
            joined, _ = largest(scores, self._wanted(step))
            for (site, score), new in zip(self.seen.items(), joined, strict=True):
                if len(new):
                    self._join(parts[site], new, score[new] * self._size(site, new) / self.by, optimizers)
            self.seen = {}
        self._watch()

    def held(self) -> int:
        return self.most

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        self._watch()

    def _wanted(self, step: int) -> int:
        """How many join now: the budget evenly over all steps, the rest on the first ones, `every` steps' share at once."""
        base, rest = divmod(self.budget, self.steps)
        last = min(step + self.knobs.every - 1, self.steps)
        return base * (last - step + 1) + max(0, min(rest, last) - (step - 1))

    def _size(self, site: str, which: Any) -> Tensor:
        """What divides the gradient of still entries: (|weight| + eps) to the power."""
        return (wide(self.layers[site].weight).flatten()[which].abs() + self.knobs.eps) ** self.knobs.power

    def _score(self, site: str) -> Tensor:
        return self.seen[site].abs().index_fill_(0, self.parts[site].idx.long(), -1.0)

    def _join(self, part: Sparse, new: Tensor, gradient: Tensor, optimizers: Any) -> None:
        """New entries and their first step, which for Adam is lr * sign(gradient) but for its eps."""
        group = optimizers[0].param_groups[0]
        beta1, beta2 = group["betas"]
        first = -group["lr"] * gradient / (gradient.abs() + group["eps"])
        seeds = {"exp_avg": (1 - beta1) * gradient, "exp_avg_sq": (1 - beta2) * gradient**2, "age": torch.ones_like(gradient)}
        places = torch.cat([part.idx.long(), new]).sort().values
        move(part, places, optimizers, seeds)
        part.values[torch.isin(places, new)] = first.to(part.values)

    def _watch(self) -> None:
        """Look at whole gradients where the next step chooses, of the sites whose turn it is."""
        choice, chooses = divmod(self.step, self.knobs.every)
        for number, (site, part) in enumerate(self.parts.items()):
            mine = number % self.knobs.turns == choice % self.knobs.turns
            part.watch = partial(self._look, site) if not chooses and mine and self.step < self.steps else None

    def _look(self, site: str, gradient_NK: Tensor) -> None:
        if site in self.seen:
            self.seen[site] += gradient_NK.detach().flatten()
        else:
            self.seen[site] = gradient_NK.detach().flatten()
            self.most = max(self.most, sum(seen.numel() * seen.element_size() for seen in self.seen.values()))
