"""How large a rate and a batch should be, from the sizes of model and data (row 94, Step Law: Li et al. 2025).

    peak rate = 1.79 N^-0.713 D^0.307        tokens of a step = 0.58 D^0.571

N: weights but the embeddings; D: tokens of the whole run. Fitted on thousands of pre-trainings from scratch with AdamW, a
cosine down to a small rate and 2000 steps of warm-up; near the optimum the loss is flat, so a factor of 1.5 either way costs
little. It says nothing of adapters, and of a model that is trained further only how large a step should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from lithe.errors import UsageError

PLATEAU = 1.5  # within this factor of the optimum the loss is flat
GENTLE = 0.1  # of the law's rate, for a model that has been trained: ours, since the law says nothing of it
FINAL_RATE = 1e-5  # where the paper's cosine ends


@dataclass(frozen=True)
class Advice:
    """A peak rate and the tokens of a step, with the range of each in which little is lost."""

    rate: float
    tokens: float

    @property
    def rates(self) -> tuple[float, float]:
        return self.rate / PLATEAU, self.rate * PLATEAU

    def batch(self, length: int) -> int:
        """Tokens of a step, rounded to whole rows of so many tokens."""
        return max(1, round(self.tokens / length)) * length


def step_law(weights: float, tokens: float) -> Advice:
    """The law's rate and batch. Raises UsageError unless both sizes are positive."""
    if not (weights > 0 and tokens > 0 and math.isfinite(weights) and math.isfinite(tokens)):
        raise UsageError(f"the Step Law needs positive sizes, not {weights:g} weights and {tokens:g} tokens")
    return Advice(1.79 * weights**-0.713 * tokens**0.307, 0.58 * tokens**0.571)


def tokens_of(steps: int) -> int:
    """The tokens of a run of so many steps, each of the size that the law gives such a run."""
    return math.ceil((0.58 * steps) ** (1 / (1 - 0.571)))


def weights_of(model: nn.Module) -> int:
    """The weights that the law counts: all but the embeddings and the output matrix."""
    return sum(w.numel() for name, w in model.named_parameters() if not name.startswith(("embed", "lm_head")))


def calibrate(loss: Callable[[float, float], float], advice: Advice, factor: float = 2.0) -> Advice:
    """The law's advice corrected by nine short probes: loss(rate, tokens of a step), on a grid of that factor around it.

    A quadratic in the logarithms is fitted to them, and its minimum taken, within the grid. Ours, not the paper's.
    """
    span = (-1.0, 0.0, 1.0)
    grid = np.array([(x, y) for x in span for y in span])
    found = np.array([loss(advice.rate * factor**x, advice.tokens * factor**y) for x, y in grid])
    if not np.isfinite(found).all():
        raise UsageError("a probe's loss is no number: begin from a lower rate")
    x, y = grid.T
    a, b, c, d, e, _ = np.linalg.lstsq(np.stack([x * x, x * y, y * y, x, y, np.ones(9)], 1), found, rcond=None)[0]
    best = grid[found.argmin()]
    bowl = np.array([[2 * a, b], [b, 2 * c]])
    if np.linalg.eigvalsh(bowl).min() > 0:
        best = np.linalg.solve(bowl, [-d, -e]).clip(-1, 1)
    return Advice(advice.rate * factor ** float(best[0]), advice.tokens * factor ** float(best[1]))
