"""Keep keys and values of what lies before and behind the block, and recompute the block alone each step."""

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.diffuse.passes import Query

CARD = Card(paper="Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding",
            promises=("level_zero_is_identity",), needs=("full",))
ZERO = {"every": 1}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    every: int = knob(0, "steps after which all is computed anew; 0: at each block's beginning only", low=0)


class Method:
    def __init__(self, knobs, model):
        self.every, self.lead = knobs.every, model.config.shifted
        self.stored, self.steps = False, 0

    def query(self, canvas, block):
        self.steps += 1
        if not self.stored or block is None or (self.every and self.steps > self.every):
            self.stored, self.steps = True, 1
            return Query(torch.arange(canvas.end), canvas.ids_T[None], keep=True)
        start, end = max(0, block[0] - self.lead), min(block[1], canvas.end)
        keys = torch.cat((torch.arange(start), torch.arange(end, canvas.end)))
        return Query(torch.arange(start, end), canvas.ids_T[None, start:end], keys_K=keys)

    def enter(self, canvas, block):
        """A block begins: what was decided since is seen as it is now, unless a look has just stored it."""
        self.stored = self.stored and self.steps == 1
