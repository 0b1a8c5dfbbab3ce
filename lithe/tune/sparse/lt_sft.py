"""Train all entries for a while, go back, and train only those that had changed most: changes that can be added up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.model.parts import wide_dtype
from lithe.model.sparse import Sparse
from lithe.ops.largest import largest
from lithe.tune.entries import WHOLE, Moving, forget, resize, shapes
from lithe.tune.targets import LINEARS

CARD = Card(paper="Composable Sparse Fine-Tuning for Cross-Lingual Transfer (Ansell et al. 2022)", row=42,
            promises=("zero_at_start", "merge_equals_wrap", "touches_only"), trains=True)
TINY = 1e-7  # what has changed less is left out, as in the authors' code


@dataclass(frozen=True, kw_only=True)
class Knobs:
    density: float = knob(0.01, "share of all entries that train in the second stage", low=1e-6, high=0.5)
    rounds: int = knob(1, "rounds of both stages, each of which adds its part of the entries", low=1, high=1000)
    whole: float = knob(0.5, "share of a round's steps in which all entries train", low=0.01, high=0.99)
    pull: float = knob(0.0, "weight of the mean size of changes in the loss, while all entries train", low=0, high=1e6)
    pull_few: float = knob(0.0, "the same while few entries train", low=0, high=1e6)
    targets: tuple[str, ...] = knob(LINEARS, "linear layers by the end of their name or by a pattern of all of it, joined by +")


class Method(Moving):
    def __init__(self, knobs: Knobs, model: Any):
        super().__init__(knobs, model)
        self.total = self.size(model)
        self.budget = round(knobs.density * self.total)
        self.chosen: dict[str, Tensor] = {}  # by earlier rounds

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Sparse]:
        """All entries, since all train at first."""
        return {site: Sparse.whole(shape, wide_dtype(model)) for site, shape in shapes(model, self.knobs.targets).items()}

    def size(self, model: Any) -> int:
        """At first; `budget` in the end."""
        return sum(n * k for n, k in shapes(model, self.knobs.targets).values())

    def penalty(self, parts: dict[str, Sparse]) -> Tensor | float:
        """The mean size of the changes, over all entries that could change."""
        first = next(iter(parts.values()))
        weight = self.knobs.pull if first.is_whole else self.knobs.pull_few
        if not weight:
            return first.values.new_zeros((), requires_grad=True)
        return weight * torch.stack([part.values.abs().sum() for part in parts.values()]).sum() / self.total

    @torch.no_grad()
    def update(self, parts: dict[str, Sparse], step: int, optimizers: list[torch.optim.Optimizer]) -> None:
        """At the end of a whole stage go back to the base with few entries, at the end of a round let all train again."""
        self.step = step
        for number in range(self.knobs.rounds):
            start, end = (self.steps * (number + i) // self.knobs.rounds for i in (0, 1))
            turn = start + max(1, round(self.knobs.whole * (end - start)))
            if step == turn < end:
                self._choose(parts, self.budget * (number + 1) // self.knobs.rounds, optimizers)
            elif step == end < self.steps and not next(iter(parts.values())).is_whole:
                self._open(parts, optimizers)

    def finish(self, parts: dict[str, Sparse]) -> None:
        for part in parts.values():
            part.move(part.places[part.values.detach().abs() >= TINY])

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"chosen:{site}": chosen for site, chosen in self.chosen.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        self.chosen = {site: state[f"chosen:{site}"].to(part.idx.device) for site, part in self.parts.items()
                       if f"chosen:{site}" in state}

    def _choose(self, parts: dict[str, Sparse], count: int, optimizers: Any) -> None:
        """The entries of earlier rounds and those that have changed most, `count` in all; every change goes back to zero."""
        before = sum(len(chosen) for chosen in self.chosen.values())
        found, _ = largest([partial(self._change, site) for site in parts], count - before)
        for (site, part), new in zip(parts.items(), found, strict=True):
            old = self.chosen.get(site, new[:0])
            self.chosen[site] = torch.cat([old, new]).sort().values
            forget(optimizers, part.values)
            resize(part, self.chosen[site].int())

    def _change(self, site: str) -> Tensor:
        chosen = self.chosen.get(site)
        change = self.parts[site].values.detach().abs()
        return change if chosen is None else change.index_fill(0, chosen, -1.0)

    def _open(self, parts: dict[str, Sparse], optimizers: Any) -> None:
        """All entries train again, from where the few stand."""
        for part in parts.values():
            now = part.matrix().flatten()
            forget(optimizers, part.values)
            resize(part, WHOLE)
            part.values.copy_(now)
