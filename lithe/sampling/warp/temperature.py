"""Sharpen or flatten the law; 0 is greedy.

Logits are divided by the temperature (Ackley, Hinton and Sejnowski, 1985): below 1 likely tokens gain, above 1 unlikely
ones do. At 0 the logits are left as they are and the likeliest token is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.errors import UsageError

CARD = Card(paper="A Learning Algorithm for Boltzmann Machines")
MAIN = "temperature"
LEAST = 1e-6  # float32 logits divided by less could overflow


@dataclass(frozen=True, kw_only=True)
class Knobs:
    temperature: float = knob(1.0, "divides the logits; 0 always takes the likeliest token", low=0.0, high=100.0)


class Method:
    stage = 1
    reads_context = False

    def __init__(self, knobs: Knobs):
        if 0 < knobs.temperature < LEAST:
            raise UsageError(f"a temperature of {knobs.temperature} is too near 0: use 0 for greedy, or at least {LEAST}")
        self.temperature = knobs.temperature
        self.samples = knobs.temperature > 0

    def __call__(self, logits_NV, contexts):
        return logits_NV / self.temperature if self.samples else logits_NV
