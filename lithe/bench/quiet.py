"""Is the machine quiet? A foreign thread on one core stalls every pass that forks, so timings taken beside it mean little."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

SAMPLE_S = 0.25  # how long to look: long beside a scheduler slice (3 to 8 ms), short beside a benchmark
STALL_S = 1e-3  # a quiet join takes 0.02 to 0.1 ms
MOST_LOST = 0.05  # share of the time lost in stalls past which timings are disturbed
GRAIN = 32768  # elements that torch gives a thread of its own


@dataclass(frozen=True)
class Quiet:
    """Latency of forking a tiny operation over all threads and joining them, in microseconds."""

    mean_us: float
    max_us: float
    lost: float  # share of the time spent in stalls

    @property
    def disturbed(self) -> bool:
        return self.lost > MOST_LOST

    def __str__(self) -> str:
        return (f"a fork and join of {torch.get_num_threads()} threads takes {self.mean_us:.0f} us on average, "
                f"{self.max_us:.0f} us at worst, and {self.lost:.0%} of the time is lost in stalls")


def listen(seconds: float = SAMPLE_S) -> Quiet:
    """Fork and join over torch's threads for a while."""
    x = torch.zeros(GRAIN * torch.get_num_threads())
    for _ in range(20):  # wakes the pool
        x.add_(1)
    joins = []
    end = perf_counter() + seconds
    last = perf_counter()
    while last < end:
        x.add_(1)
        now = perf_counter()
        joins.append(now - last)
        last = now
    return judge(joins)


def judge(joins: list[float]) -> Quiet:
    """The verdict on measured joins, in seconds."""
    took = np.asarray(joins)
    return Quiet(float(took.mean() * 1e6), float(took.max() * 1e6), float(took[took > STALL_S].sum() / took.sum()))


def worse(a: Quiet, b: Quiet) -> Quiet:
    """The less quiet of two moments."""
    return max(a, b, key=lambda quiet: (quiet.lost, quiet.mean_us))
