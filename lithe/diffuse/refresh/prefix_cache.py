"""Keep keys and values of what lies before the block, and recompute the block and all behind it each step."""

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.diffuse.passes import Query

CARD = Card(paper="Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding",
            promises=("level_zero_is_identity",))
ZERO = {"every": 1}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    every: int = knob(0, "steps after which all is computed anew; 0: at each block's beginning only. What a model trained on "
                      "blocks keeps is exact", low=0)


class Method:
    def __init__(self, knobs, model):
        self.every, self.exact, self.size = knobs.every, model.config.attends == "blocks", model.config.block
        self.lead = model.config.shifted  # a row's logits stand one place before it
        self.held, self.steps = 0, 0  # places whose keys and values are stored; passes since they were
        self.looked = False  # they were before the block was chosen

    def query(self, canvas, block):
        if self.exact:
            return self._blockwise(canvas, block)
        start = (block[0] if block else canvas.begun()) - self.lead
        self.steps += 1
        if start < 1 or not self.held or start > self.held or (self.every and self.steps > self.every) or block is None:
            self.held, self.looked, self.steps = canvas.end, block is None, 1
            return Query(torch.arange(canvas.end), canvas.ids_T[None], keep=True)
        return Query(torch.arange(start, canvas.end), canvas.ids_T[None, start:], keys_K=torch.arange(start))

    def enter(self, canvas, block):
        """A block begins: what was decided since is seen as it is now, unless a look has just stored it."""
        if not self.exact and not self.looked:
            self.held = 0
        self.looked = False

    def _blockwise(self, canvas, block):
        """What is full never changes, so its last pass is the one beside the next block's first."""
        start, end = block or (canvas.begun(), canvas.end)
        start -= start % self.size  # the model's own blocks are what ends, whatever the schedule's are
        first, keys = min(self.held, start), torch.arange(min(self.held, start))
        self.held = start
        return Query(torch.arange(first, end), canvas.ids_T[None, first:end], keys_K=keys, keep=first < start)
