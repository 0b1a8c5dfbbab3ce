"""Several drafts at once, each trusted as far as it has lately been right.

Ours. Every source proposes its tree; the trees are merged, and each node gets the chance, learnt online, that it is accepted
once its parent is: by who proposes it, how deep, at which rank, and how far that source dared to go. After every round the
text itself tells which nodes would have been right, verified or not, so nothing need be explored. Nodes go in by the chance
of their whole path, as many as give the most tokens for the time a pass of so many rows takes. A small model may be among
them, for what was never said before: it guesses its likeliest tokens, whatever the law.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lithe import registry
from lithe.card import Card, knob
from lithe.decode.budget import costs
from lithe.errors import UsageError
from lithe.kernels import blending
from lithe.kernels.draft import merger
from lithe.kernels.rounds import MOST

CARD = Card(paper="lithe's own", promises=("same_tokens", "same_law"), needs=("tree", "gather"), emits=("det",))
DEAR = 2.5  # no source is asked for more tokens than a pass of so many plain ones can verify


@dataclass(frozen=True, kw_only=True)
class Knobs:
    drafts: str = knob("", "sources as one+two(knob=value;knob=value); else all that need nothing and learn from any tree")
    nodes: int = knob(24, "most tokens to draft, and to take from any one source that can be told so", low=1, high=256)
    row: float = knob(0.0, "cost of a further row in plain passes; 0: by the stored cost curve, 0.05 without one", low=0.0)
    learn: bool = knob(True, "learn the chances; else they stay as first guessed")


@dataclass
class Source:
    """A draft, and how its name stands in what is learnt."""

    name: str
    draft: Any


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.costs = knobs, costs(model, knobs.nodes, knobs.row)
        most = max(1, sum(cost <= DEAR for cost in self.costs) - 1)
        self.proposed: dict[int, Any] = {}  # by sequence, from one proposal to what came of it
        self.take([Source(spec.entry.name, spec.entry.module.Method(spec.knobs, model)) for spec in _specs(knobs, most)])

    def take(self, sources: list[Source]) -> None:
        """Blend these, of which nothing is known yet."""
        self.sources, self.merger = sources, merger(self.costs)
        for source in sources:
            if hasattr(source.draft, "likeliest"):
                source.draft.likeliest = True
        self.tensors = any(getattr(source.draft, "tensors", True) for source in sources)
        self.compiled = blending.blend(self.merger, [(s.name, getattr(s.draft, "compiled", None)) for s in sources],
                                      self.knobs.learn)

    def start(self, sequences):
        if self.compiled is not None:
            self.compiled.forget()
        for source in self.sources:
            if hasattr(source.draft, "start"):
                source.draft.start(sequences)

    def propose(self, sequences, room):
        if self.compiled is not None and self.compiled.chain is None:
            return [self.compiled.propose(s.number, s.ids, most) for s, most in zip(sequences, room, strict=True)]
        if self.compiled is not None:
            for s in sequences:
                self.compiled.leave(s.number)
        names = [source.name for source in self.sources]
        found = [source.draft.propose(sequences, room) for source in self.sources]
        best = [self.merger.merge(s.ids[-1], zip(names, trees, strict=True), most)
                for s, trees, most in zip(sequences, zip(*found, strict=True), room, strict=True)]
        self.proposed = {s.number: union for s, (_, union) in zip(sequences, best, strict=True)}
        return [tree for tree, _ in best]

    def observe(self, rounds):
        if self.compiled is not None and self.compiled.chain is None:
            self._compiled(self.compiled, rounds)
            return
        for r in rounds:
            if self.knobs.learn:
                truth = [*[r.tree.tokens[node] for node in r.walk.path], r.walk.token]
                self.merger.learn(self.proposed[r.sequence.number], truth)
        for source in self.sources:
            source.draft.observe(rounds)

    def _compiled(self, compiled: blending.Blend, rounds) -> None:
        """The same, all that C can learn by one call a sequence."""
        for r in rounds:
            noted = compiled.learn(r.sequence.number, r.tree.tokens, r.walk.path, r.walk.token, r.told.scores)
            for source in self.sources:
                if not noted and hasattr(source.draft, "note"):
                    source.draft.note(r)  # wherever the scores lie
            self.after(r.sequence)

    def after(self, sequence) -> None:
        """What is left to do where C has learnt of a round."""
        if sequence.finished and self.compiled is not None:
            self.compiled.forget(sequence.number)
        for source in self.sources:
            source.draft.after(sequence)

    def calm(self) -> int:
        """How many rounds C may take before `after` changes what is drafted."""
        return min([source.draft.calm() for source in self.sources if hasattr(source.draft, "calm")], default=MOST)


def _specs(knobs: Knobs, most: int) -> list[registry.Spec]:
    """The sources asked for, each to draft `most` tokens where it can be told so. Raises UsageError for one that cannot."""
    if knobs.drafts:
        texts = [part.strip().replace("(", ":").replace(";", ",").removesuffix(")") for part in knobs.drafts.split("+")]
        specs = [registry.parse(text, "draft") for text in texts]
    else:
        specs = [registry.Spec(e, {}) for e in registry.entries("decode", "draft")
                 if set(e.card.needs) <= {"tree", "gather"} and _blends(e)]
    for spec in specs:
        if not _blends(spec.entry):
            raise UsageError(f"{spec.entry.name} cannot be blended: it is no draft of chosen trees that learns from any tree")
        if hasattr(spec.knobs, "nodes") and "nodes" not in spec.values:
            spec.values["nodes"] = most
    if not specs:
        raise UsageError("there is no draft here that can be blended: name some, as drafts=one+two")
    return specs


def _blends(entry: registry.Entry) -> bool:
    method = entry.module.Method
    return getattr(method, "learns_from_any_tree", False) and (entry.card.emits == ("det",) or hasattr(method, "likeliest"))
