"""Every way that chance can fall, with its probability: what proves a rule exactly. Axes: V vocabulary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable

from torch import Tensor

from lithe.ops.accept import Chance


class Continuous(Exception):
    """A number from a continuum was asked for: there are no branches to take one by one."""


class Branch:
    """Chance that follows a script, then takes the first turn of each fork and notes the others for later."""

    def __init__(self, script: list[int], pending: list[list[int]]):
        self.script, self.pending = script, pending
        self.taken: list[int] = []
        self.weight = 1.0

    def toss(self, chance: float) -> bool:
        chance = min(chance, 1.0)
        return self._fork([1 - chance, chance]) == 1

    def draw(self, p_V: Tensor) -> int:
        weights = p_V.tolist()
        return self._fork([weight / sum(weights) for weight in weights])

    def gumbel(self, size: int) -> Tensor:
        raise Continuous

    def _fork(self, chances: list[float]) -> int:
        at = len(self.taken)
        if at < len(self.script):
            turn = self.script[at]
        else:
            turn, *others = [i for i, chance in enumerate(chances) if chance > 0]
            self.pending += [[*self.taken, other] for other in others]
        self.taken.append(turn)
        self.weight *= chances[turn]
        return turn


def outcomes(process: Callable[[Chance], Hashable]) -> dict[Hashable, float]:
    """Run a process once for each way its chance can fall; the probability of each outcome."""
    found: dict[Hashable, float] = defaultdict(float)
    pending: list[list[int]] = [[]]
    while pending:
        branch = Branch(pending.pop(), pending)
        found[process(branch)] += branch.weight
    return found
