"""Where confidence stalls, try several values of the most uncertain place at once and keep the one that decides most."""

from dataclasses import dataclass, replace

import torch

from lithe.card import Card, knob
from lithe.diffuse.canvas import Guess, most
from lithe.diffuse.loop import settle

CARD = Card(paper="From Bits to Rounds: Parallel Decoding with Exploration for Diffusion Language Models, look-ahead form",
            row=38, promises=("one_step_is_plain",), needs=("no unmask",))
ONE = {"floor": 1.01, "stall": 0}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    floor: float = knob(0.9, "least probability of what is committed at once", low=0, high=2)
    stall: int = knob(2, "tokens passing below which values are tried; 0: never", low=0)
    values: int = knob(3, "values of the place that are tried, in one pass", low=1)
    gain: float = knob(0.5, "what a place that becomes sure is worth, in nats", low=0)


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs

    def advance(self, canvas, guess, block, kit):
        """Commit what passes; where that is little, the value too whose canvas is best. Returns that canvas's guess."""
        knobs, here = self.knobs, guess.within(*block)
        passing = here.sure_P >= knobs.floor
        chosen = passing | most(here.sure_P, 1)
        settle(kit, canvas, here.at(chosen), block)
        rest = here.at(~chosen)
        if int(passing.sum()) >= knobs.stall or not len(rest.places_P):
            return None
        asked = int(rest.entropy_P.argmax())
        place, tried = rest.places_P[asked], rest.law_PV[asked].topk(min(knobs.values, int((rest.law_PV[asked] > 0).sum())))
        query = kit.refresh.query(canvas, block)
        rows = query.variants_RT.repeat(len(tried.indices), 1)
        rows[:, torch.searchsorted(query.places_T, place)] = tried.indices
        found = yield replace(query, variants_RT=rows)
        worth = torch.stack([value.log() + knobs.gain * (f.within(*block).sure_P >= knobs.floor).sum()
                             for value, f in zip(tried.values, found, strict=True)])
        best = int(worth.argmax())
        settle(kit, canvas, Guess(place[None], rest.logits_PV[asked][None], tried.indices[best][None]), block)
        return found[best]
