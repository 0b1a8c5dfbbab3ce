"""Optimizers of single entries: AdamW in which each has its own age, SM3, and what makes state follow entries that move.

Axes: N outputs, K inputs, S entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lithe.errors import UnsupportedError
from lithe.ops.entries import follow
from lithe.train.optim import Optimizer


class EntryAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) whose bias correction counts each entry's own steps, its `age`.

    So an entry that joins late is like one at the start of a run, or, given moments and an age, as if it had been there.
    """

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
                 weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state.update({name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq", "age")})
                age, mean, square = (state[name] for name in ("age", "exp_avg", "exp_avg_sq"))
                age += 1
                mean.lerp_(weight.grad, 1 - beta1)
                square.mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                scale = (square / (1 - beta2**age)).sqrt_().add_(group["eps"]).mul_(1 - beta1**age)
                weight.addcdiv_(mean, scale, value=-group["lr"])


class EntrySM3(torch.optim.Optimizer):
    """SM3 (Anil et al. 2019, SM3-II) of entries of matrices: a second moment for each row and column is all its state.

    parts: the sparse parts whose values train, which tell where their entries stand.
    """

    def __init__(self, parts: Iterable[Any], lr: float, eps: float = 1e-8, weight_decay: float = 0.0):
        self.parts = {part.values: part for part in parts}
        super().__init__(list(self.parts), {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state, part, (n, k) = self.state[weight], self.parts[weight], self.parts[weight].shape
                if not state:
                    state.update(rows=weight.new_zeros(n, 1), columns=weight.new_zeros(1, k))
                rows, columns, place_S = state["rows"].view(-1), state["columns"].view(-1), part.places.long()
                row_S = place_S // k
                column_S = place_S - row_S * k
                moment = torch.minimum(rows[row_S], columns[column_S]).addcmul_(weight.grad, weight.grad)
                rows.scatter_reduce_(0, row_S, moment, "amax")
                columns.scatter_reduce_(0, column_S, moment, "amax")
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.addcdiv_(weight.grad, moment.add_(group["eps"]).sqrt_(), value=-group["lr"])


def adamw(groups: list[dict[str, Any]], settings: Optimizer) -> list[torch.optim.Optimizer]:
    """EntryAdamW with a run's settings over such groups, whose weights decay only where a group says so."""
    return ready(EntryAdamW(groups, settings.lr, settings.betas), settings)


def ready(optimizer: torch.optim.Optimizer, settings: Optimizer) -> list[torch.optim.Optimizer]:
    """As the loop takes it. Raises UnsupportedError where a run asks for another optimizer."""
    if settings.name != "adamw":
        raise UnsupportedError(f"this method brings its own optimizer: leave the optimizer {settings.name!r} out")
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return [optimizer]


@torch.no_grad()
def moved(optimizers: Iterable[torch.optim.Optimizer], weight: nn.Parameter, source_S: Tensor,
          seeds: Mapping[str, Tensor] | None = None) -> None:
    """Let the state of a weight's entries follow them, after `Sparse.move` gave source_S. New ones have `seeds`, else zero.

    seeds: a state's name -> what new entries begin with, one value for each in their order.
    """
    new_S = source_S < 0
    for optimizer in optimizers:
        state = optimizer.state.get(weight, {})
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim() == 1:  # one for each entry
                state[name] = follow(value, source_S)
                if seeds is not None and name in seeds:
                    state[name][new_S] = seeds[name].to(value)


def forget(optimizers: Iterable[torch.optim.Optimizer], weight: nn.Parameter) -> None:
    """Begin anew: drop what the optimizers know of a weight."""
    for optimizer in optimizers:
        optimizer.state.pop(weight, None)
