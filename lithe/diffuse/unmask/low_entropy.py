"""Commit every place whose law has little entropy, the surest one always: how dParallel's tuned models decode."""

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.diffuse.canvas import most

CARD = Card(paper="dParallel: Learnable Parallel Decoding for dLLMs, entropy threshold", row=40,
            promises=("one_step_is_plain",))
ONE = {"most": -1}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    most: float = knob(0.45, "most entropy in nats; below 0 none passes", low=-1)


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs

    def select(self, canvas, guess, block):
        if self.knobs.most < 0:
            return most(guess.sure_P, 1)
        return (guess.entropy_P <= self.knobs.most) | most(-guess.entropy_P, 1)
