"""One small model with exits inside it drafts: easy tokens leave early, what they skipped is made up for when a hard one comes.

S2D (Kavehzadeh et al., 2024), section 3. The draft's first layers are a model themselves, under the same norm and output
matrix: after each of `exits` layers it can be left, and is, where the likeliest token has more than that exit's threshold; the
last always speaks. Rows that left early go up with the next that does. It must have learned to be left there (sorted
fine-tuning): lithe draft MODEL --exits 6/9/12 makes such a model, from fresh weights or from the first layers of another, and
it drafts for any target of its tokenizer. Alone it drafts chains; the paper's trees are those of expand_rerank + s2d.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.decode import nested
from lithe.decode.nested import Nested
from lithe.decode.second import Second
from lithe.errors import UsageError
from lithe.ops.tree import Tree

CARD = Card(
    paper="S2D: Sorted Speculative Decoding For More Efficient Deployment of Nested Large Language Models",
    row=178,
    promises=("same_tokens", "same_law"),
    needs=("second_model",),
    emits=("chain",),
    laws=("model", "exits", "sure"),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    model: str = knob("zoo:tiny-draft", "the model that drafts: a folder or zoo:name, with the target's tokenizer")
    exits: str = knob("", "layers after which it can be left, as 6/9/12; empty: half, three quarters and all")
    sure: str = knob("0.5", "probability of the likeliest token above which an exit is taken: one for each but the last, as "
                            "0.5/0.4, or one for all; 0: always, 1: never")
    tokens: int = knob(4, "tokens to draft each round", low=1, high=64)


class Method:
    stop = None  # what ends a chain after a token that was read: stop(sequence, tree, state [C]) -> bool

    def __init__(self, knobs: Knobs, model):
        self.knobs, self.second = knobs, Second(knobs.model, model)
        self.model, self.width, self.reach = self.second.model, self.second.model.config.width, self.second.reach
        self.exits = nested.exits(knobs.exits, self.model.config.layers)
        self.sure = floors(knobs.sure, len(self.exits) - 1)
        self.nested = Nested(self.second.lanes, self.exits)
        self.left = [0] * len(self.exits)  # tokens drafted at each exit

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1], "chain") for s in sequences]
        wanted = [min(most, self.knobs.tokens, self.reach(s)) for s, most in zip(sequences, room, strict=True)]
        live = [b for b, want in enumerate(wanted) if want > 0]
        if not live:
            return trees
        self.nested.sync([sequences[b] for b in live])
        rows = [sequences[b].ids[n:] for b, n in zip(live, self.nested.lanes.cache.lengths, strict=True)]
        while any(rows):
            states = self.nested.enter(rows, list(map(len, rows)))
            asked = {i: (sequences[b], trees[b], [len(trees[b]) - 1]) for i, b in enumerate(live) if rows[i]}
            found = self._leave(asked, {(i, asked[i][2][0]): states[i][-1] for i in asked}, self._last)
            rows = [[] for _ in live]
            for (i, node), (state_C, law_V) in found.items():
                sequence, tree, _ = asked[i]
                if node and self.stop is not None and self.stop(sequence, tree, self.model.norm(state_C)):
                    continue
                token = int(law_V.argmax()) if sequence.law.greedy else sequence.dice.draw(law_V)
                if not sequence.law.greedy:
                    tree.laws[node] = law_V
                tree.add(token, node)
                rows[i] = [token] if len(tree) <= wanted[live[i]] else []
        return trees

    def observe(self, rounds):
        """What was rejected is cut when the next round begins."""

    def laws(self, sequences, trees, wanted):
        """The law [V] of the token after each wanted node, at the exit it leaves by; rows on the way to it go as far."""
        live = [b for b, s in enumerate(sequences) if self.reach(s) > 0]  # all keep their lanes, asked or not
        self.nested.sync([sequences[b] for b in live])
        asked = {i: (sequences[b], trees[b], wanted[b]) for i, b in enumerate(live) if wanted[b]}
        unread = [sequences[b].ids[n:-1] if i in asked else []
                  for i, (b, n) in enumerate(zip(live, self.nested.lanes.cache.lengths, strict=True))]
        shown = {i: ways(tree, nodes) for i, (_, tree, nodes) in asked.items()}
        rows = [unread[i] + [trees[b].tokens[node] for node in shown.get(i, [])] for i, b in enumerate(live)]
        above = {i: parents(tree, shown[i]) for i, (_, tree, _) in asked.items()}
        states = self.nested.enter(rows, list(map(len, unread)), above)
        held = {(i, node): state for i in asked for node, state in zip(shown[i], states[i][len(unread[i]) :], strict=True)}
        found = self._leave(asked, held, self._paths)
        place = {b: i for i, b in enumerate(live)}
        return [[found[place[b], node][1] for node in nodes] for b, nodes in enumerate(wanted)]

    def stands(self, ids_BT):
        """States [B, T, C] and logits [B, T, V] at the exit of every token of texts: for what learns when it is right."""
        taps = self.model(ids_BT, taps=[layers - 1 for layers in self.exits], logits="none").taps
        states_BTC = taps[self.exits[0] - 1]
        for layers, sure in zip(self.exits[1:], self.sure, strict=True):
            doubt_BT = self.model.head(states_BTC).softmax(-1).amax(-1) <= sure
            states_BTC = torch.where(doubt_BT[..., None], taps[layers - 1], states_BTC)
        return self.model.norm(states_BTC), self.second.widen(self.model.head(states_BTC))

    def _leave(self, asked, states, climb):
        """State [C] and law [V] of every asked place (a lane, a node) at the exit it leaves by."""
        left = {(i, node): states[i, node] for i, (_, _, nodes) in asked.items() for node in nodes}
        found = {}
        for exit in range(len(self.exits)):
            if exit:
                left = climb(exit, asked, states, list(left))
            logits_NV = self.model.head(torch.stack(list(left.values())))
            doubted = {}
            for (place, state_C), logits_V in zip(left.items(), logits_NV, strict=True):
                sequence, tree, _ = asked[place[0]]
                law_V = self.second.scores(sequence, tree, [place[1]], logits_V[None])[0].double().softmax(-1)
                if exit == len(self.sure) or float(law_V.max()) > self.sure[exit]:
                    found[place] = state_C, law_V
                    self.left[exit] += 1
                else:
                    doubted[place] = state_C
            if not doubted:
                break
            left = doubted
        return found

    def _last(self, exit, asked, states, places):
        """A chain's rows all stay: the last one that waits is the one that is asked for."""
        out = self.nested.climb(exit, [i for i, _ in places])
        return {(i, node): out[i][-1] for i, node in places}

    def _paths(self, exit, asked, states, places):
        """A tree's rows are not kept: those on the way to the doubted nodes go up with them."""
        shown = {i: ways(asked[i][1], [node for at, node in places if at == i]) for i in sorted({i for i, _ in places})}
        beside = {i: torch.stack([states[i, node] for node in nodes]) for i, nodes in shown.items()}
        out = self.nested.climb(exit, list(shown), beside, {i: parents(asked[i][1], nodes) for i, nodes in shown.items()})
        for i, nodes in shown.items():
            states.update({(i, node): state for node, state in zip(nodes, out[i][-len(nodes) :], strict=True)})
        return {place: states[place] for place in places}


def floors(text: str, exits: int) -> tuple[float, ...]:
    """Thresholds of so many exits. Raises UsageError for another number of them, or none at all."""
    try:
        made = tuple(float(part) for part in text.split("/"))
    except ValueError:
        made = ()
    if len(made) not in (1, exits) or not all(0 <= sure <= 1 for sure in made):
        raise UsageError(f"sure={text!r} must be probabilities joined by slashes, one or as many as there are exits but the "
                         f"last, here {exits}")
    return made * exits if len(made) == 1 else made


def ways(tree: Tree, nodes: Iterable[int]) -> list[int]:
    """The root and all nodes on the way to these, parents first."""
    return sorted({0, *(i for node in nodes for i in tree.path(node))})


def parents(tree: Tree, nodes: list[int]) -> list[int]:
    """Each node's parent by its number among them, -1 for the root's."""
    number = {node: i for i, node in enumerate(nodes)}
    return [number.get(tree.parents[node], -1) for node in nodes]
