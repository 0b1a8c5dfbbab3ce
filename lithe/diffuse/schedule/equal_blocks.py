"""Blocks of one size, from left to right."""

from dataclasses import dataclass

from lithe.card import Card, knob

CARD = Card(paper="Large Language Diffusion Models (LLaDA), semi-autoregressive sampling")


@dataclass(frozen=True, kw_only=True)
class Knobs:
    size: int = knob(32, "places of a block", low=1)


class Method:
    def __init__(self, knobs, model):
        self.size = knobs.size

    def next(self, canvas, ask):
        start = canvas.begun()
        first = start - (start - canvas.prompt) % self.size
        return first, min(canvas.end, first + self.size)
