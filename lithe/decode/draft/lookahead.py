"""Guess ahead at many places at once, and keep the n-grams that come out as guesses for later.

Lookahead decoding (Fu et al., 2024). A two-dimensional window rides behind the root: `window` columns, one
a place of the text to come, each holding that place's guess and the ngram - 2 tokens the model put after it in the last passes.
Every pass extends every column by the model's own next token, which completes one n-gram a column for the pool; then the
oldest row falls out. The pool's n-grams that begin with the root's token are verified in the same pass. No training.

The paper masks its window rows and drops them. Here they are nodes of the tree like others: a verified guess is a guess.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from random import Random

from lithe.card import Card, knob
from lithe.ops.tree import Tree

CARD = Card(
    paper="Break the Sequential Dependency of LLM Inference Using Lookahead Decoding (Fu et al., 2024)",
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather"),
    emits=("det",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    ngram: int = knob(5, "tokens of an n-gram, its first included (the paper's N)", low=3, high=16)
    window: int = knob(7, "places guessed at once (W)", low=1, high=64)
    guesses: int = knob(7, "n-grams kept and verified for each first token (G)", low=1, high=64)
    prompt: bool = knob(False, "fill the pool with the n-grams of the text as well")
    hot: bool = knob(False, "keep the pool from one prompt to the next")


@dataclass
class Window:
    """levels[0]: guesses of columns 1, 2, ... (column 0's is the root); levels[l]: what follows l places on, from column 0."""

    levels: list[list[int]]
    tree: Tree | None = None  # the tree it was last put into, and the nodes of its newest level there
    newest: list[int] = field(default_factory=list)
    read: int = 0  # how much of the text went into the pool


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs = knobs
        self.pool: dict[int, dict[tuple[int, ...], None]] = defaultdict(dict)  # by first token: what followed, oldest first
        self.windows: dict[int, Window] = {}

    def start(self, sequences):
        self.windows.clear()
        if not self.knobs.hot:
            self.pool.clear()

    def propose(self, sequences, room):
        return [self._tree(s, most) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        for r in rounds:
            window, root = self.windows[r.sequence.number], r.tree.tokens[0]
            if window.tree is r.tree:  # not where it was left out or cut
                self._turn(window, root, r.logits_NV[window.newest].argmax(-1).tolist())
            if self.knobs.prompt:
                window.read = self._read(r.sequence.ids, window.read)
            if r.sequence.finished:
                del self.windows[r.sequence.number]

    def _tree(self, sequence, most: int) -> Tree:
        tree = Tree.root(sequence.ids[-1])
        for rest in reversed(self.pool.get(sequence.ids[-1], {})):  # the newest first
            tree.grow(rest[:most], source="pool")
        window = self.windows.get(sequence.number) or self._begin(sequence)
        window.tree = None
        if len(window.levels[0]) + len(window.levels) - 1 <= most:  # what is too near the end to be of use is not guessed
            window.tree, window.newest = tree, self._place(window.levels, tree)
        return tree

    def _begin(self, sequence) -> Window:
        """Random tokens of the text, enough for the window to lose one each pass until its levels are full."""
        dice = Random(0)
        window = Window([[dice.choice(sequence.ids) for _ in range(self.knobs.window + self.knobs.ngram - 3)]])
        if self.knobs.prompt:
            window.read = self._read(sequence.ids, 0)
        self.windows[sequence.number] = window
        return window

    def _place(self, levels: list[list[int]], tree: Tree) -> list[int]:
        """Put the window into the tree: the first guesses are a chain, each column hangs on its own. Returns the last level."""
        nodes = [0]
        for token in levels[0]:
            nodes.append(tree.grow([token], nodes[-1], "window"))
        if len(levels) == 1:
            return nodes[1:]
        for level in levels[1:]:
            nodes = [tree.grow([token], node, "window") for token, node in zip(level, nodes, strict=True)]
        return nodes

    def _turn(self, window: Window, root: int, found: list[int]) -> None:
        """Extend every column by its newest token and move the window one place on."""
        levels = window.levels
        if len(levels) < self.knobs.ngram - 1:  # still filling: a column is lost instead of a level
            window.levels = [level[1:] for level in levels] + [found[1:] if len(levels) > 1 else found]
            return
        for first, rest in zip([root, *levels[0]], zip(*levels[1:], found, strict=True), strict=True):
            self._keep(first, rest)
        window.levels = [levels[1][1:], *levels[2:], found]

    def _keep(self, first: int, rest: tuple[int, ...]) -> None:
        kept = self.pool[first]
        kept.pop(rest, None)
        kept[rest] = None
        if len(kept) > self.knobs.guesses:
            del kept[next(iter(kept))]

    def _read(self, ids: list[int], read: int) -> int:
        """Put every n-gram of the text that was not complete before into the pool."""
        for start in range(max(read - self.knobs.ngram + 1, 0), len(ids) - self.knobs.ngram + 1):
            self._keep(ids[start], tuple(ids[start + 1 : start + self.knobs.ngram]))
        return len(ids)
