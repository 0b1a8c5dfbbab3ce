"""What methods that tune single entries share: how many a site gets, and what a resumed run must know of those that move."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lithe.model.sparse import Sparse, replace
from lithe.ops.entries import Shape
from lithe.train import entries as optimizers
from lithe.train.optim import Optimizer
from lithe.tune.targets import linears


def shapes(model: Any, targets: Iterable[str]) -> dict[str, Shape]:
    """Outputs and inputs of each site."""
    return {site: (layer.out_features, layer.in_features) for site, layer in linears(model, targets).items()}


def share(shape: Shape, density: float) -> int:
    """How many entries that share of a matrix is, at least one."""
    return max(1, round(density * shape[0] * shape[1]))


def drawn(count: int, shape: Shape, dice: torch.Generator) -> Tensor:
    """So many places at random, ascending."""
    return torch.randperm(shape[0] * shape[1], generator=dice)[:count].sort().values


WHOLE = torch.tensor([-1], dtype=torch.int32)  # stands for all places


class Moving:
    """A method whose entries may move while it trains: its parts, the step it is at, and the way to save and resume both."""

    def __init__(self, knobs: Any, model: Any):
        self.knobs, self.steps, self.step = knobs, 0, 0
        self.parts: dict[str, Any] = {}
        self.by = 1.0  # what the gradients of this step were divided by

    def begin(self, parts: dict[str, Sparse], steps: int) -> None:
        self.parts, self.steps = parts, steps

    def divide(self, by: float) -> None:
        self.by = by

    def optimizers(self, parts: dict[str, Any], settings: Optimizer) -> list[torch.optim.Optimizer]:
        weights = [weight for part in parts.values() for weight in part.parameters()]
        return optimizers.adamw([{"params": weights}], settings)

    def state(self) -> dict[str, Tensor]:
        return {"step": torch.tensor(self.step)} | {f"idx:{site}": WHOLE if part.is_whole else part.idx
                                                    for site, part in self.parts.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.step = int(state["step"])
        for site, part in self.parts.items():
            resize(part, state[f"idx:{site}"])


@torch.no_grad()
def resize(part: Sparse, idx: Tensor) -> None:
    """Make a part hold these places, its values being loaded next."""
    whole = len(idx) == 1 and int(idx) == int(WHOLE)
    part.idx = part.idx[:0] if whole else idx.to(part.idx)
    replace(part.values, part.values.new_zeros(part.shape[0] * part.shape[1] if whole else len(idx)))


def move(part: Sparse, idx: Tensor, opts: Iterable[torch.optim.Optimizer], seeds: dict[str, Tensor] | None = None) -> None:
    """Let a part hold these places, and the optimizers' state follow."""
    optimizers.moved(opts, part.values, part.move(idx), seeds)


def forget(opts: Iterable[torch.optim.Optimizer], weight: nn.Parameter) -> None:
    """Begin a weight's optimizer state anew."""
    optimizers.forget(opts, weight)
