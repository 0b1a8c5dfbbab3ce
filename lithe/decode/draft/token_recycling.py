"""Reuse the runners-up of earlier passes: the likeliest followers of each token, kept in a table, make the next tree.

Token Recycling (Luo et al., 2024), sections 3.1 to 3.3. A matrix holds, for every token, the k candidates that ranked highest
when that token was last verified; a fixed tree of ranks is filled from it breadth first, and every verified row writes its own
candidates back. The table lives on across prompts (hot start). Costs vocabulary x k x 4 bytes and no training.

Our own addition: with fewer than the paper's 80 nodes, the rank paths with the largest product of measured hit rates are kept;
with nodes=0 so many of them as give the most tokens for the time of their pass, by the stored cost curve.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from lithe.card import Card, knob
from lithe.decode.budget import costs, pays
from lithe.kernels import copying
from lithe.kernels.draft import note_top
from lithe.ops.tree import Tree

CARD = Card(
    paper="Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling",
    row=72,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather"),
    emits=("det",),
)

# The paper's 80 nodes as rank paths. _CHILDREN[path] says how many children (ranks 0, 1, ...) that node has.
_CHILDREN = {
    "": 8,
    **dict(zip("01234567", (8, 4, 3, 2, 1, 1, 1, 1), strict=True)),
    **{f"0{r}": n for r, n in enumerate((8, 3, 2, 1, 1, 1, 1, 1))},
    "10": 2, "11": 1, "20": 1, "30": 1, "40": 1, "50": 1,
    "000": 5, "001": 2, "002": 1, "003": 1, "004": 1, "010": 1, "020": 1, "100": 1, "200": 1, "300": 1,
    "0000": 3, "0001": 1, "0002": 1, "0010": 1, "0100": 1, "1000": 1,
    "00000": 2, "00010": 1,
}  # fmt: skip
DEPTH = 6  # of the paper's tree
REBUILD = 64  # rounds after which a smaller tree is shaped anew


def template() -> list[tuple[int, ...]]:
    """The paper's rank paths, breadth first."""
    level, paths = [""], []
    while level:
        level = [path + str(rank) for path in level for rank in range(_CHILDREN.get(path, 0))]
        paths += level
    return [tuple(map(int, path)) for path in paths]


def slots(paths: list[tuple[int, ...]]) -> list[tuple[int, int, int]]:
    """Of each rank path the number of the one above it (-1 is the root), its last rank and its depth."""
    number = {(): -1} | {path: i for i, path in enumerate(paths)}
    return [(number[path[:-1]], path[-1], len(path)) for path in paths]


@dataclass(frozen=True, kw_only=True)
class Knobs:
    k: int = knob(8, "candidates kept for each token", low=1, high=64)
    nodes: int = knob(80, "tree size without its root; below 80 the likeliest rank paths; 0: as many as pay", low=0, high=80)
    hot: bool = knob(True, "keep the table from one prompt to the next")
    update: str = knob("all", "which verified rows write to the table", choices=("all", "accepted"))


class Method:
    learns_from_any_tree = True
    tensors = False

    def __init__(self, knobs: Knobs, model):
        self.knobs, self.k = knobs, min(knobs.k, model.config.vocab)
        self.table = np.zeros((model.config.vocab, self.k), dtype=np.int32)  # 0: not filled yet, as in the paper
        self.right = np.tile(0.5 ** np.arange(1.0, self.k + 1), (DEPTH, 1))  # how often each rank came true
        self.tested = np.ones(DEPTH)
        self.rounds = 0
        self.costs = [] if knobs.nodes else costs(model, len(template()))
        self.compiled = copying.recycled(self.table, self.right, self.tested, most=len(template()),
                                         accepted=knobs.update == "accepted")
        self._reshape()

    def start(self, sequences):
        if not self.knobs.hot:
            self.table[:] = 0

    def propose(self, sequences, room):
        if self.compiled is not None:
            return [self.compiled.propose(s.number, s.ids, most) for s, most in zip(sequences, room, strict=True)]
        return [self._fill(s.ids[-1], most) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        for r in rounds:
            noted = self.compiled is not None and self.compiled.learn(r.tree.tokens, r.walk.path, r.walk.token, r.told.scores)
            if self.compiled is None:
                self._learn(r.tree, r.walk)
            if not noted:
                self.note(r)
            self.after(r.sequence)

    def note(self, r) -> None:
        """Write the candidates of rows to the table, wherever their scores lie."""
        rows = range(len(r.tree)) if self.knobs.update == "all" else (0, *r.walk.path)
        note_top(self.table, [r.tree.tokens[row] for row in rows], r.told.scores, rows)

    def after(self, sequence) -> None:
        """What is left to do where C has learnt of a round."""
        self.rounds += 1
        if self.rounds % REBUILD == 0:
            self._reshape()

    def calm(self) -> int:
        """How many rounds C may take before `after` changes what it drafts."""
        return REBUILD - self.rounds % REBUILD

    def _reshape(self) -> None:
        self.slots = slots(self._shape())
        if self.compiled is not None:
            self.compiled.shape(self.slots)

    def _fill(self, root: int, most: int) -> Tree:
        tree, nodes = Tree.root(root), {-1: 0}  # by number of the path
        for number, (above, rank, depth) in enumerate(self.slots):
            if above in nodes and depth <= most:
                token = int(self.table[tree.tokens[nodes[above]], rank])
                if token:
                    nodes[number] = tree.add(token, nodes[above])
        return tree

    def _learn(self, tree: Tree, walk) -> None:
        """Along the walk the true next tokens are known: count the rank at which the table had them."""
        nodes = (0, *walk.path)
        truth = [tree.tokens[node] for node in walk.path] + [walk.token]
        rows = self.table[[tree.tokens[node] for node in nodes]].tolist()
        for depth, (row, token) in enumerate(zip(rows, truth, strict=True)):
            level = min(depth, DEPTH - 1)
            self.tested[level] += 1
            if token and token in row:
                self.right[level][row.index(token)] += 1

    def _shape(self) -> list[tuple[int, ...]]:
        """Rank paths, parents first: the paper's own tree, or the likeliest paths where fewer nodes are asked for."""
        if self.knobs.nodes == len(template()):
            return [path for path in template() if max(path) < self.k]
        rate = (np.asarray(self.right) / np.asarray(self.tested)[:, None]).tolist()
        most = self.knobs.nodes or len(template())
        chosen: list[tuple[int, ...]] = []
        chances: list[float] = []
        frontier: list[tuple[float, tuple[int, ...]]] = [(-rate[0][0], (0,))]
        while frontier and len(chosen) < most:
            cost, path = heapq.heappop(frontier)
            chosen.append(path)
            chances.append(-cost)
            depth, rank = len(path), path[-1]
            if depth < DEPTH:
                heapq.heappush(frontier, (cost * rate[depth][0], (*path, 0)))
            if rank + 1 < self.k:
                heapq.heappush(frontier, (cost / rate[depth - 1][rank] * rate[depth - 1][rank + 1], (*path[:-1], rank + 1)))
        if self.costs:
            chosen = chosen[: pays(chances, self.costs)]
        return sorted(chosen, key=lambda path: (len(path), path))
