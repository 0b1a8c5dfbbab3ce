"""A small model drafts, the large one verifies.

Speculative decoding (Leviathan et al., 2023; Chen et al., 2023): the draft model samples a chain from its own warped law, the
acceptance rule makes the output the target's. Length: fixed, or the common adaptive rule (start at 5; two more after a chain
that was accepted whole, else one fewer), or a stop once the draft gives its own token too little probability. A tree policy may
shape its guesses instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.decode.chained import Chained
from lithe.decode.second import Second
from lithe.kernels.express import Goal
from lithe.ops.tree import Tree

CARD = Card(
    paper="Fast Inference from Transformers via Speculative Decoding (Leviathan et al., 2023)",
    promises=("same_tokens", "same_law"),
    needs=("second_model",),
    emits=("chain",),
    laws=("model", "dtype"),
)


PIECE = 3  # tokens of one call where something else may end the chain behind any: those past its end were read in vain


@dataclass(frozen=True, kw_only=True)
class Knobs:
    model: str = knob("zoo:tiny-draft", "the model that drafts, with the target's tokenizer: a folder, zoo:name, or self")
    dtype: str = knob("", "its precision, as in load: int8 makes a quick twin of the target; else the target's")
    tokens: int = knob(4, "tokens to draft each round; the start of an adaptive length is 5", low=1, high=64)
    adaptive: bool = knob(False, "two more tokens after a chain accepted whole, else one fewer")
    stop_below: float = knob(0.0, "stop after a token to which the draft gave less than this", low=0.0, high=1.0)


class Method:
    learns_from_any_tree = True
    likeliest = False  # whether it guesses the likeliest tokens of a sampled text too, drawing none: as one of a blend
    stop = None  # what ends a chain after a token that was read: stop(sequence, tree, state [C]) -> bool

    def __init__(self, knobs: Knobs, model):
        self.knobs, self.second = knobs, Second(knobs.model, model, knobs.dtype)
        self.width = self.second.model.config.width
        self.lanes, self.reach, self.laws = self.second.lanes, self.second.reach, self.second.laws
        self.length: dict[int, int] = {}  # adaptive length by sequence
        self.chained = Chained(self.lanes, knobs.tokens, self.second.vocab, knobs.stop_below)

    @property
    def compiled(self):
        """What drafts inside rounds in C, where nothing but a chance ends a chain."""
        return None if self.stop or self.knobs.adaptive else self.chained

    def start(self, sequences):
        self.length.clear()

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1], "chain") for s in sequences]
        wanted = [min(most, self._length(s), self.reach(s)) for s, most in zip(sequences, room, strict=True)]
        live = [s for s, want in zip(sequences, wanted, strict=True) if want > 0]
        if not live:
            return trees
        place = {s.number: i for i, s in enumerate(sequences)}
        self.lanes.sync(live)
        # What the last round committed and the root go in as one pass; then one token a pass.
        rows = [s.ids[n:] for s, n in zip(live, self.lanes.cache.lengths, strict=True)]
        if max(map(len, rows)) > 64:
            self.lanes.prefill()
            rows = [[s.ids[-1]] for s in live]
        if len(live) == 1 and self._ahead(live[0], trees[place[live[0].number]], max(wanted), rows):
            return trees
        for depth in range(max(wanted)):
            out = self.lanes.run(rows, taps=("final",) if self.stop else ())
            logits_BV = out.scores[:, 0]
            self.lanes.commit([len(row) for row in rows])
            if depth and self.stop:
                rows = [[] if row and self.stop(s, trees[place[s.number]], out.taps["final"][b, 0]) else row
                        for b, (s, row) in enumerate(zip(live, rows, strict=True))]
            for b, s in enumerate(live):
                i = place[s.number]
                rows[b] = self._draw(trees[i], s, logits_BV[b]) if depth < wanted[i] and rows[b] else []
            going = [bool(row) for row in rows]
            if not any(going):
                break
        return trees

    def observe(self, rounds):
        for r in rounds:
            grown = len(r.tree) > 1 and len(r.walk.path) == len(r.tree) - 1
            self.length[r.sequence.number] = max(1, self._length(r.sequence) + (2 if grown else -1))

    def after(self, sequence) -> None:
        """What is left to do where C has learnt of a round: nothing, as lengths stay."""

    def stands(self, ids_BT):
        """States [B, T, C] and logits [B, T, V] of the draft at every token of texts: for what learns when it is right."""
        return self.second.stands(ids_BT)

    def _length(self, sequence) -> int:
        return self.length.get(sequence.number, 5) if self.knobs.adaptive else self.knobs.tokens

    def _ahead(self, sequence, tree: Tree, wanted: int, rows: list[list[int]]) -> bool:
        """Draft for one greedy text, several tokens a call. Whether that can be."""
        floor, each = self.knobs.stop_below, PIECE if self.stop else wanted
        if not sequence.law.bare or (self.stop and floor):
            return False
        while len(tree) <= wanted:
            most = min(each, wanted + 1 - len(tree))
            ran = self.lanes.ahead(rows, Goal(most, floor=floor, known=self.second.vocab), taps=("final",) if self.stop else ())
            if ran is None:
                return len(tree) > 1
            for i, token in enumerate(ran.tokens_BN[0]):
                if self.stop and len(tree) > 1 and self.stop(sequence, tree, ran.states_NC[i]):
                    return True
                tree.add(token, len(tree) - 1)
            if len(ran.tokens_BN[0]) < most or not self.stop:
                return True
            rows = [tree.tokens[-1:]]
        return True

    def _draw(self, tree: Tree, sequence, logits_V) -> list[int]:
        """Add one token drawn from the draft's law, warped as the sequence asks; returns what the next pass must read."""
        node = len(tree) - 1
        scores_V = self.second.scores(sequence, tree, [node], logits_V[None])[0]
        law_V = torch.softmax(scores_V.double(), dim=-1)
        if sequence.law.greedy or self.likeliest:
            token = int(scores_V.argmax())
        else:
            token = sequence.dice.draw(law_V)
            tree.laws[node] = law_V
        tree.add(token, node)
        # The token is kept whatever its probability: only what follows it may depend on it, else the law would bend.
        return [] if float(law_V[token]) < self.knobs.stop_below else [token]
