"""How much a draft gains from reading and from size, and which tree pays at which batch: laws fitted and put to the test.

Scaling laws for speculative decoding (Yan et al., 2025) as far as its abstract and notes tell: tokens a pass grow as a + b ln D
with the D tokens that a draft has read, and as a + b ln N with its N weights; at a larger batch a pass is bound by its
products, so that the tree that pays shrinks. The constants are fitted here. Scylla is the choice of D, N and tree by what they
predict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lithe.decode.heads import likeliest
from lithe.errors import UsageError

Rates = Sequence[Sequence[float]]


@dataclass(frozen=True)
class LogLaw:
    """tau = a + b ln x. r2: share of the points' variance it explains; missed: the largest relative error at a point that was
    left out of its own fit."""

    a: float
    b: float
    r2: float
    missed: float

    def at(self, x: float) -> float:
        return self.a + self.b * math.log(x)

    def reach(self, tau: float) -> float:
        """The x at which so many tokens a pass are expected. Raises UsageError for a law that does not grow."""
        if self.b <= 0:
            raise UsageError(f"a law of slope {self.b:.3g} never reaches {tau:.3g} tokens a pass")
        return math.exp((tau - self.a) / self.b)


def log_law(xs: Sequence[float], taus: Sequence[float]) -> LogLaw:
    """Least squares. Raises UsageError for fewer than three different x, of which nothing could be told."""
    if len(xs) != len(taus) or len(set(xs)) < 3 or min(xs) <= 0:
        raise UsageError(f"a law needs three different sizes above zero and a figure for each, not {list(xs)} and {list(taus)}")
    a, b = _line(xs, taus)
    away = np.array([tau - a - b * math.log(x) for x, tau in zip(xs, taus, strict=True)])
    spread = float(((np.array(taus) - np.mean(taus)) ** 2).sum())
    r2 = 1 - float((away**2).sum()) / spread if spread else 0.0
    return LogLaw(a, b, r2, max(abs(held_out(xs, taus, i)) for i in range(len(xs))))


def held_out(xs: Sequence[float], taus: Sequence[float], i: int) -> float:
    """Relative error of the i-th point as the law of the others foretells it."""
    a, b = _line([x for j, x in enumerate(xs) if j != i], [tau for j, tau in enumerate(taus) if j != i])
    return (a + b * math.log(xs[i])) / taus[i] - 1


def _line(xs: Sequence[float], taus: Sequence[float]) -> tuple[float, float]:
    b, a = np.polyfit(np.log(xs), taus, 1)
    return float(a), float(b)


def tokens_a_pass(rates: Rates, nodes: int) -> float:
    """Expected of the fixed tree of that many guesses, from how often the guess of each rank is right at each depth."""
    return 1 + sum(math.prod(rates[depth][rank] for depth, rank in enumerate(path)) for path in likeliest(rates, nodes))


@dataclass(frozen=True)
class Pick:
    """The tree that pays at a batch, and the tokens a second it promises. nodes 0: not to draft at all."""

    batch: int
    nodes: int
    speed: float


def pick(batch: int, tau: Callable[[int], float], verify: Callable[[float], float], rest: Callable[[int, int], float], *,
         sizes: Iterable[int]) -> Pick:
    """The best of these sizes by B tau(n) / (T(B (n + 1)) + rest(B, n)), plain decoding, of no guess, among them.

    verify: seconds of a pass of so many rows; rest: of all else in a round of so many texts and guesses: drafting, walking.
    """
    found = [Pick(batch, n, batch * tau(n) / (verify(batch * (n + 1)) + rest(batch, n))) for n in (0, *sizes)]
    return max(found, key=lambda one: one.speed)
