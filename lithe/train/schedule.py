"""Learning-rate schedules: the share of the peak rate at a step."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up, then half a cosine down to `floor` (Loshchilov and Hutter 2017)."""

    steps: int
    warmup: int = 0
    floor: float = 0.1

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def ending(self, step: int) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Wsd:
    """Warm-up, stable, decay (Hu et al. 2024): flat until the decay, which falls linearly to zero.

    With decay_from None the run is open-ended; `end` begins the decay at any step, or replans one that is under way.
    """

    warmup: int = 0
    decay_from: int | None = None
    decay_steps: int = 0
    decay_share: float = 1.0  # the share of the peak rate that the decay begins at
    began: int | None = None  # where the first plan put the decay; None: at decay_from

    def __call__(self, step: int) -> float:
        if self.decay_from is not None and step >= self.decay_from:
            return self.decay_share * max(0.0, 1 - (step - self.decay_from) / self.decay_steps)
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0

    @property
    def steps(self) -> int | None:
        return None if self.decay_from is None else self.decay_from + self.decay_steps

    @property
    def first(self) -> int | None:
        """The first step of the ending, over all its plans."""
        return self.decay_from if self.began is None else self.began

    def ending(self, step: int) -> bool:
        return self.first is not None and step >= self.first

    def end(self, step: int, steps: int) -> Wsd:
        """The same schedule up to `step`, then down from its share there to zero within `steps` steps."""
        began = step if self.decay_from is None else self.first
        return dataclasses.replace(self, decay_from=step, decay_steps=max(1, steps), decay_share=self(step), began=began)


Schedule = Cosine | Wsd
