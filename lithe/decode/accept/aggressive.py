"""Accept what is nearly the model's first choice: among its best few and not much worse. Changes the output.

Relaxed verification of aggressive decoding (Ge et al., 2022; Xia et al., 2023). A drafted token is kept if it is among the
`beta` likeliest and its log-probability at most `tau` below the likeliest's; at the first that is not, the likeliest is
emitted. The output is then no longer that of greedy decoding, though each token is one the model finds good. `beta=1` is
exact.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops import accept

CARD = Card(
    paper="Lossless Acceleration for Seq2seq Generation with Aggressive Decoding",
    row=55,
    takes=("det", "chain", "iid", "wor"),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    beta: int = knob(3, "a drafted token must be among so many likeliest", low=1, high=1000)
    tau: float = knob(1.0, "and at most so far below the likeliest, in nats", low=0.0, high=100.0)


class Method:
    greedy = True

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def walk(self, tree, scores_NV, dice):
        return accept.relaxed(tree, scores_NV, beta=self.knobs.beta, tau=self.knobs.tau)
