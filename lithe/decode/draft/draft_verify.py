"""Leave out a fixed set of layers to draft, and stop where the draft is less sure than experience says it should be.

Draft & Verify (Zhang et al., 2024). The skipped halves of the middle layers are chosen once: every odd layer, or a set from a
file. Drafting stops below a threshold of confidence that moves with what is accepted: up while fewer than nine of ten tokens
are, else down. The control of methods that choose their layers while decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.decode import skips
from lithe.decode.inner import grow, shared
from lithe.ops.tree import Tree

CARD = Card(
    paper="Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative Decoding (Zhang et al., 2024)",
    promises=("same_tokens", "same_law"),
    needs=("target_cache",),
    emits=("chain",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    ratio: float = knob(0.45, "share of the middle layers' halves to skip", low=0.0, high=1.0)
    file: str = knob("", "a JSON file with the set to skip instead")
    tokens: int = knob(12, "most tokens to draft", low=1, high=256)
    threshold: float = knob(0.6, "confidence below which drafting stops, at first", low=0.0, high=1.0)
    adaptive: bool = knob(True, "move the threshold with what is accepted")
    target: float = knob(0.9, "share of drafted tokens that should be accepted", low=0.0, high=1.0)
    step: float = knob(0.01, "how far the threshold is pulled each round", low=0.0, high=1.0)
    memory: float = knob(0.5, "weight of earlier rounds in the share accepted", low=0.0, high=1.0)
    inertia: float = knob(0.9, "weight of the old threshold in the new one", low=0.0, high=1.0)


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.model, layers = knobs, model, model.config.layers
        self.skip = skips.read(knobs.file, layers) if knobs.file else skips.even(layers, knobs.ratio)
        self.floor, self.accepted = knobs.threshold, knobs.target

    def join(self, lanes):
        self.lanes = lanes

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1], "chain") for s in sequences]
        wanted = [min(most, self.knobs.tokens) for most in room]
        grow(shared(self.lanes), sequences, trees, wanted, [[s.ids[-1]] for s in sequences], vocab=self.model.config.vocab,
             floor=self.floor, skip=self.skip)
        return trees

    def observe(self, rounds):
        drafted = [r for r in rounds if len(r.tree) > 1]
        if self.knobs.adaptive:
            for r in drafted:
                self._learn(len(r.walk.path) / (len(r.tree) - 1), len(r.tree) > self.knobs.tokens)

    def _learn(self, share: float, full: bool) -> None:
        """Move the threshold; a draft as long as it may be gives no reason to lower it."""
        memory, inertia = self.knobs.memory, self.knobs.inertia
        self.accepted = memory * self.accepted + (1 - memory) * share
        wished = self.floor
        if self.accepted < self.knobs.target:
            wished += self.knobs.step
        elif not full:
            wished -= self.knobs.step
        self.floor = min(max(inertia * self.floor + (1 - inertia) * wished, 0.0), 1.0)
