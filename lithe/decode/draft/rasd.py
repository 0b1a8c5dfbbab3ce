"""One tree of what a draft model thinks likely and what was looked up, the lookups pruned by the draft model's law.

Retrieval-Augmented Speculative Decoding (Quan et al., 2025), as we read its abstract. The draft model makes the tree of its
likeliest paths (as EAGLE-2 does); the text so far, and a corpus where one is named, give continuations of its longest ending
that occurs there. A continuation enters if the draft model holds its first token likely; it is scored by the draft's law as far
as the model's tree reaches and by its share of the occurrences below. Both are merged where they agree, and the best nodes of
one ranking are verified. Long lookups cost the draft model no passes. The scores, and the limits, are ours.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from lithe.card import Card, knob
from lithe.decode.grams import Grams
from lithe.decode.second import Second
from lithe.decode.store import LONGEST, Store
from lithe.ops.tree import Tree

CARD = Card(
    paper="RASD: Retrieval-Augmented Speculative Decoding",
    row=176,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "second_model"),
    emits=("det",),
)
Path = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Knobs:
    model: str = knob("zoo:tiny-draft", "the model that drafts: a folder or zoo:name, with the target's tokenizer")
    levels: int = knob(4, "levels of the model's tree, a pass of the draft model each; 0: lookups only", low=0, high=16)
    width: int = knob(4, "paths each level goes on from, and guesses of each", low=1, high=64)
    nodes: int = knob(30, "most tokens to draft", low=1, high=1024)
    ngram: int = knob(3, "longest ending looked up in the text so far; shorter ones after it; 0: none", low=0, high=LONGEST)
    corpus: str = knob("", "a text, .jsonl or .npy file to look endings of 16 to 2 tokens up in, too")
    matches: int = knob(16, "most occurrences of an ending that are looked at, the last ones", low=1, high=1024)
    tokens: int = knob(10, "tokens of a continuation", low=1, high=64)
    top: int = knob(10, "a looked-up token enters if it is among so many that the draft holds likeliest; 0: any", low=0)


@dataclass
class Guess:
    """Paths below the root with their scores; what the draft model said after some of them; where each came from."""

    scores: dict[Path, float] = field(default_factory=dict)
    laws: dict[Path, Tensor] = field(default_factory=dict)
    sources: dict[Path, str] = field(default_factory=dict)

    def offer(self, path: Path, score: float, source: str) -> None:
        """Add a path, or tell that a second source has it: it keeps the better score."""
        if path in self.scores:
            self.scores[path] = max(score, self.scores[path])
            if source not in self.sources[path]:
                self.sources[path] += f"+{source}"
        else:
            self.scores[path], self.sources[path] = score, source


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.second = knobs, Second(knobs.model, model)
        self.store = Store(knobs.corpus, model.tokenizer) if knobs.corpus else None
        self.grams = Grams(knobs.ngram)
        self.observe = self.grams.observe

    def start(self, sequences):
        self.grams.clear()

    def propose(self, sequences, room):
        guesses = self._think(sequences, room)
        for s, guess, most in zip(sequences, guesses, room, strict=True):
            self._look_up(guess, Counter(tuple(path[:most]) for path in self._found(s)))
        return [self._tree(s, guess) for s, guess in zip(sequences, guesses, strict=True)]

    def _think(self, sequences, room) -> list[Guess]:
        """The draft model's likeliest paths, level by level; all trees share a pass of it."""
        guesses, trees = [Guess() for _ in sequences], [Tree.root(s.ids[-1]) for s in sequences]
        depths = [min(self.knobs.levels, most, self.second.reach(s)) for s, most in zip(sequences, room, strict=True)]
        nodes: list[dict[Path, int]] = [{(): 0} for _ in sequences]
        front: list[list[Path]] = [[()] if depth > 0 else [] for depth in depths]
        while any(front):
            wanted = [[own[path] for path in paths] for own, paths in zip(nodes, front, strict=True)]
            for b, laws in enumerate(self.second.laws(sequences, trees, wanted)):
                fresh = list(self._spread(guesses[b], front[b], laws))
                likeliest = heapq.nlargest(self.knobs.width, fresh, key=guesses[b].scores.__getitem__)
                front[b] = likeliest if likeliest and len(likeliest[0]) < depths[b] else []
                for path in front[b]:
                    nodes[b][path] = trees[b].add(path[-1], nodes[b][path[:-1]])
        return guesses

    def _spread(self, guess: Guess, paths: list[Path], laws: list[Tensor]) -> Iterator[Path]:
        for path, law_V in zip(paths, laws, strict=True):
            guess.laws[path] = law_V = law_V.detach()
            chances, tokens = law_V.topk(min(self.knobs.width, len(law_V)))
            for chance, token in zip(chances.tolist(), tokens.tolist(), strict=True):
                guess.offer((*path, token), guess.scores.get(path, 1.0) * min(chance, 1.0), "model")
                yield (*path, token)

    def _look_up(self, guess: Guess, found: Counter[Path]) -> None:
        """Let looked-up paths in, and score each by the draft's law where that is known, else by its share of occurrences."""
        below: Counter[Path] = Counter()
        for path, times in found.items():
            for depth in range(len(path) + 1):
                below[path[:depth]] += times
        scores: dict[Path, float] = {(): 1.0}
        for path in sorted(below, key=len)[1:]:
            parent, token = path[:-1], path[-1]
            if parent not in scores:  # what leads here was kept out
                continue
            law_V = guess.laws.get(parent)
            if law_V is None:
                scores[path] = scores[parent] * (below[path] / below[parent])  # never more than the parent has
            elif self._allows(law_V, token):
                scores[path] = scores[parent] * min(float(law_V[token]), 1.0)  # softmax may round past one
            if path in scores:
                guess.offer(path, scores[path], "lookup")

    def _allows(self, law_V: Tensor, token: int) -> bool:
        return not self.knobs.top or int((law_V > law_V[token]).sum()) < self.knobs.top

    def _found(self, sequence) -> Iterator[list[int]]:
        """What followed the longest ending, in the text so far and in the corpus."""
        ids, tokens = sequence.ids, self.knobs.tokens
        yield from (ids[at : at + tokens] for at in self.grams.places(sequence)[-self.knobs.matches :])
        if self.store and (found := self.store.longest(ids, 2, LONGEST)):
            places, n = found
            yield from (self.store.ids[at + n : at + n + tokens].tolist() for at in places[-self.knobs.matches :].tolist())

    def _tree(self, sequence, guess: Guess) -> Tree:
        """The best nodes of one ranking. A path scores at most what its beginning does, so parents come first."""
        tree = Tree.root(sequence.ids[-1])
        place: dict[Path, int] = {(): 0}
        for path in best(guess.scores, self.knobs.nodes):
            place[path] = tree.add(path[-1], place[path[:-1]], guess.sources[path])
        return tree


def best(scores: dict[Path, float], count: int) -> Iterable[Path]:
    """The highest scores, shorter paths first among equals."""
    return sorted(scores, key=lambda path: (-scores[path], len(path)))[:count]
