"""Accept whatever the model finds plausible, not only what it would have said. Changes the output.

Typical acceptance (Medusa, Cai et al., 2024, section 2.3.1): a drafted token passes where the model gives it more than
min(epsilon, delta exp(-H)), H being the entropy of the model's law there; the longest path of such tokens is kept. The token
after it is the likeliest one, as in the paper, or drawn from the model's law. It is not lossless: the draft's taste decides
among what is plausible. For sampled sequences only.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops import accept
from lithe.ops.tree import Walk

CARD = Card(
    paper="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
    takes=("det", "chain", "iid", "wor"),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    epsilon: float = knob(0.09, "a token with more than this always passes", low=0.0, high=1.0)
    delta: float = knob(0.3, "a token passes with more than this times exp(-entropy)", low=0.0, high=1.0)
    after: str = knob("likeliest", "the token after the path: the likeliest, or drawn", choices=("likeliest", "drawn"))


class Method:
    greedy = False

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def walk(self, tree, scores_NV, dice):
        path = accept.typical(tree, scores_NV, floor=self.knobs.epsilon, share=self.knobs.delta)
        p_V = accept.law(scores_NV[path[-1] if path else 0])
        token = int(p_V.argmax()) if self.knobs.after == "likeliest" else accept.chance_of(dice).draw(p_V)
        return Walk(tuple(path), token)
