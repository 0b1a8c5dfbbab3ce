"""Commit every token whose probability passes a threshold, the surest one always."""

from dataclasses import dataclass

from lithe.card import Card, knob

CARD = Card(paper="Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding",
            promises=("one_step_is_plain",))
ONE = {"floor": 1.01}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    floor: float = knob(0.9, "least probability; above 1 none passes", low=0, high=2)


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs

    def select(self, canvas, guess, block):
        return guess.sure_P >= self.knobs.floor
