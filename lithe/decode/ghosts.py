"""Rows of the verifying pass that guess nothing: a draft hangs them on the nodes of a tree to hear what the target would say.

A draft with ghosts has `enters`, the layer before which they join the pass, and `ghosts(states_GC, which) -> rows [G, C]`: what
they hold there, from the states of the nodes they hang on. Axes: B sequences, N nodes, G ghosts, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence as Seq
from typing import Any

import torch
from torch import Tensor

from lithe.decode.heads import top
from lithe.decode.lanes import Lanes
from lithe.model.decoder import ALL, NONE, Output
from lithe.model.mask import Tree as TreeMask
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence


def haunted(lanes: Lanes, draft: Any, trees: Seq[Tree], taps: Iterable[int | str]) -> Output:
    """Logits [B, N + G, V] of nodes and ghosts and the taps: nodes alone up to where ghosts enter, then all rows together.

    That a ghost is no ancestor of any node is what hides it from them: below its layer it is not there, above no mask shows it.
    """
    at, last = draft.enters, lanes.model.config.layers
    early = [tap for tap in taps if isinstance(tap, int) and tap < at]
    below = lanes.run([tree.tokens for tree in trees], depths=[tree.depths for tree in trees],
                      mask=TreeMask([tree.parents for tree in trees]), layers=range(at), taps=early, logits=NONE)
    parents, depths = zip(*(tree.rows() for tree in trees), strict=True)
    rows = [_rows(draft, tree, h_NC) for tree, h_NC in zip(trees, below.hidden, strict=True)]
    above = lanes.run([[*tree.tokens, *[0] * len(tree.ghosts)] for tree in trees], depths=depths, mask=TreeMask(list(parents)),
                      states=rows, layers=range(at, last),
                      taps=[tap for tap in taps if tap not in early], logits=ALL)
    above.taps = below.taps | above.taps
    return above


def _rows(draft: Any, tree: Tree, h_NC: Tensor) -> Tensor:
    h_NC = h_NC[: len(tree)]
    if not tree.ghosts:
        return h_NC
    made_GC = draft.ghosts(h_NC[[ghost.node for ghost in tree.ghosts]], [ghost.which for ghost in tree.ghosts])
    return torch.cat((h_NC, made_GC.to(h_NC.dtype)))


class Echo:
    """What the ghosts of the last accepted node guessed, for each sequence: the likeliest tokens of each place to come."""

    def __init__(self, ranks: int):
        self.ranks = ranks
        self.held: dict[int, list[list[int]]] = {}  # by the sequence's number

    def lists(self, sequences: Seq[Sequence]) -> list[list[list[int]]]:
        """Lists by depth, none where no ghost spoke; other sequences are forgotten."""
        self.held = {s.number: self.held.get(s.number, []) for s in sequences}
        return [self.held[s.number] for s in sequences]

    def observe(self, rounds: Seq) -> None:
        for r in rounds:
            said = heard(r)
            self.held[r.sequence.number] = [] if said is None else top(said, self.ranks)


def heard(r: Any) -> Tensor | None:
    """Logits [depth, V] of the ghosts on the node where the walk ended, the mean of those of one depth; None without any."""
    node = r.walk.path[-1] if r.walk.path else 0
    depths = r.tree.rows()[1]
    places: dict[int, list[int]] = {}
    for i, ghost in enumerate(r.tree.ghosts):
        if ghost.node == node:
            places.setdefault(depths[len(r.tree) + i], []).append(i)
    return torch.stack([r.ghosts_GV[found].mean(0) for _, found in sorted(places.items())]) if places else None
