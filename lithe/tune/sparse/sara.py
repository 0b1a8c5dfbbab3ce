"""Train the smallest weights; half way, let those that have grown stay as they are and train the rest again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.model.adapted import wide
from lithe.model.parts import wide_dtype
from lithe.model.sparse import Settling
from lithe.ops.largest import largest
from lithe.train.entries import ready
from lithe.train.optim import Optimizer
from lithe.tune.entries import Moving, forget, shapes
from lithe.tune.targets import LINEARS, linears

CARD = Card(paper="SaRA: Fine-tuning with Progressive Sparse Low-Rank Adaptation (Hu et al. 2024)", row=47,
            promises=("zero_at_start", "merge_equals_wrap", "touches_only"), trains=True)
SMALLEST_SIDE, FEWEST = 64, 100  # of matrices that the nuclear norm is taken of, and of entries in them
SLACK = 1 + 1e-6  # the threshold is the largest entry that trains, rounded to float32
ZERO = 1e-6  # singular values below this share of the largest have no direction


@dataclass(frozen=True, kw_only=True)
class Knobs:
    density: float = knob(0.1, "share of all entries that train, the smallest weights", low=1e-6, high=0.5)
    turn: float = knob(0.5, "share of the steps after which grown entries stay as they are; 1: never", low=0.01, high=1)
    nuclear: float = knob(5e-4, "weight of a random matrix's nuclear norm in the loss", low=0, high=1e3)
    slow: float = knob(0.0, "the run's rate is taken times exp(-slow * threshold); the authors have 350 for one of 0.002",
                       low=0, high=1e5)
    of: str = knob("change", "what the norm is of: change, or weight for the trained entries themselves",
                   choices=("change", "weight"))
    targets: tuple[str, ...] = knob(LINEARS, "linear layers by the end of their name or by a pattern of all of it, joined by +")


class Method(Moving):
    def __init__(self, knobs: Knobs, model: Any):
        super().__init__(knobs, model)
        self.layers, self.threshold, self.draws = linears(model, knobs.targets), 0.0, 0

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Settling]:
        """The smallest weights of all sites together; their largest size is the threshold."""
        scores = [partial(lambda layer: wide(layer.weight).abs(), layer) for layer in self.layers.values()]
        found, self.threshold = largest(scores, self.size(model), smallest=True)
        zeros = lambda idx: torch.zeros(len(idx), dtype=wide_dtype(model))
        return {site: Settling(idx, zeros(idx), shape)
                for (site, shape), idx in zip(shapes(model, self.knobs.targets).items(), found, strict=True)}

    def size(self, model: Any) -> int:
        return max(1, round(self.knobs.density * sum(n * k for n, k in shapes(model, self.knobs.targets).values())))

    def optimizers(self, parts: dict[str, Any], settings: Optimizer) -> list[torch.optim.Optimizer]:
        """Plain AdamW, since all entries are of one age, at a rate that is lower where larger weights train."""
        rate = settings.lr * math.exp(-self.knobs.slow * self.threshold)
        weights = [part.values for part in parts.values()]
        return ready(torch.optim.AdamW(weights, lr=rate, betas=settings.betas, weight_decay=0.0), settings)

    def penalty(self, parts: dict[str, Settling]) -> Tensor:
        """The nuclear norm of one matrix, drawn anew each step, where it is large enough; its gradient is U V^T."""
        self.draws += 1
        names, none = list(parts), next(iter(parts.values())).values.new_zeros((), requires_grad=True)
        site = names[int(torch.randint(len(names), (), generator=torch.Generator().manual_seed(self.draws)))]
        part = parts[site]
        if not self.knobs.nuclear or min(part.shape) <= SMALLEST_SIDE or len(part.values) < FEWEST:
            return none
        matrix, offset = self._matrix(site, part)
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        keep = values > ZERO * values[0]
        if not keep.any() or values[0] == 0:
            return none
        direction = (u[:, keep] @ v[keep]).flatten()[part.idx.long()]
        return self.knobs.nuclear * ((part.values + offset) * direction).sum()

    @torch.no_grad()
    def update(self, parts: dict[str, Settling], step: int, optimizers: list[torch.optim.Optimizer]) -> None:
        """Once: entries that have outgrown the threshold settle, the others begin anew."""
        self.step = step
        if step == round(self.knobs.turn * self.steps) < self.steps:
            for site, part in parts.items():
                forget(optimizers, part.values)
                part.settle((self._base(site, part) + part.values).abs() > self.threshold * SLACK)

    def finish(self, parts: dict[str, Settling]) -> None:
        for part in parts.values():
            part.wake()

    def state(self) -> dict[str, Tensor]:
        settled = {f"settled:{site}": part.settled_idx for site, part in self.parts.items()}
        return super().state() | settled | {"draws": torch.tensor(self.draws)}

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        self.draws = int(state["draws"])
        for site, part in self.parts.items():
            part.settled_idx = state[f"settled:{site}"].to(part.idx)
            part.settled = part.values.new_zeros(len(part.settled_idx))

    def _base(self, site: str, part: Settling) -> Tensor:
        return wide(self.layers[site].weight).flatten()[part.idx.long()].to(part.values)

    @torch.no_grad()
    def _matrix(self, site: str, part: Settling) -> tuple[Tensor, Tensor | float]:
        """What the norm is of, and what it has beside the changes at the places that train."""
        offset = self._base(site, part) if self.knobs.of == "weight" else 0.0
        flat = part.values.new_zeros(part.shape[0] * part.shape[1])
        return flat.index_copy_(0, part.idx.long(), part.values.detach() + offset).view(part.shape), offset
