"""Blocks that end where a semantic step does: at a delimiter that the model foretells with confidence."""

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.errors import UsageError

CARD = Card(paper="AdaBlock-dLLM: Semantic-Aware Diffusion LLM Inference via Adaptive Block Size", row=45)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    size: int = knob(16, "places of a block where no delimiter is foretold", low=1)
    floor: float = knob(0.3, "least probability of a delimiter that ends a block; above 1 none does", low=0, high=2)
    window: float = knob(0.25, "how far a block may reach, as a share of all places to fill", low=0, high=1)
    delimiters: str = knob("\\n", "texts of one token that end a step, separated by spaces")


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs
        words = knobs.delimiters.replace("\\n", "\n").split(" ")
        if model.tokenizer is None:
            self.ids = torch.zeros(0, dtype=torch.long)
            return
        coded = [model.tokenizer.encode(word, bos=False) for word in words]
        self.ids = torch.tensor([ids[-1] for ids in coded if ids])
        if not len(self.ids):
            raise UsageError(f"delimiters={knobs.delimiters!r} holds no text that this model's tokenizer knows")

    def next(self, canvas, ask):
        knobs, start = self.knobs, canvas.begun()
        limit = min(canvas.end, start + max(1, int(knobs.window * (canvas.end - canvas.prompt))))
        guess = (yield ask())[0].within(start, limit)
        fits_P = torch.isin(guess.tokens_P, self.ids) & (guess.sure_P >= knobs.floor)
        if fits_P.any():
            best = int(torch.where(fits_P, guess.sure_P, -1.0).argmax())
            return start, int(guess.places_P[best]) + 1
        return start, min(canvas.end, start + knobs.size)
