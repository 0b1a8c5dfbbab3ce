"""A method's word in a step of the loop. Each verb is the method's own where it has it, and nothing otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Guide:
    """A tuning method and the parts it built, as the loop asks them; alone it says nothing.

    penalty: added to the mean loss of a step. observe: gradients are whole and not yet clipped. update: the optimizers have
    moved. state, restore: what a resumed run needs beside weights. Steps count from 1.
    """

    def __init__(self, method: Any = None, parts: Mapping[str, nn.Module] | None = None):
        self.method, self.parts = method, parts

    @property
    def speaks(self) -> bool:
        """Whether it has any word on a step: such a method needs all weights in one process."""
        return any(hasattr(self.method, verb) for verb in ("penalty", "observe", "update"))

    def begin(self, steps: int) -> None:
        self._call("begin", self.parts, steps)

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
