"""Commit exactly what is already as one token a step will leave it: the most that any policy can save, not a way to decode."""

from dataclasses import dataclass

from lithe.card import Card
from lithe.diffuse.oracle import Foreseen, foreseen

CARD = Card(paper="Learning to Parallel: Accelerating Diffusion Large Language Models via Adaptive Parallel Decoding "
                  "(extremely greedy parallel decoding)", row=2)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    pass


class Method:
    def __init__(self, knobs, model):
        self.model, self.seer = model, None

    def select(self, canvas, guess, block):
        if self.seer is None:
            self.seer = Foreseen(foreseen(self.model, [canvas.sequence])[0])
        return self.seer.select(canvas, guess, block)
