"""A method's word in a step of the loop. Each verb is the method's own where it has it, and nothing otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Guide:
    """A tuning method and the parts it built, as the loop asks them; alone it says nothing.

    optimizers: its own, in the place of the usual one. penalty: added to the mean loss of a step. divide: gradients, summed
    until now, were divided by so much. observe: gradients are whole and not yet clipped. update: the optimizers have moved.
    state, restore: what a resumed run needs beside weights, given back before them. held: the most bytes it held beside its
    parts. Steps count from 1.
    """

    def __init__(self, method: Any = None, parts: Mapping[str, nn.Module] | None = None, objectives: Sequence[Any] = ()):
        self.method, self.parts, self.objectives = method, parts, objectives

    @property
    def speaks(self) -> bool:
        """Whether it has any word on a step: such a method needs all weights in one process."""
        return any(hasattr(self.method, verb) for verb in ("optimizers", "penalty", "observe", "update"))

    def loss(self, plain: Callable) -> Callable:
        """The loss slot: the plain one, as the objectives change it in their order."""
        for objective in self.objectives:
            plain = objective.loss(plain)
        return plain

    def begin(self, steps: int) -> None:
        self._call("begin", self.parts, steps)

    def optimizers(self, settings: Any) -> list[torch.optim.Optimizer] | None:
        return self._call("optimizers", self.parts, settings)

    def divide(self, by: float) -> None:
        self._call("divide", by)

    def held(self) -> int:
        return self._call("held") or 0

    def penalty(self) -> Tensor | None:
        return self._call("penalty", self.parts)

    def observe(self, step: int) -> None:
        self._call("observe", self.parts, step)

    def update(self, step: int, optimizers: list[torch.optim.Optimizer]) -> None:
        self._call("update", self.parts, step, optimizers)

    def finish(self) -> None:
        self._call("finish", self.parts)

    def state(self) -> dict[str, Tensor]:
        return self._call("state") or {}

    def restore(self, state: dict[str, Tensor]) -> None:
        if state:
            self._call("restore", state)

    def _call(self, verb: str, *arguments: Any) -> Any:
        does = getattr(self.method, verb, None)
        return does(*arguments) if does is not None else None
