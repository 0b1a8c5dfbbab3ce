"""The largest of many tensors' entries, exactly, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Score = Callable[[], Tensor]
DIGITS = ((20, 11), (10, 10), (0, 10))  # (first bit, bits) of the 31 bits that order floats from 0 up
LAST = 2**31 - 1


def largest(scores: Sequence[Score], count: int, *, smallest: bool = False) -> tuple[list[Tensor], float]:
    """Flat places, ascending, of the `count` largest entries over all tensors, and the least score among them.

    scores: give a tensor each, several times; entries are compared as float32, and negative ones never taken. Ties go to the
    first. Fewer places come back where there are fewer entries.
    """
    if count <= 0:
        return [torch.zeros(0, dtype=torch.int64) for _ in scores], 0.0 if smallest else float("inf")
    keys = lambda: (_keys(score(), smallest) for score in scores)
    least, missing = _bound(keys, count)
    found = []
    for key in keys():
        over, even = key > least, (key == least).nonzero().flatten()[:missing]
        missing -= len(even)
        over[even] = True
        found.append(over.nonzero().flatten())
    bits = torch.tensor(LAST - least if smallest else least, dtype=torch.int32)
    return found, bits.view(torch.float32).item()


def _keys(score: Tensor, smallest: bool) -> Tensor:
    """Whole numbers in the order of the scores: floats that are not negative are ordered as their bits."""
    bits = score.detach().flatten().float().view(torch.int32)
    return torch.where(bits >= 0, LAST - bits, bits) if smallest else bits


def _bound(keys: Callable[[], Iterable[Tensor]], count: int) -> tuple[int, int]:
    """The count-th largest key, and how many of that very key are among the count. (0, all) where there are fewer."""
    prefix, left = 0, count
    for low, bits in DIGITS:
        tally = torch.zeros(2**bits, dtype=torch.int64)
        for key in keys():
            mine = key[(key >> (low + bits)) == (prefix >> (low + bits))]
            tally += torch.bincount((mine >> low) & (2**bits - 1), minlength=2**bits).cpu()
        above = tally.flip(0).cumsum(0).flip(0)  # how many have this digit or a larger one
        if above[0] < left:
            return 0, left
        digit = int((above >= left).nonzero().max())
        left -= int(above[digit] - tally[digit])
        prefix |= digit << low
    return prefix, left
