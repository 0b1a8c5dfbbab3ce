"""Several drafts at once, each trusted as far as it has lately been right.

Ours. Every source proposes its tree; the trees are merged, and each node gets the chance, learnt online, that it is accepted
once its parent is: by who proposes it, how deep, at which rank, and how far that source dared to go. After every round the
text itself tells which nodes would have been right, verified or not, so nothing need be explored. Nodes go in by the chance
of their whole path, as many as give the most tokens for the time a pass of so many rows takes.

A source costs time of its own. After some rounds one whose time was worth more than the tokens that nobody else had sits out
a while, each time for longer; then it is tried again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from lithe import registry
from lithe.card import Card, knob
from lithe.decode.budget import costs
from lithe.errors import UsageError
from lithe.kernels.draft import merger

CARD = Card(paper="lithe's own", promises=("same_tokens", "same_law"), needs=("tree", "gather"), emits=("det",))
REVIEW = 32  # rounds after which a source is looked at, and that it sits out at first
DEAR = 2.5  # no source is asked for more tokens than a pass of so many plain ones can verify


@dataclass(frozen=True, kw_only=True)
class Knobs:
    drafts: str = knob("", "sources as one+two(knob=value;knob=value); else all that need nothing and learn from any tree")
    nodes: int = knob(24, "most tokens to draft, and to take from any one source that can be told so", low=1, high=256)
    row: float = knob(0.0, "cost of a further row in plain passes; 0: by the stored cost curve, 0.05 without one", low=0.0)
    learn: bool = knob(True, "learn the chances; else they stay as first guessed")
    rests: bool = knob(True, "leave a source out for a while whose own tokens do not pay for its time")


@dataclass
class Source:
    """A draft, how its name stands in what is learnt, and whether it pays."""

    name: str
    draft: Any
    effort: float = 0.0  # seconds it took since it was last looked at
    alone: int = 0  # tokens that would not have been accepted without it
    away: int = 0  # rounds that it still sits out
    spell: int = REVIEW  # rounds that it will sit out next time
    words: set[str] = field(default_factory=set)  # what its nodes are said to come from


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.costs = knobs, costs(model, knobs.nodes, knobs.row)
        most = max(1, sum(cost <= DEAR for cost in self.costs) - 1)
        self.sources = [Source(spec.entry.name, spec.entry.module.Method(spec.knobs, model)) for spec in _specs(knobs, most)]
        self.merger = merger(self.costs)
        self.tensors = any(getattr(source.draft, "tensors", True) for source in self.sources)
        self.proposed: dict[int, Any] = {}  # by sequence, from one proposal to what came of it
        self.rounds, self.tokens, self.seconds, self.since = 0, 0, 0.0, 0.0  # since sources were looked at

    def start(self, sequences):
        for source in self.sources:
            if hasattr(source.draft, "start"):
                source.draft.start(sequences)

    def propose(self, sequences, room):
        last = self.since = perf_counter()
        self.asked, found = [source for source in self.sources if not source.away], []
        for source in self.asked:
            found.append(trees := source.draft.propose(sequences, room))
            source.words |= {word for tree in trees for word in tree.sources.values()} or {source.name}
            source.effort, last = source.effort - last + (now := perf_counter()), now
        names = [source.name for source in self.asked]
        best = [self.merger.merge(s.ids[-1], zip(names, trees, strict=True), most)
                for s, trees, most in zip(sequences, zip(*found, strict=True), room, strict=True)]
        self.proposed = {s.number: union for s, (_, union) in zip(sequences, best, strict=True)}
        return [tree for tree, _ in best]

    def observe(self, rounds):
        for r in rounds:
            if self.knobs.learn:
                truth = [*[r.tree.tokens[node] for node in r.walk.path], r.walk.token]
                self.merger.learn(self.proposed[r.sequence.number], truth)
        ended, last = [r for r in rounds if r.sequence.finished], perf_counter()
        for source in self.sources:
            source.draft.observe(ended if source.away else rounds)  # who sits out hears no more than what is over
            source.effort, last = source.effort - last + (now := perf_counter()), now
        if self.knobs.rests and self.knobs.learn:
            self._count(rounds, last)

    def _count(self, rounds, now):
        """What each source alone was good for; after some rounds the one that is worth least sits out, if it does not pay."""
        self.rounds, self.seconds = self.rounds + 1, self.seconds + now - self.since
        for r in rounds:
            self.tokens += len(r.walk.path) + 1
            who = [set(r.tree.sources[node].split("+")) for node in r.walk.path if node in r.tree.sources]
            for source in self.asked:
                first = next((at for at, names in enumerate(who) if names <= source.words), len(who))
                source.alone += len(who) - first  # without it the walk would have ended there
        for source in self.sources:
            source.away = max(0, source.away - 1)
        if self.rounds == REVIEW:
            worth = {source.name: source.alone * self.seconds / self.tokens - source.effort for source in self.asked}
            poor = min(self.asked, key=lambda source: worth[source.name])
            if worth[poor.name] < 0 and len(self.asked) > 1:
                poor.away, poor.spell = poor.spell, 2 * poor.spell
            self.rounds, self.tokens, self.seconds = 0, 0, 0.0
            for source in self.sources:
                source.effort, source.alone = 0.0, 0


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
    return entry.card.emits == ("det",) and getattr(entry.module.Method, "learns_from_any_tree", False)
