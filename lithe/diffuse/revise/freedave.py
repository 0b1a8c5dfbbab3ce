"""Draft the next steps from one pass and verify them in the next: what one token a step would give, in fewer passes."""

from dataclasses import dataclass, replace

import torch

from lithe.card import Card, knob
from lithe.diffuse.loop import settle

CARD = Card(paper="Free Draft-and-Verification: Toward Lossless Parallel Decoding for Diffusion Large Language Models", row=149,
            promises=("same_tokens", "one_step_is_plain"), needs=("no unmask",))
ONE = {"drafts": 1}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    drafts: int = knob(8, "nested drafts a pass: the first is the next step, each one more token", low=1)


class Method:
    def __init__(self, knobs, model):
        self.drafts = knobs.drafts

    def advance(self, canvas, guess, block, kit):
        """Commit the longest chain of drafts of which each is what the one before it leads to. Returns the last one's guess."""
        here = guess.within(*block)
        order = here.sure_P.argsort(descending=True, stable=True)
        count = min(self.drafts, len(order))
        if len(order) == 1:  # the last place of a block needs no verification
            settle(kit, canvas, here, block)
            return None
        query = kit.refresh.query(canvas, block)
        at = torch.searchsorted(query.places_T, here.places_P[order])
        rows = query.variants_RT.repeat(count, 1)
        for j in range(count):
            rows[j:, at[j]] = here.tokens_P[order[j]]
        found = yield replace(query, variants_RT=rows)
        best = 0
        while best + 1 < count and self._leads(found[best], here, order[best + 1], block):
            best += 1
        settle(kit, canvas, here.at(order[: best + 1]), block)
        return found[best]

    def _leads(self, guess, here, draft, block):
        """Whether the surest token of a verified draft is the one that the next draft adds."""
        then = guess.within(*block)
        top = int(then.sure_P.argmax())
        return bool(then.places_P[top] == here.places_P[draft]) and bool(then.tokens_P[top] == here.tokens_P[draft])
