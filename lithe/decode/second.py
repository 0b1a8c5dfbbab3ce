"""A second model that drafts: its lanes, its vocabulary beside the target's, and its law at any node of a tree.

Axes: B sequences, N rows, V the target's vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.decode.grow import scores
from lithe.decode.lanes import Lanes
from lithe.errors import UnsupportedError
from lithe.model.decoder import ALL, Decoder
from lithe.model.load import load, vocabulary_mismatch
from lithe.model.mask import Tree as TreeMask
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence

TWIN = "self"  # the name that stands for the target, loaded once more
WAITING = 64  # committed rows that a pass over a tree takes along; where there are more they are read on their own first


class Second:
    """The model a knob names, reading the same sequences as the target."""

    def __init__(self, name: str, target: Decoder, dtype: str = ""):
        """dtype: its precision, by default the target's. Raises UnsupportedError where its tokens are not the target's."""
        if name == TWIN and not target.source:
            raise UnsupportedError("the target was not loaded by a name, so it has no twin to draft for it: name a model")
        self.model = load(target.source if name == TWIN else name, dtype=dtype or target.dtype, device=target.device,
                          offline=target.offline)
        reason = vocabulary_mismatch(target, self.model)
        if reason:
            raise UnsupportedError(f"{name} cannot draft for this model: {reason}")
        self.vocab = target.config.vocab  # of one tokenizer, yet embeddings may be padded to different sizes
        self.lanes = Lanes(self.model)

    def stands(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Its states [B, T, C] and logits, as wide as the target's, at every token of texts."""
        out = self.model(ids_BT, taps=("final",), logits=ALL)
        return out.taps["final"], self.widen(out.scores)

    def widen(self, logits: Tensor) -> Tensor:
        """Its logits [..., V'] as wide as the target's."""
        short = max(0, self.vocab - logits.shape[-1])
        return torch.nn.functional.pad(logits[..., : self.vocab], (0, short), value=float("-inf"))

    def reach(self, sequence: Sequence) -> int:
        """How many tokens it can draft for this sequence."""
        return max(0, self.model.config.context - len(sequence.ids)) if self._knows(sequence) else 0

    def scores(self, sequence: Sequence, tree: Tree, nodes: list[int], logits_NV: Tensor) -> Tensor:
        """Its logits after these nodes as wide as the target's, warped as the sequence asks, given the path to each node."""
        return scores(sequence, tree, nodes, self.widen(logits_NV))

    def laws(self, sequences: list[Sequence], trees: list[Tree], wanted: list[list[int]]) -> list[list[Tensor]]:
        """The law [V] of the token after each wanted node: one pass over the paths that lead to them."""
        known = [b for b, sequence in enumerate(sequences) if self._knows(sequence)]
        held = [sequences[b] for b in known]
        self.lanes.sync(held)
        cache = self.lanes.cache
        if max(len(s.ids) - n for s, n in zip(held, cache.lengths, strict=True)) > WAITING:
            self.lanes.prefill()
        asks = [Ask.of(trees[b], wanted[b], sequences[b].ids[n:-1]) for b, n in zip(known, cache.lengths, strict=True)]
        if (slots := max(cache.lengths) + max(len(ask.tokens) for ask in asks)) > cache.capacity:
            cache.grow(slots)
        out_BNV = self.lanes.run([ask.tokens for ask in asks], depths=[ask.depths for ask in asks],
                                 mask=TreeMask([ask.parents for ask in asks]), logits=ALL).scores
        self.lanes.commit([ask.waiting for ask in asks])
        found: list[list[Tensor]] = [[] for _ in sequences]
        for row, (b, ask) in enumerate(zip(known, asks, strict=True)):
            if wanted[b]:
                found[b] = list(self.scores(sequences[b], trees[b], wanted[b], out_BNV[row, ask.rows]).double().softmax(-1))
        return found

    def _knows(self, sequence: Sequence) -> bool:
        """Whether every token has a row in its embedding."""
        known = self.model.config.vocab
        return known >= self.vocab or max(sequence.ids) < known


@dataclass
class Ask:
    """What a pass reads of one sequence: committed tokens not read yet, then the paths to the nodes that are wanted."""

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    rows: list[int]  # of the wanted nodes
    waiting: int  # how many tokens were committed

    @classmethod
    def of(cls, tree: Tree, wanted: list[int], waiting: list[int]) -> Ask:
        """Nothing at all where no node is wanted."""
        if not wanted:
            return cls([], [], [], [], 0)
        nodes, before = sorted({0, *(i for node in wanted for i in tree.path(node))}), len(waiting)
        row = {node: before + i for i, node in enumerate(nodes)}
        return cls(waiting + [tree.tokens[i] for i in nodes],
                   [*range(-1, before - 1), *(row.get(tree.parents[i], before - 1) for i in nodes)],
                   [*range(before), *(before + len(tree.path(i)) for i in nodes)], [row[i] for i in wanted], before)
