"""A few trained embeddings behind a token make the target itself guess what comes later, within the pass that verifies.

PPD (Chen et al., 2024), sections 3 and 4. Prompt tokens S_1 to S_m stand as ghosts behind a node: S_i's logits guess the i-th
token after the one that the node's own logits give. Those of the last accepted node fill the next tree. A tree for each number
of lists in hand, and how many ghosts each node gets, are built for the most tokens expected in the long run; how many
rows a pass has, for the most of them a second by the measured T(n). With copies, each S_i is several embeddings, whose
logits are averaged. Only these embeddings learn: from the target's law at the true places, later ones weighing less.

Axes: B rows, P points of a text, C width, N numbers of lists.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from lithe.card import Card, knob
from lithe.decode import beside
from lithe.decode.ghosts import Echo
from lithe.decode.heads import Ends, Path, Shape, likeliest, usual_rates
from lithe.model.runtime import stored
from lithe.ops.tree import Tree
from lithe.train import fitted

CARD = Card(
    paper="Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference",
    row=31,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "ghosts"),
    emits=("det",),
    trains=True,
)
DECAY = 0.8  # weight of a place in the loss, as a share of the one before
USUAL = 12  # rows of a pass where T(n) was never measured
GRID = (4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)  # rows that are tried against T(n)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of weights that lithe fit made for this target; fresh: untrained ones")
    depth: int = knob(3, "prompt tokens, each guessing one token further", low=1, high=8)
    copies: int = knob(1, "embeddings of a prompt token, whose guesses are averaged", low=1, high=16)
    rows: int = knob(0, "rows of a pass, ghosts included; 0: most tokens a second by T(n), 12 where none was measured", low=0,
                     high=64)
    points: int = knob(32, "places of a row that a step of a fit learns from", low=1, high=1024)
    rate: float = knob(1e-2, "peak learning rate of a fit", low=0.0)


class Heads(nn.Module):
    SHAPED_BY = ("depth", "copies")
    signals = ()

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        self.knobs, self.ends, self._target = knobs, Ends(model), (model,)  # in a tuple: the target is none of its weights
        begin = torch.randint(model.config.vocab, (knobs.copies * knobs.depth,))
        self.prompts = nn.Parameter(model.embed(begin.to(model.device)).detach().cpu().float())

    def hear(self, batch):
        """The pass over the text, where prompt tokens were put, and their guesses: logits and tokens by depth."""
        ids_BT, knobs = batch["ids_BT"], self.knobs
        points_P = beside.points(ids_BT.shape[1], knobs.depth + 1, knobs.points, self.training)
        text = beside.Text(self._target[0], self._target[0].embed(ids_BT), 0)
        pos_G, seen_GS = beside.reached(points_P, knobs.depth, ids_BT.shape[1], knobs.copies)
        rows_BGC = self.prompts.repeat(len(points_P), 1).to(text.final_BTC.dtype).expand(len(ids_BT), -1, -1)
        return text, points_P, beside.foretold(text.say(rows_BGC, pos_G, seen_GS), ids_BT, points_P, knobs.depth)

    def guesses(self, batch):
        return self.hear(batch)[2]

    def loss(self, batch):
        text, points_P, said = self.hear(batch)
        total = sum(DECAY**i * beside.apart(logits, text.law(points_P + 1 + i)) for i, (logits, _) in enumerate(said))
        return total, torch.tensor(len(batch["ids_BT"]) * len(points_P))


class Method:
    build, enters = Heads, 0

    def __init__(self, knobs: Knobs, model):
        made = fitted.load("ppd", knobs, model, Heads)
        self.prompts, self.copies = made.module.prompts, made.module.knobs.copies
        rates = made.rates or usual_rates(made.module.knobs.depth)
        self.states, self.expected = sized(rates, self.copies, knobs.rows, model)
        self.shapes = [Shape(state.paths) for state in self.states]
        self.echo = Echo(max(shape.ranks for shape in self.shapes))
        self.observe = self.echo.observe

    def ghosts(self, states_GC, which):
        return self.prompts[which]

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1]) for s in sequences]
        for tree, most, lists in zip(trees, room, self.echo.lists(sequences), strict=True):
            if most <= 0:
                continue
            shape, state = self.shapes[len(lists)], self.states[len(lists)]
            shape.fill([tree], [most], partial(_listed, lists))
            depth = len(self.states) - 1
            for node, many in enumerate([state.ghosts[path] for path in paths(tree)]):
                for copy in range(self.copies):
                    tree.haunt(node, range(copy * depth, copy * depth + many))
        return trees


def _listed(lists: list[list[int]], depth: int, places: list) -> list[list[int]]:
    return [lists[depth]] * len(places)


def paths(tree: Tree) -> Iterable[Path]:
    """The rank path of every node, that of the root being ()."""
    places: list[Path] = [()]
    for node in range(1, len(tree)):
        above = tree.parents[node]
        places.append((*places[above], tree.parents[:node].count(above)))
    return places


@dataclass(frozen=True)
class State:
    """What a pass is made of while so many lists are in hand: rank paths, and ghosts behind each of them (and the root, ())."""

    paths: list[Path]
    ghosts: dict[Path, int]
    rows: int


def sized(rates, copies: int, rows: int, model) -> tuple[list[State], float]:
    """The best states of so many rows, or of as many as T(n) makes fastest, and the tokens a pass they are expected to give."""
    if rows:
        return best(rates, copies, rows)[:2]
    known = stored(model)
    curve = None if known is None else known.curves.get(model.threads)
    if curve is None:
        return best(rates, copies, max(USUAL, 1 + copies))[:2]
    found = [best(rates, copies, n) for n in GRID]
    return max(found, key=lambda f: f[1] / sum(share * curve.seconds(s.rows) for share, s in zip(f[2], f[0], strict=True)))[:2]


def best(rates, copies: int, rows: int) -> tuple[list[State], float, np.ndarray]:
    """The states of at most so many rows with the most tokens a pass in the long run, that number, and each state's share.

    Tried are numbers of guesses, all of them where the rows are few: what they leave is for ghosts (the paper's section 4).
    """
    found = [balanced(rates, copies, rows, guesses) for guesses in range(0, rows, max(1, rows // 12))]
    return max(found, key=lambda one: one[1])


def balanced(rates, copies: int, rows: int, guesses: int) -> tuple[list[State], float, np.ndarray]:
    """States of that many guesses; ghosts are taken from where they are worth least until the rest fits.

    A ghost is worth what the longer list adds to the next tree, times the chance that the walk ends at its node.
    """
    depth = len(rates)
    trees: list[list[Path]] = [[], *(likeliest(rates[:n], guesses) for n in range(1, depth + 1))]
    ends = [_ends(rates, tree) for tree in trees]
    hoped_N = np.array([sum(_chance(rates, path) for path in tree) for tree in trees])
    states = []
    for tree, end in zip(trees, ends, strict=True):
        ghosts = dict.fromkeys(end, depth)
        heap = [(end[path] * (hoped_N[depth] - hoped_N[depth - 1]), path) for path in ghosts]
        heapq.heapify(heap)
        while heap and 1 + len(tree) + copies * sum(ghosts.values()) > rows:
            _, path = heapq.heappop(heap)
            ghosts[path] -= 1
            if left := ghosts[path]:
                heapq.heappush(heap, (end[path] * (hoped_N[left] - hoped_N[left - 1]), path))
        states.append(State(tree, ghosts, 1 + len(tree) + copies * sum(ghosts.values())))
    share_N = _stationary(states, ends)
    return states, float(share_N @ hoped_N) + 1, share_N


def _chance(rates, path: Path) -> float:
    return math.prod(rates[depth][rank] for depth, rank in enumerate(path))


def _ends(rates, tree: list[Path]) -> dict[Path, float]:
    """The chance that a walk ends at each path of a tree, the root's included."""
    ends = {(): 1.0} | {path: _chance(rates, path) for path in tree}
    for path in tree:
        ends[path[:-1]] -= _chance(rates, path)
    return ends


def _stationary(states: list[State], ends: list[dict[Path, float]]) -> np.ndarray:
    """Each state's share of the passes of a long text: how often walks end where so many ghosts stand."""
    moves_NN = np.zeros((len(states), len(states)))
    for n, (state, end) in enumerate(zip(states, ends, strict=True)):
        for path, chance in end.items():
            moves_NN[n, state.ghosts[path]] += chance
    share_N = np.full(len(states), 1 / len(states))
    for _ in range(200):
        share_N = 0.5 * share_N + 0.5 * share_N @ moves_NN  # halfway, so that it settles even where states alternate
    return share_N / share_N.sum()
