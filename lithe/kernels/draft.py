"""What drafts do each round beside passes, compiled; without kernels `ops.rank` and `ops.merge` do the same, slower.

Axes: N rows, V vocabulary, K how many scores of a row are kept.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

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


def note_top(table_VK: np.ndarray, places: Sequence[int], scores_NV: Tensor, rows: Sequence[int]) -> None:
    """Note the ids of the K largest scores of rows, falling, in places of a table of int32; of two rows for one the later."""
    lib, k = _functions(), table_VK.shape[1]
    plain = scores_NV.is_cpu and scores_NV.dtype == torch.float32 and scores_NV.stride(1) == 1
    if lib is None or not plain or INT != 4 or k > MOST:
        top_NK = rank.top(scores_NV, k)
        for place, row in zip(places, rows, strict=True):
            table_VK[place] = top_NK[row]
        return
    given = array("i", [*rows, *places])
    at = given.buffer_info()[0]
    lib.lithe_top(scores_NV.data_ptr(), scores_NV.stride(0), at, at + INT * len(rows), len(rows), scores_NV.shape[1], k,
                  table_VK.ctypes.data)


def merger(costs: Sequence[float]) -> slow.Merger:
    """A `Merger`, compiled where that can be."""
    lib = _functions()
    return slow.Merger(costs) if lib is None or INT != 4 else _Merger(costs, lib)


class _Merger(slow.Merger):
    def __init__(self, costs: Sequence[float], lib: ctypes.CDLL) -> None:
        super().__init__(costs)
        self.lib, self.times, self.table = lib, array("d", self.costs), array("d", bytes(8 * COUNTS))
        self.order, self.merged = array("i", bytes(INT * len(self.costs))), array("i", [0])
        self.fixed = [each.buffer_info()[0] for each in (self.table, self.times, self.order, self.merged)]

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
        table, times, order, merged = self.fixed
        at, step = given.buffer_info()[0] + INT * len(sizes), INT * len(tokens)
        kept = self.lib.lithe_merge(root, most, len(sizes), at - INT * len(sizes), at, at + step, at + 2 * step, table, times,
                                    len(self.costs) - 1, nodes.buffer_info()[0], merged, order)
        found = [(n, nodes[NODE * n], nodes[NODE * n + 1], nodes[NODE * n + 3]) for n in self.order[:kept]]
        return self.tree(root, found), (nodes, self.merged[0])

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
    lib.lithe_merge.argtypes = (c_int32, c_int32, c_int32, *[c_void_p] * 6, c_int32, *[c_void_p] * 3)
    lib.lithe_learn.argtypes = (c_void_p, c_int32, c_void_p, c_int32, c_void_p)
    lib.lithe_top.restype = lib.lithe_learn.restype = None
    return lib
