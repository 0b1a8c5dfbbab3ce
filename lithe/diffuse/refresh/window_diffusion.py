"""Recompute a window of undecided places and what was decided lately; places far off are not even seen."""

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.diffuse.passes import Query

CARD = Card(paper="Window-Diffusion: Accelerating Diffusion Language Model Inference with Windowed Token Pruning and Caching",
            row=28, promises=("level_zero_is_identity",), needs=("full",))
ZERO = {"every": 1, "window": 1 << 20, "active": 1 << 20}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    active: int = knob(16, "undecided places that run and may be committed, from the left", low=1)
    window: int = knob(64, "undecided places that are seen", low=1)
    every: int = knob(32, "steps after which the whole canvas is computed anew", low=1)
    recent: bool = knob(True, "recompute what was decided since then as well")
    prompt: bool = knob(False, "recompute the prompt as well, which then sees what was decided")


class Method:
    def __init__(self, knobs, model):
        self.knobs, self.lead = knobs, model.config.shifted
        none = torch.zeros(0, dtype=torch.long)
        self.steps, self.seen, self.lately = 0, none, none  # nothing is seen before the first pass

    def query(self, canvas, block):
        if not len(self.seen) or self.steps == self.knobs.every or int(self.seen[-1]) >= canvas.end:
            return self._anew(canvas)
        self.steps += 1
        rows = self.active(canvas, block)
        if self.knobs.recent:
            rows = torch.cat((rows, self.lately)).sort().values
        if self.knobs.prompt:
            rows = torch.cat((torch.arange(canvas.prompt), rows))
        if self.lead:
            rows = torch.cat((rows, (rows - 1).clamp_min(0))).unique()
        keys = self.seen[~torch.isin(self.seen, rows)]
        return Query(rows, canvas.ids_T[None, rows], keys_K=keys, keep=True)

    def _anew(self, canvas):
        """The whole canvas, and which of its places the steps to come may see."""
        self.steps, self.lately = 1, torch.zeros(0, dtype=torch.long)
        far = canvas.open()[self.knobs.window :]
        every = torch.arange(canvas.end)
        self.seen = every[~torch.isin(every, far)]
        return Query(every, canvas.ids_T[None], keep=True)

    def active(self, canvas, block):
        """The places that may be committed."""
        return canvas.open()[: self.knobs.active]

    def after(self, canvas, places, block):
        self.lately = torch.cat((self.lately, places))
