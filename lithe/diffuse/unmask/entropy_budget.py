"""Commit the most certain tokens while their entropies, the largest left out, fit into a budget."""

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.diffuse.canvas import most

CARD = Card(paper="Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking",
            promises=("one_step_is_plain",))
ONE = {"budget": 0}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    budget: float = knob(0.1, "bound on the sum of entropies less the largest, in nats; 0 commits one token", low=0)


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs

    def select(self, canvas, guess, block):
        if not self.knobs.budget:
            return most(guess.sure_P, 1)
        rising_P = guess.entropy_P.sort().values
        fits_P = rising_P.cumsum(0) - rising_P <= self.knobs.budget  # rising, so the last one is the largest
        return most(-guess.entropy_P, int(fits_P.nonzero()[-1]) + 1)
