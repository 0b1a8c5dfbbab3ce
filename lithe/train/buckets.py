"""Batches of examples of like length, so that little of a padded batch is padding (row 68: Żelasko et al. 2025).

Lengths may be pairs, as encoders and decoders have them: columns of lengths_ND, the first split into bins, each bin into
sub-bins by the second. Everything here is a function of lengths and a seed, so a resumed run meets the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lithe.errors import TooLargeError, UsageError

BINS, SUB_BINS = 30, 2  # the paper's


def effective(lengths: np.ndarray, quadratic: float | None = None) -> np.ndarray:
    """What a length costs: itself, and with `quadratic` = q its attention too, L + L**2 / q."""
    if quadratic is not None and quadratic <= 0:
        raise UsageError(f"the quadratic share of a length's cost must be positive, not {quadratic:g}")
    return lengths if quadratic is None else lengths + lengths.astype(float) ** 2 / quadratic


def split(lengths: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each length, 0..bins - 1: bins hold equal totals, and a longer length is never in a lower bin."""
    if bins < 1:
        raise UsageError(f"lengths cannot go into {bins} bins")
    order = np.argsort(lengths, kind="stable")
    total = np.cumsum(lengths[order].astype(float))
    place = np.minimum((total - lengths[order] / 2) / max(total[-1], 1e-300) * bins, bins - 1).astype(int)
    found = np.empty(len(lengths), int)
    found[order] = place
    return found


def assign(lengths_ND: np.ndarray, bins: int = BINS, sub_bins: int = SUB_BINS) -> np.ndarray:
    """The bucket of each example: `bins` by its first length, each split into `sub_bins` by its second, if it has one."""
    first = split(lengths_ND[:, 0], bins)
    if lengths_ND.shape[1] == 1:
        return first
    found = np.empty(len(first), int)
    for b in np.unique(first):
        here = np.flatnonzero(first == b)
        found[here] = b * sub_bins + split(lengths_ND[here, 1], sub_bins)
    return found


def batches(lengths_ND: np.ndarray, bucket: np.ndarray, budget: float, dice: np.random.Generator,
            cost: Callable[[np.ndarray], np.ndarray] = effective) -> list[np.ndarray]:
    """Every example once, in batches from one bucket each, shuffled within and across buckets.

    A batch grows while rows times the cost of its longest, over all columns, stays within `budget`; one example always fits.
    """
    made = []
    for b in np.unique(bucket):
        batch: list[int] = []
        longest = np.zeros(lengths_ND.shape[1], lengths_ND.dtype)
        for i in dice.permutation(np.flatnonzero(bucket == b)):
            grown = np.maximum(longest, lengths_ND[i])
            if batch and (len(batch) + 1) * cost(grown).sum() > budget:
                made.append(np.array(batch))
                batch, grown = [], lengths_ND[i]
            batch.append(int(i))
            longest = grown
        made.append(np.array(batch))
    return [made[i] for i in dice.permutation(len(made))]


def waste(lengths_ND: np.ndarray, groups: Iterable[Sequence[int] | np.ndarray]) -> float:
    """The share of padded batches that is padding: 1 - real / padded, over all columns."""
    real = padded = 0
    for group in groups:
        here = lengths_ND[np.asarray(group)]
        real += int(here.sum())
        padded += int(len(here) * here.max(0).sum())
    return 1 - real / padded


def most(fits: Callable[[int], bool], start: int = 32, gap: float = 0.05) -> int:
    """The most rows that fit: doubling, then halving the interval until it is below `gap` of what does not fit.

    fits: runs a step of that many rows, or counts its bytes. Raises TooLargeError where not even one row fits.
    """
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1 and (high - low) / high >= gap:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low == 0:
        raise TooLargeError("not even one row of this length fits: shorten the context, or turn on checkpointing")
    return low
