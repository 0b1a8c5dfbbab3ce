"""Ratios with intervals, and texts that loop. Axes: D bootstrap draws, P prompts (or groups of them), R repeats."""

from __future__ import annotations

from collections.abc import Callable, Sequence as Seq

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GRAM = 4
LOOPS_ABOVE = 0.2  # share of repeated 4-grams past which a text counts as looping
DRAWS = 2000
TAILS = (0.025, 0.975)
CELLS = 2**18  # numbers drawn at a time


def repetition(tokens: Seq[int], n: int = GRAM) -> float:
    """Share of the n-grams of a text that already stood earlier in it; 0 for a text shorter than n.

    >>> repetition([1, 2, 3, 4, 1, 2, 3, 4])
    0.2
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


def loops(tokens: Seq[int]) -> bool:
    """Whether more than a fifth of a text's 4-grams are repeats.

    >>> loops([7] * 20), loops(range(20))
    (True, False)
    """
    return repetition(tokens) > LOOPS_ABOVE


def rate(seconds_PR: Floats, tokens_PR: Floats) -> Floats:
    """Tokens per second over all prompts, leading axes kept. A prompt costs the median of its repeats, so one stall is none.

    >>> float(rate(np.array([[1.0, 9.0, 1.0], [2.0, 2.0, 2.0]]), np.full((2, 3), 6.0)))
    4.0
    """
    tokens_P = tokens_PR.mean(-1)
    cost_P = np.median(seconds_PR / tokens_PR, axis=-1)
    return tokens_P.sum(-1) / (cost_P * tokens_P).sum(-1)


def interval(statistic: Callable[..., Floats], *columns_PR: Floats, seed: int = 0,
             draws: int = DRAWS) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of a statistic of columns [P, R]. None where there is nothing to draw from."""
    if columns_PR[0].size < 2:  # one prompt, one repeat
        return None
    low, high = np.quantile(draw(statistic, *columns_PR, seed=seed, draws=draws), TAILS)
    return float(low), float(high)


def draw(statistic: Callable[..., Floats], *columns_PR: Floats, seed: int = 0, draws: int = DRAWS) -> Floats:
    """Bootstrap draws [D] of a statistic, paired: prompts are drawn with replacement, then repeats in each."""
    P, R = columns_PR[0].shape
    dice = np.random.default_rng(seed)
    found, some = [], max(1, CELLS // (P * R))
    for start in range(0, draws, some):
        D = min(some, draws - start)
        rows_DPR, repeats_DPR = dice.integers(P, size=(D, P, 1)), dice.integers(R, size=(D, P, R))
        # One draw serves all columns: what was run side by side is compared side by side.
        found.append(statistic(*(column[rows_DPR, repeats_DPR] for column in columns_PR)))
    return np.concatenate(found)


def ratio(seconds_PR: Floats, tokens_PR: Floats, plain_seconds_PR: Floats, plain_tokens_PR: Floats) -> Floats:
    """How many times faster than plain decoding: plain's seconds per token over the method's."""
    return rate(seconds_PR, tokens_PR) / rate(plain_seconds_PR, plain_tokens_PR)
