"""Some layers below its end the target's own states, each through a matrix, stand in for the states of tokens to come.

Hidden transfer (Wu et al., 2024). Before layer l a row's state goes through W_1 to W_k; the results join the pass as the
states of the k next places, and what the remaining layers make of them guesses the tokens after. The pass that verifies a tree
thus also says what the next one holds. W_i start as the identity and learn from the target's law at the true places. Of the
paper only the abstract was at hand: one layer for all k, and its place, are our reading.

Axes: B rows, T tokens, P points of a text, C width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lithe.card import Card, knob
from lithe.decode import beside
from lithe.decode.ghosts import Echo
from lithe.decode.heads import Shape, likeliest, usual_rates
from lithe.ops.tree import Tree
from lithe.train import fitted

CARD = Card(
    paper="Parallel Decoding via Hidden Transfer for Lossless Large Language Model Acceleration",
    row=119,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "ghosts"),
    emits=("det",),
    trains=True,
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of weights that lithe fit made for this target; fresh: untrained ones")
    depth: int = knob(3, "places ahead that get a state", low=1, high=8)
    at: float = knob(0.8, "where the states join, as a share of the layers", low=0.0, high=1.0)
    nodes: int = knob(25, "tree size without its root", low=1, high=512)
    floor: float = knob(0.02, "nodes that a walk reaches more rarely get no states; the root always does", low=0.0, high=1.0)
    points: int = knob(32, "places of a row that a step of a fit learns from", low=1, high=1024)
    rate: float = knob(1e-3, "peak learning rate of a fit", low=0.0)


class Heads(nn.Module):
    SHAPED_BY = ("depth", "at")

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        self.knobs, self._target = knobs, (model,)  # in a tuple: the target is none of its weights
        layers, width = model.config.layers, model.config.width
        self.enters = min(int(knobs.at * layers), layers - 1)
        self.signals: tuple[str, ...] = (f"tap:{self.enters - 1}",) if self.enters else ()
        self.transfers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(knobs.depth))
        for weight in self.transfers.parameters():
            nn.init.eye_(weight)

    def hear(self, batch):
        """The pass over the text from that layer on, the points in it, and their guesses: logits and tokens by depth."""
        ids_BT, knobs = batch["ids_BT"], self.knobs
        states_BTC = batch[self.signals[0]] if self.enters else self._target[0].embed(ids_BT)
        points_P = beside.points(ids_BT.shape[1], knobs.depth + 1, knobs.points, self.training)
        text = beside.Text(self._target[0], states_BTC.to(self._target[0].dtype), self.enters)
        pos_G, seen_GS = beside.reached(points_P, knobs.depth, ids_BT.shape[1])
        rows_BPSC = torch.stack([linear(states_BTC[:, points_P]) for linear in self.transfers], 2)
        said = text.say(rows_BPSC.flatten(1, 2), pos_G, seen_GS)
        return text, points_P, beside.foretold(said, ids_BT, points_P, knobs.depth)

    def guesses(self, batch):
        return self.hear(batch)[2]

    def loss(self, batch):
        text, points_P, said = self.hear(batch)
        total = sum(beside.apart(logits, text.law(points_P + 1 + i)) for i, (logits, _) in enumerate(said))
        return total, torch.tensor(len(batch["ids_BT"]) * len(points_P))


class Method:
    build = Heads

    def __init__(self, knobs: Knobs, model):
        made = fitted.load("hidden_transfer", knobs, model, Heads)
        self.net, self.enters, self.floor = made.module, made.module.enters, knobs.floor
        self.rates = made.rates or usual_rates(len(self.net.transfers))
        self.shape = Shape(likeliest(self.rates, knobs.nodes))
        self.echo = Echo(self.shape.ranks)
        self.observe = self.echo.observe

    def ghosts(self, states_GC, which):
        rows = torch.empty_like(states_GC)
        for i in set(which):
            mine = [place for place, one in enumerate(which) if one == i]
            rows[mine] = self.net.transfers[i](states_GC[mine].to(self.net.transfers[i].weight.dtype)).to(rows.dtype)
        return rows

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1]) for s in sequences]
        held = self.echo.lists(sequences)

        def ranked(depth, places):
            return [held[b][depth] if depth < len(held[b]) else [] for b, _ in places]

        self.shape.fill(trees, room, ranked)
        for tree, most in zip(trees, room, strict=True):
            reach, depths = [1.0], tree.depths
            for node, above in enumerate(tree.parents[1:], start=1):
                reach.append(reach[above] * self.rates[depths[node] - 1][tree.parents[:node].count(above)])
            for node, chance in enumerate(reach):
                if most > 0 and (chance >= self.floor or node == 0):
                    tree.haunt(node, range(len(self.net.transfers)))
        return trees
