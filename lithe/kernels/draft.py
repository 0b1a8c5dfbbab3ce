"""What drafts do each round beside passes, compiled; without kernels `ops.rank` and `ops.merge` do the same, slower.

Axes: N rows, V vocabulary, K how many scores of a row are kept.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_void_p
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lithe.kernels import library
from lithe.ops import merge as slow, rank
from lithe.ops.tree import Tree

MOST = 64  # scores of a row that the compiled search keeps
NODE = 6  # numbers that Node of draft.c holds: token, parent, depth, voices, rank, reach
COUNTS = 2 * (slow.DEEPEST + 1) * (slow.FARTHEST + 1) * (slow.LAST_RANK + 1) << slow.VOICES
INT = array("i").itemsize


class Floats(NamedTuple):
    """Where rows of float32 lie that stay there while this is used: to make a tensor of them would take some 30 us."""

    address: int
    rows: int
    width: int


def note_top(table_VK: np.ndarray, places: Sequence[int], scores_NV: Tensor | Floats, rows: Sequence[int]) -> None:
    """Note the ids of the K largest scores of rows, falling, in places of a table of int32; of two rows for one the later."""
    lib, k = _functions(), table_VK.shape[1]
    if isinstance(scores_NV, Floats):
        assert lib is not None and k <= MOST and 0 <= min(rows) <= max(rows) < scores_NV.rows and max(places) < len(table_VK)
        at, stride, width = scores_NV.address, scores_NV.width, scores_NV.width
    elif lib is not None and k <= MOST and (known := where(scores_NV)):
        at, stride, width = known
    else:
        top_NK = rank.top(scores_NV, k)
        for place, row in zip(places, rows, strict=True):
            table_VK[place] = top_NK[row]
        return
    given = array("i", [*rows, *places])
    asked = given.buffer_info()[0]
    lib.lithe_top(at, stride, asked, asked + INT * len(rows), len(rows), width, k, table_VK.ctypes.data)


def where(scores_NV: Tensor) -> tuple[int, int, int] | None:
    """Address, distance of rows and width of scores that C can read as they lie."""
    able = scores_NV.is_cpu and scores_NV.dtype == torch.float32 and scores_NV.stride(1) == 1
    return (scores_NV.data_ptr(), scores_NV.stride(0), scores_NV.shape[1]) if able else None


def merger(costs: Sequence[float]) -> slow.Merger:
    """A `Merger`, compiled where that can be."""
    lib = _functions()
    return slow.Merger(costs) if lib is None or INT != 4 else _Merger(costs, lib)


class _Merger(slow.Merger):
    def __init__(self, costs: Sequence[float], lib: ctypes.CDLL) -> None:
        super().__init__(costs)
        self.lib, self.times, self.table = lib, array("d", self.costs), array("d", bytes(8 * COUNTS))
        self.order, self.merged = array("i", bytes(INT * len(self.costs))), array("i", [0])
        self.told = array("i", bytes(INT * 3 * len(self.costs)))
        self.fixed = [each.buffer_info()[0] for each in (self.table, self.times, self.order, self.merged, self.told)]

    def merge(self, root: int, trees: slow.Named, most: int) -> tuple[Tree, Any]:
        sizes: list[int] = []
        tokens: list[int] = []
        parents: list[int] = []
        voices: list[int] = []
        for name, tree in trees:
            sizes.append(len(tree))
            tokens += tree.tokens
            parents += tree.parents
            voices += self.voices(name, tree)
        given, nodes = array("i", [*sizes, *tokens, *parents, *voices]), array("i", bytes(INT * NODE * (len(tokens) + 1)))
        table, times, order, merged, told = self.fixed
        at, step, keep = given.buffer_info()[0] + INT * len(sizes), INT * len(tokens), len(self.costs) - 1
        kept = self.lib.lithe_merge(root, most, len(sizes), at - INT * len(sizes), at, at + step, at + 2 * step, table, times,
                                    keep, nodes.buffer_info()[0], merged, order, told)
        return self.tree_of(root, kept, self.told), (nodes, self.merged[0])

    def tree_of(self, root: int, kept: int, told: array) -> Tree:
        """The tree that C has told."""
        keep = len(self.costs) - 1
        sources = {node: self.named(voices) for node, voices in enumerate(told[2 * keep : 2 * keep + kept], 1)}
        return Tree([root, *told[:kept]], [-1, *told[keep : keep + kept]], "det", sources=sources)

    def named(self, voices: int) -> str:
        return self._said.get(voices) or self._say(voices)

    def learn(self, union: Any, truth: Sequence[int]) -> None:
        nodes, count = union
        said = array("i", truth)
        self.lib.lithe_learn(nodes.buffer_info()[0], count, said.buffer_info()[0], len(said), self.fixed[0])


@cache
def _functions() -> ctypes.CDLL | None:
    """The library with what its functions take, or None where kernels are off."""
    found = library.load()
    if found is None:
        return None
    lib = found.lib
    lib.lithe_top.argtypes = (c_void_p, c_int64, c_void_p, c_void_p, c_int32, c_int32, c_int32, c_void_p)
    lib.lithe_merge.argtypes = (c_int32, c_int32, c_int32, *[c_void_p] * 6, c_int32, *[c_void_p] * 4)
    lib.lithe_learn.argtypes = (c_void_p, c_int32, c_void_p, c_int32, c_void_p)
    lib.lithe_top.restype = lib.lithe_learn.restype = None
    return lib
