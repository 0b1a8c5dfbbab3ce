"""Heads like Medusa's that also read the tokens drafted before theirs, so that guesses fit together.

Hydra (Ankner et al., 2024), sections 3 and 4. Head i reads the state h_t and the embeddings of the root and of the i - 1 tokens
drafted after it, and is run for every node of its level. Hydra++ is layers=4,prefix=true,teacher=true: deeper heads, one layer
of attention over the target's states of all that was committed, and the target's law to learn from instead of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lithe.card import Card, knob
from lithe.decode import heads as shared
from lithe.decode.heads import Ends, Join, Output, Residual, Shape, onto
from lithe.decode.trail import Follower, States, body
from lithe.ops.tree import Tree
from lithe.train import fitted
from lithe.train.teacher import FINAL, LOGITS

CARD = Card(
    paper="Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding",
    row=118,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "tap:final"),
    emits=("det",),
    trains=True,
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of weights that lithe fit made for this target; fresh: untrained ones")
    depth: int = knob(4, "heads, each guessing one token further", low=1, high=16)
    layers: int = knob(1, "residual blocks of a head; Hydra++ has 4", low=1, high=8)
    prefix: bool = knob(False, "a layer of attention over all committed states before the heads, as in Hydra++")
    teacher: bool = knob(False, "learn the target's law instead of the text's tokens, as in Hydra++")
    own: bool = knob(True, "an output matrix for each head, instead of the target's for all")
    nodes: int = knob(63, "tree size without its root", low=1, high=512)
    rate: float = knob(5e-4, "peak learning rate of a fit", low=0.0)


class Head(nn.Module):
    """The guess after `read` tokens that are not in the state yet."""

    def __init__(self, ends: Ends, width: int, read: int, layers: int, own: bool):
        super().__init__()
        self.ends, self.join = ends, Join(width, 1 + read)
        self.body = nn.Sequential(*(Residual(width) for _ in range(layers)), Output(ends, own))

    def forward(self, h, ids):
        """Logits [..., V] from the state [..., C] and the tokens [..., read] after it."""
        return self.body(self.join(h, self.ends.embed(ids, h).flatten(-2)))


class Heads(nn.Module):
    SHAPED_BY = ("depth", "layers", "prefix", "own")

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        ends, width = Ends(model), model.config.width
        self.teacher = knobs.teacher
        self.signals = (FINAL, LOGITS) if knobs.teacher else (FINAL,)
        self.prefix = body(model) if knobs.prefix else None
        self.heads = nn.ModuleList(Head(ends, width, i, knobs.layers, knobs.own) for i in range(1, knobs.depth + 1))

    def guesses(self, batch):
        """For head i: logits from h_t and x_{t+1..t+i}, and the token x_{t+1+i} that they foretell; x_{t+1} is the root."""
        h_BTC, ids_BT = batch[FINAL], batch["ids_BT"]
        h_BTC = h_BTC if self.prefix is None else self.prefix(embeds=h_BTC, logits="none").hidden
        for i, head in enumerate(self.heads, start=1):
            read_BTN = ids_BT[:, 1:-1].unfold(1, i, 1)  # x_{t+1} to x_{t+i}
            yield head(h_BTC[:, : -1 - i], read_BTN), ids_BT[:, 1 + i :]

    def loss(self, batch):
        total: Any = 0.0
        for i, (logits_BTV, ids_BT) in enumerate(self.guesses(batch), start=1):
            if self.teacher:  # the row that has read x_{t+i} tells the law of x_{t+1+i}
                total = total + shared.soft_cross_entropy(logits_BTV, batch[LOGITS][:, i:-1])
            else:
                total = total + shared.cross_entropy(logits_BTV, ids_BT)
        return total, batch["ids_BT"][:, 2:].numel()


class Method:
    build = Heads

    def __init__(self, knobs: Knobs, model):
        made = fitted.load("hydra", knobs, model, Heads)
        self.net, self.device = made.module, model.device
        self.shape = Shape(shared.likeliest(made.rates or shared.usual_rates(len(self.net.heads)), knobs.nodes))
        self.follower = None if self.net.prefix is None else Follower(self.net.prefix, lambda s, start, states: states)
        self.states = States(model.dtype) if self.follower is None else self.follower.states
        self.read, self.observe = self.states.read, self.states.observe

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1]) for s in sequences]
        live, h_BC = self._latest(sequences, room)
        grown = [trees[b] for b in live]

        def ranked(depth, places):
            ids_NT = torch.tensor([onto(grown[b], node) for b, node in places], device=self.device)
            return shared.top(self.net.heads[depth](h_BC[[b for b, _ in places]], ids_NT), self.shape.ranks)

        self.shape.fill(grown, [room[b] for b in live], ranked)
        return trees

    def _latest(self, sequences, room):
        """Which sequences have a state to start from, and these states."""
        if self.follower is not None:
            return self.follower.follow(sequences, room)
        self.states.keep(sequences, [len(s.ids) - 2 for s in sequences])
        known = {b: h_C for b, s in enumerate(sequences) if room[b] > 0 and (h_C := self.states.last(s)) is not None}
        return list(known), torch.stack(list(known.values())) if known else None
