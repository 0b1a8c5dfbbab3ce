"""Commit what was foretold alike before: agreement of steps, or the entropy of their mean, ranks places."""

from collections import deque
from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.diffuse.canvas import most

CARD = Card(paper="Beyond Confidence: Adaptive and Coherent Decoding for Diffusion Language Models", row=14,
            promises=("one_step_is_plain",))
ONE = {"expand": 0, "by": "sure"}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    form: str = knob("dynamic", "dynamic and fixed: the released code's agreement of steps, committing all that agree or a "
                     "fixed number of them; average: the paper's formula", choices=("dynamic", "fixed", "average"))
    by: str = knob("entropy", "what ranks places in the agreeing forms: low entropy, or the token's probability",
                   choices=("entropy", "sure"))
    tokens: int = knob(1, "tokens a step at least", low=1)
    expand: int = knob(4, "how many times that many may be committed beyond", low=0)
    warm: int = knob(5, "plain steps at first", low=0)
    history: int = knob(3, "steps that the average form looks back", low=1)
    entropy: float = knob(0.3, "average form: most entropy of the mean law of a place that is committed beside the first, nats",
                          low=0)


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs
        self.step, self.width = 0, 1
        self.before = {}  # place -> the token foretold a step ago, of the next best places then
        self.laws: deque = deque(maxlen=knobs.history)

    def select(self, canvas, guess, block):
        self.step += 1
        return self._average(guess) if self.knobs.form == "average" else self._agreeing(canvas, guess)

    def _agreeing(self, canvas, guess):
        knobs = self.knobs
        score_P = guess.sure_P if knobs.by == "sure" else -guess.entropy_P
        ranked = score_P.argsort(descending=True, stable=True).tolist()
        places, tokens = guess.places_P.tolist(), guess.tokens_P.tolist()
        self.width = min(self.width + 1, knobs.tokens * (1 + knobs.expand)) if self.step > knobs.warm else knobs.tokens
        if len(canvas.open()) <= 0.1 * (canvas.end - canvas.prompt):
            self.width = 1
        first, wide = ranked[: knobs.tokens], ranked[: self.width]
        chosen = first
        if knobs.expand and self.step > knobs.warm and any(places[i] in self.before for i in first):
            agreeing = [i for i in wide if self.before.get(places[i]) == tokens[i]]
            if len(agreeing) >= knobs.tokens:
                chosen = agreeing if knobs.form == "dynamic" else agreeing[: knobs.tokens]
        taken = set(chosen)
        rest = [i for i in ranked if i not in taken][: self.width]
        self.before = {places[i]: tokens[i] for i in rest}
        return torch.tensor([i in taken for i in range(len(places))])

    def _average(self, guess):
        """H of the mean of the last laws: what keeps moving is as uncertain as what is spread."""
        knobs = self.knobs
        self.laws.append(dict(zip(guess.places_P.tolist(), guess.law_PV.double(), strict=True)))
        mean_PV = torch.stack([torch.stack([laws[place] for laws in self.laws if place in laws]).mean(0)
                               for place in guess.places_P.tolist()])
        entropy_P = torch.special.entr(mean_PV).sum(-1)
        width = knobs.tokens * (1 + knobs.expand)
        return most(-entropy_P, width) & ((entropy_P <= knobs.entropy) | most(-entropy_P, knobs.tokens))
