"""Leave out some layers to draft, and find out while decoding which ones are missed least.

SWIFT (Xia et al., 2024). Halves of the middle layers (attention or FFN) are skipped; what is left drafts on the target's own
cache, which the verifying pass then overwrites. After each round one other set is tried on the last tokens, in one pass:
random ones, every 25th chosen by Bayesian optimisation; the better set is kept, until it agrees well enough or nothing better
comes. Drafting stops where the draft is unsure; the less sure it is, the more siblings a guess gets. No training.

A model of six layers misses each of them: SWIFT was made for forty and more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lithe.card import Card, knob
from lithe.decode import skips
from lithe.decode.inner import grow, shared
from lithe.ops.tree import Tree

CARD = Card(
    paper="SWIFT: On-the-Fly Self-Speculative Decoding for LLM Inference Acceleration",
    row=104,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "target_cache"),
    emits=("wor",),
)

WIDTHS = ((0.95, 3, 1), (0.8, 5, 3), (0.5, 8, 5), (0.0, 10, 10))  # above this confidence: children where greedy, where sampled


@dataclass(frozen=True, kw_only=True)
class Knobs:
    ratio: float = knob(0.45, "share of the middle layers' halves to skip", low=0.0, high=1.0)
    depth: int = knob(25, "most steps of a draft", low=1, high=256)
    floor: float = knob(0.8, "no further step where the likeliest token has less probability", low=0.0, high=1.0)
    siblings: int = knob(10, "most children of a node, the main one included; 1: a chain", low=1, high=64)
    window: int = knob(32, "last tokens on which a set is tried", low=1, high=1024)
    every: int = knob(25, "one proposal of so many is Bayesian; 1: all", low=1, high=10_000)
    stop: float = knob(0.93, "the search ends above this share of agreement", low=0.0, high=1.0)
    patience: int = knob(300, "it ends after so many proposals in vain", low=1, high=100_000)
    proposals: int = knob(1000, "and after so many in all; 0: no search, the first set stays", low=0, high=100_000)
    file: str = knob("", "JSON file to begin from, where it exists, and to keep the best set in once the search ends")


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.model, self.layers = knobs, model, model.config.layers
        known = bool(knobs.file) and Path(knobs.file).expanduser().exists()
        first = skips.read(knobs.file, self.layers) if known else skips.even(self.layers, knobs.ratio)
        self.search = skips.Search(first, self.layers, every=knobs.every, stop=knobs.stop, patience=knobs.patience,
                                   most=knobs.proposals)

    def join(self, lanes):
        self.lanes = lanes

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1], "wor") for s in sequences]
        wanted = [min(most, self.knobs.depth) for most in room]
        grow(shared(self.lanes), sequences, trees, wanted, [[s.ids[-1]] for s in sequences], vocab=self.model.config.vocab,
             width=self._width, floor=self.knobs.floor, skip=self.search.best)
        return trees

    def observe(self, rounds):
        """Try one set on the first text that is long enough."""
        for lane, r in enumerate(rounds):
            s = r.sequence
            if not s.finished and len(s.tokens) >= self.knobs.window and not self.search.done:
                skip = self.search.propose()
                self.search.tell(skip, skips.matchness(self.model, self.lanes.cache, lane, s.ids, skip, self.knobs.window))
                if self.search.done and self.knobs.file:
                    skips.write(self.knobs.file, self.layers, self.search.best, self.search.score)
                return

    def _width(self, sure: float, greedy: bool) -> int:
        """Children of a node by the confidence of the law they come from."""
        many = next(few if greedy else fewer for above, few, fewer in WIDTHS if sure > above or above == 0)
        return min(many, self.knobs.siblings)
