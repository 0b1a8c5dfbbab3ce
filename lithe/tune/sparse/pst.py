"""Prune while tuning: a low-rank product moves the weight, and another, with rows and columns, tells what stays of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.errors import UsageError
from lithe.model.adapted import Part
from lithe.model.masked import Masked
from lithe.model.parts import wide_dtype
from lithe.tune.targets import LINEARS, linears

CARD = Card(paper="Parameter-Efficient Sparsity for Large Language Models Fine-Tuning", row=77,
            promises=("zero_at_start", "merge_equals_wrap", "touches_only"), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    sparsity: float = knob(0.5, "share of every matrix that is zero at the end", low=0, high=0.99)
    rank: int = knob(8, "of the product that moves the weight", low=1, high=4096)
    score_rank: int = knob(8, "of the product that scores its entries", low=1, high=4096)
    beta: float = knob(1.0, "factor on the first product", low=0, high=1e3)
    low: float = knob(1.0, "weight of the second in the score, beside the entry's size; 0: size alone", low=0, high=1e3)
    sides: float = knob(1.0, "weight of rows and columns in the score", low=0, high=1e3)
    spread: str = knob("scaled", "the first product's U is normal with deviation 1 / sqrt(rank), or 1 as in the authors' code",
                       choices=("scaled", "paper"))
    warm: float = knob(0.1, "share of the steps before entries become zero", low=0, high=1)
    last: float = knob(0.3, "share of the steps after the full sparsity is reached", low=0, high=1)
    targets: tuple[str, ...] = knob(LINEARS, "linear layers by the end of their name or by a pattern of all of it, joined by +")


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        if knobs.warm + knobs.last > 1:
            raise UsageError(f"warm={knobs.warm} and last={knobs.last} are shares of the steps, more than 1 together")
        self.knobs, self.steps = knobs, 0
        self.parts: dict[str, Any] = {}

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Part]:
        """U and A are normal, all else zero: at first nothing moves, and an entry's score is its size."""
        k, dtype, parts = self.knobs, wide_dtype(model), {}
        size = k.rank**-0.5 if k.spread == "scaled" else 1.0
        zeros = lambda *shape: torch.zeros(*shape, dtype=dtype)
        draw = lambda *shape: torch.randn(*shape, generator=dice, dtype=dtype)
        for site, layer in linears(model, k.targets).items():
            n, kk = layer.out_features, layer.in_features
            tensors = {"u": draw(n, k.rank) * size, "v": zeros(k.rank, kk), "a": draw(n, k.score_rank),
                       "b": zeros(k.score_rank, kk), "rows": zeros(n), "columns": zeros(kk)}
            parts[site] = Masked(tensors, beta=k.beta, low=k.low, sides=k.sides)
        return parts  # type: ignore[return-value]

    def size(self, model: Any) -> int:
        each = self.knobs.rank + self.knobs.score_rank + 1
        return sum(each * (layer.in_features + layer.out_features) for layer in linears(model, self.knobs.targets).values())

    def begin(self, parts: dict[str, Any], steps: int) -> None:
        self.parts, self.steps = parts, steps
        self._set(self.at(0))

    def update(self, parts: dict[str, Any], step: int, optimizers: Any) -> None:
        """What the next step runs with, or what is saved after the last."""
        self._set(self.at(step))

    def at(self, step: int) -> float:
        """The sparsity after so many steps: a cubic rise (Zhu and Gupta 2017) between two rests."""
        first, end = int(self.knobs.warm * self.steps), self.steps - int(self.knobs.last * self.steps)
        done = min(1.0, max(0.0, (step - first) / max(1, end - first)))
        return self.knobs.sparsity * (1 - (1 - done) ** 3)

    def state(self) -> dict[str, Tensor]:
        return {"sparsity": torch.tensor([next((part.sparsity for part in self.parts.values()), 0.0)], dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._set(float(state["sparsity"]))

    def _set(self, sparsity: float) -> None:
        for part in self.parts.values():
            part.sparsity = sparsity
