"""Drafting by a model row by row: whole or with parts left out, on lanes of its own or on the target's.

Axes: B sequences, V the target's vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as Seq
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lithe.decode.lanes import Lanes
from lithe.kernels.express import Goal
from lithe.ops.accept import without
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence

Width = Callable[[float, bool], int]  # children a node gets, by the largest probability of their law; whether greedy


def shared(lanes: Lanes) -> Lanes:
    """Lanes on the same storage with lengths of their own: what is read there lies behind what is committed, as garbage."""
    twin = copy(lanes)
    twin.cache = lanes.cache.view(lanes.cache.layers)
    twin.ids = [[] for _ in lanes.ids]
    return twin


def chain(lanes: Lanes, sequences: Seq[Sequence], trees: Seq[Tree], wanted: Seq[int], rows: Seq[Seq[int]], *, vocab: int,
          floor: float = 0.0, **parts: Any) -> bool:
    """For one greedy text: the likeliest tokens in turn, by one call. Whether it can be so; what is given is as for `grow`."""
    if len(sequences) > 1 or not sequences[0].law.bare or wanted[0] < 1:
        return False
    found = lanes.ahead(rows, Goal(wanted[0], floor=floor, known=vocab), **parts)
    if found:
        trees[0].grow(found.tokens_BN[0])
    return bool(found)


def grow(lanes: Lanes, sequences: Seq[Sequence], trees: Seq[Tree], wanted: Seq[int], rows: Seq[list[int]], *,
         vocab: int, width: Width | None = None, floor: float = 0.0, laws: bool = False, **parts: Any) -> None:
    """Let a model add levels to trees that are only a root: a main path, and siblings beside it.

    wanted[b]: most levels. rows[b]: what the lane of sequence b has not read yet, the root last. vocab: the target's. floor:
    no level follows one whose law gave its likeliest token less. width: by default a node gets one child. laws: greedy trees
    hold theirs too. parts: `layers` or `skip` of the passes.

    The first child is the main one, be it the likeliest or the first drawn: only it is followed. That a level comes at all
    depends on the law before it, never on the token drawn, so the acceptance rules stay exact.
    """
    if width is None and not laws and chain(lanes, sequences, trees, wanted, rows, vocab=vocab, floor=floor, **parts):
        return
    ends, left = [0] * len(trees), list(wanted)
    rows = [list(row) if want > 0 else [] for row, want in zip(rows, wanted, strict=True)]
    short = max(0, vocab - lanes.model.config.vocab)  # of one tokenizer, yet embeddings may be padded to different sizes
    while any(rows):
        logits_BV = pad(lanes.run(rows, **parts).scores[:, 0, :vocab], (0, short), value=float("-inf"))
        lanes.commit([len(row) for row in rows])
        for b, (sequence, tree) in enumerate(zip(sequences, trees, strict=True)):
            if rows[b]:
                left[b] -= 1
                ends[b], sure = _level(tree, ends[b], sequence, logits_BV[b], width, laws)
                rows[b] = [tree.tokens[ends[b]]] if left[b] > 0 and sure >= floor else []


def _level(tree: Tree, node: int, sequence: Sequence, logits_V: Tensor, width: Width | None, laws: bool) -> tuple[int, float]:
    """Children of a node: the main one's number, and the largest probability of the law they come from."""
    context = sequence.ids + [tree.tokens[i] for i in tree.path(node)]
    law_V = torch.softmax(sequence.law(logits_V[None], [context])[0].double(), -1)
    sure = float(law_V.max())
    many, main = 1 if width is None else min(width(sure, sequence.law.greedy), len(law_V)), len(tree)
    if laws or not sequence.law.greedy:
        tree.laws[node] = law_V
    if sequence.law.greedy:
        for token in [int(law_V.argmax())] if many == 1 else law_V.topk(many).indices.tolist():
            tree.add(token, node)
        return main, sure
    for _ in range(many):
        if not law_V.sum() > 0:  # the urn is empty
            break
        token = sequence.dice.draw(law_V)
        tree.add(token, node)
        law_V = without(law_V, token)
    return main, sure
