"""Copy what most often followed the longest match, in this text or in what was generated before; long matches draft more.

Suffix decoding (Oliaro et al., 2024). Two indices of substrings with their counts: one of the request (prompt and
output), one of all finished outputs. For every suffix of the text that occurs there, the likeliest continuations grow into a
tree: at most alpha tokens for each token matched, none below a probability. The tree of the largest expected acceptance is
verified. No training; the index of outputs outlives the prompt.

The paper's suffix trees of depth 64 are suffix automata here: the same substrings and counts in two states a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lithe.card import Card, knob
from lithe.decode.budget import costs
from lithe.kernels import copying
from lithe.ops.suffix import Suffixes

CARD = Card(
    paper="SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications (Oliaro et al., 2024)",
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather"),
    emits=("det",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    depth: int = knob(64, "longest suffix to match", low=1, high=1024)
    alpha: float = knob(1.0, "tokens to draft for each token matched", low=0.0, high=16.0)
    offset: float = knob(0.0, "tokens to draft beyond that", low=0.0, high=64.0)
    nodes: int = knob(64, "most tokens to draft; 0: as many as pay, by the stored cost curve", low=0, high=1024)
    floor: float = knob(0.1, "least probability of a drafted path by the counts", low=0.0, high=1.0)
    tree: bool = knob(True, "draft branches; else the likeliest path alone")
    outputs: bool = knob(True, "look into finished outputs as well as into the text itself")
    limit: int = knob(1_000_000, "tokens of finished outputs kept; at the limit the index begins anew", low=1)


AUTO = 64  # most tokens to draft where what pays is looked for


class Method:
    learns_from_any_tree = True
    tensors = False

    def __init__(self, knobs: Knobs, model):
        self.settings: dict[str, Any] = dict(depth=knobs.depth, alpha=knobs.alpha, offset=knobs.offset, floor=knobs.floor,
                                             tree=knobs.tree, outputs=knobs.outputs, limit=knobs.limit,
                                             most=knobs.nodes or AUTO)
        self.knobs = knobs
        self.priced([] if knobs.nodes else costs(model, AUTO))

    def priced(self, costs: list[float]) -> None:
        """With empty indices, and what passes cost."""
        self.compiled = copying.suffixes(**self.settings, costs=costs)
        self.index = self.compiled or Suffixes(**self.settings, costs=costs)

    def start(self, sequences):
        self.index.forget()

    def propose(self, sequences, room):
        return [self.index.propose(s.number, s.ids, most) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        for r in rounds:
            self.after(r.sequence)

    def after(self, sequence) -> None:
        """What is left to do where C has learnt of a round: a finished output is kept."""
        if sequence.finished:
            self.index.forget(sequence.number)
            self.index.keep(sequence.tokens)
