"""Blocks that halve from right to left, so that ascending steps decide each but the first in one step."""

from dataclasses import dataclass
from itertools import pairwise

from lithe.card import Card, knob

CARD = Card(paper="Taming Masked Diffusion Language Models via Consistency Trajectory Reinforcement Learning with Fewer "
                  "Decoding Step", row=133)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    blocks: int = knob(2, "how many, at most one a step; 1: the whole canvas", low=1)


class Method:
    def __init__(self, knobs, model):
        self.blocks = knobs.blocks

    def next(self, canvas, ask):
        start = canvas.begun()
        edges = [canvas.prompt, *(canvas.prompt + edge for edge in inner(canvas.end - canvas.prompt, self.blocks)), canvas.end]
        return next((low, high) for low, high in pairwise(edges) if start < high)


def inner(length: int, blocks: int) -> list[int]:
    """Where blocks meet: the last takes what the last of the steps 1, 2, 4, ... leaves over, the first the smallest steps."""
    steps = max((length - 1).bit_length(), 1)
    return [2**step - 1 for step in range(max(steps - blocks + 1, 1), steps)]
