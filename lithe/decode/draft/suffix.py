"""Copy what most often followed the longest match, in this text or in what was generated before; long matches draft more.

Suffix decoding (Oliaro et al., 2024). Two indices of substrings with their counts: one of the request (prompt and
output), one of all finished outputs. For every suffix of the text that occurs there, the likeliest continuations grow into a
tree: at most alpha tokens for each token matched, none below a probability. The tree of the largest expected acceptance is
verified. No training; the index of outputs outlives the prompt.

The paper's suffix trees of depth 64 are suffix automata here: the same substrings and counts in two states a token.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.decode.budget import costs, pays
from lithe.ops.suffix import SuffixAutomaton
from lithe.ops.tree import Tree

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
Node = tuple[float, int, int]  # probability, parent within the draft (-1 its root), token


class Method:
    learns_from_any_tree = True
    tensors = False

    def __init__(self, knobs: Knobs, model):
        self.knobs, self.most = knobs, knobs.nodes or AUTO
        self.costs = [] if knobs.nodes else costs(model, AUTO)
        self.texts: dict[int, tuple[int, SuffixAutomaton]] = {}  # by sequence: how far it was read, and its index
        self.outputs = SuffixAutomaton()
        self.ended = 0  # outputs in the index
        self.found: dict[int, tuple[int, ...]] = {}  # by sequence: outputs then, tokens read, the match's state and length

    def start(self, sequences):
        self.texts.clear()
        self.found.clear()

    def propose(self, sequences, room):
        return [self._tree(s, most) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        for r in rounds:
            if r.sequence.finished:
                self.texts.pop(r.sequence.number, None)
                self.found.pop(r.sequence.number, None)
                self._keep(r.sequence.tokens)

    def _tree(self, sequence, most: int) -> Tree:
        tree = Tree.root(sequence.ids[-1])
        text = self._read(sequence)
        before = text.links[text.last]  # the longest suffix that occurs earlier as well
        found = [("text", *self._best(text, before, text.lengths[before], most))]
        if self.knobs.outputs:
            found.append(("outputs", *self._best(self.outputs, *self._match(sequence), most)))
        source, _, nodes = max(found, key=lambda one: one[1])
        if self.costs:  # the likeliest come first
            nodes = nodes[: pays([chance for chance, _, _ in nodes], self.costs)]
        for _, parent, token in nodes:
            tree.add(token, parent + 1, source)
        return tree

    def _read(self, sequence) -> SuffixAutomaton:
        read, text = self.texts.get(sequence.number) or (0, SuffixAutomaton())
        for token in sequence.ids[read:]:
            text.push(token)
        self.texts[sequence.number] = len(sequence.ids), text
        return text

    def _match(self, sequence) -> tuple[int, int]:
        """The state of the longest end of the text that outputs hold, and its length; only new tokens are read."""
        ended, read, state, length = self.found.get(sequence.number) or (-1, 0, 0, 0)
        if ended != self.ended:  # an index that has grown may have split the state
            read, state, length = max(0, len(sequence.ids) - self.knobs.depth), 0, 0
        state, length = self.outputs.match(sequence.ids[read:], state, length)
        while state and self.outputs.lengths[self.outputs.links[state]] >= self.knobs.depth:
            state = self.outputs.links[state]  # of the last `depth` tokens alone
        self.found[sequence.number] = self.ended, len(sequence.ids), state, length
        return state, length

    def _keep(self, tokens: list[int]) -> None:
        """Index a finished output; a token no model has keeps it apart from the next."""
        if len(self.outputs.next) > 2 * self.knobs.limit:
            self.outputs = SuffixAutomaton()
        self.ended += 1
        for token in [*tokens, -self.ended]:
            self.outputs.push(token)

    def _best(self, index: SuffixAutomaton, state: int, length: int, most: int) -> tuple[float, list[Node]]:
        """The expected accepted tokens and the nodes of the best draft, over a match of that length and its suffixes."""
        best: tuple[float, list[Node]] = (0.0, [])
        for suffix in index.suffixes(state):
            matched = min(index.lengths[suffix], length, self.knobs.depth)
            budget = min(int(self.knobs.alpha * matched + self.knobs.offset), self.most)
            if budget <= best[0]:
                break  # a shorter suffix has no larger budget, and no token counts for more than one
            nodes = self._expand(index, suffix, budget, most)
            best = max(best, (sum(node[0] for node in nodes), nodes), key=lambda one: one[0])
        return best

    def _expand(self, index: SuffixAutomaton, state: int, budget: int, most: int) -> list[Node]:
        """The likeliest continuations of a state, parents first."""
        nodes: list[Node] = []
        front = [(-1.0, 0, -1, -1, state)]  # minus the path's probability, depth, parent, token, state
        while front:
            minus, depth, parent, token, state = heapq.heappop(front)
            if depth:
                nodes.append((-minus, parent, token))
            if len(nodes) == budget:
                break
            after = index.next[state]
            total = sum(index.counts[s] for s in after.values())
            if depth == most or not total:
                continue
            heavy = after.items() if self.knobs.tree else [max(after.items(), key=lambda item: index.counts[item[1]])]
            for child, s in heavy:
                law = -minus * index.counts[s] / total
                if law >= self.knobs.floor and child >= 0:
                    heapq.heappush(front, (-law, depth + 1, len(nodes) - 1, child, s))
        return nodes
