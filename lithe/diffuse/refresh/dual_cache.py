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
    prompt: bool = knob(False, "recompute the prompt each step as well, which then sees what the block holds by now")


class Method:
    def __init__(self, knobs, model):
        self.every, self.prompt, self.lead = knobs.every, knobs.prompt, model.config.shifted
        self.stored, self.looked, self.steps = False, False, 0

    def query(self, canvas, block):
        self.steps += 1
        if not self.stored or block is None or (self.every and self.steps > self.every):
            self.stored, self.looked, self.steps = True, block is None, 1
            return Query(torch.arange(canvas.end), canvas.ids_T[None], keep=True)
        start, end = max(0, block[0] - self.lead), min(block[1], canvas.end)
        before = min(canvas.prompt, start) if self.prompt else 0
        rows = torch.cat((torch.arange(before), torch.arange(start, end)))
        keys = torch.cat((torch.arange(before, start), torch.arange(end, canvas.end)))
        return Query(rows, canvas.ids_T[None, rows], keys_K=keys)

    def enter(self, canvas, block):
        """A block begins: what was decided since is seen as it is now, unless a look has just stored it."""
        self.stored, self.looked = self.looked, False
