"""A block model verifies its own drafts: read with blocks of one place it goes from left to right, all places in one pass."""

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.diffuse.canvas import Guess
from lithe.diffuse.loop import commit, settle
from lithe.diffuse.passes import Query
from lithe.ops.accept import residual

CARD = Card(paper="S2D2: Fast Decoding for Diffusion LLMs via Training-Free Self-Speculation", row=49,
            needs=("blocks", "no refresh"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    route: str = knob("static", "when drafts are verified: where the tokens expected to be accepted pay for the pass "
                      "(static) or for the confident ones (dynamic), in long spans, or always",
                      choices=("static", "dynamic", "span", "always"))
    cost: float = knob(1.0, "what a verifying pass costs, in tokens", low=0)
    score: float = knob(0.0, "least score to verify at")
    span: int = knob(4, "route span: least places in a row", low=1)
    floor: float = knob(0.85, "route dynamic: what counts as confident; what is committed unverified is the unmask slot's word",
                        low=0, high=2)


class Method:
    def __init__(self, knobs, model):
        self.knobs, self.block = knobs, model.config.block

    def advance(self, canvas, guess, block, kit):
        """Verify the first run of open places, or commit what is confident."""
        here = guess.within(*block)
        span = here.at(self._run(here.places_P))
        if not self._pays(span, here):
            commit(kit, canvas, guess, block)
            return None
        filled_T = canvas.ids_T.clone()
        filled_T[here.places_P] = here.tokens_P
        found = (yield one_by_one(filled_T, canvas.mask, block, self.block))[0]
        settle(kit, canvas, self._accepted(canvas, span, found), block)
        return None

    def _run(self, places_P):
        """Numbers of the places that follow each other from the first."""
        return torch.arange(len(places_P))[places_P - places_P[0] == torch.arange(len(places_P))]

    def _pays(self, span, here):
        knobs = self.knobs
        if knobs.route in ("always", "span"):
            return knobs.route == "always" or len(span.places_P) >= knobs.span
        size = here.logits_PV.shape[1]
        keeps_P = torch.exp(-span.entropy_P / torch.tensor(float(size)).log())
        confident = int((here.sure_P > knobs.floor).sum()) if knobs.route == "dynamic" else 1
        return float(keeps_P.cumprod(0).sum()) - knobs.cost * confident >= knobs.score

    def _accepted(self, canvas, span, found):
        """Left to right: a draft stays with chance min(1, q / p), the first that does not is drawn anew and ends the round."""
        rows = (span.places_P - found.places_P[0]).tolist()
        tokens, kept = span.tokens_P.clone(), 0
        for i, row in enumerate(rows):
            kept = i + 1
            if canvas.sequence.law.greedy:
                best = int(found.logits_PV[row].argmax())
                stays, token = best == int(tokens[i]), best
            else:
                q_V, p_V = found.law_PV[row].double(), span.law_PV[i].double()
                stays = canvas.sequence.dice.toss(float(q_V[tokens[i]] / p_V[tokens[i]]))
                token = int(tokens[i]) if stays else canvas.sequence.dice.draw(residual(q_V, p_V))
            tokens[i] = token
            if not stays:
                break
        return Guess(span.places_P[:kept], span.logits_PV[:kept], tokens[:kept])


def one_by_one(filled_T, mask, block, size):
    """Every place of a block once filled and once masked: a masked one sees itself and all that lies before it, filled.

    Filled places see each other causally within the block, what lies before as the model was trained to, in blocks of `size`.
    """
    start, end = block[0] - block[0] % size, block[1]
    at = torch.cat((torch.arange(end), torch.arange(start, end)))
    filled, masked = at[:end], at[end:]
    sees = torch.zeros(len(at), len(at), dtype=torch.bool)
    sees[:end, :end] = filled[:, None] >= filled
    sees[:start, :start] = filled[:start, None] // size >= filled[:start] // size
    sees[end:, :end] = masked[:, None] > filled
    sees[end:, end:] = torch.eye(end - start, dtype=torch.bool)
    return Query(at, torch.cat((filled_T[:end], torch.full((end - start,), mask)))[None], mask=sees)
