"""Heads on the last hidden state each guess one token further ahead; a fixed tree combines their likeliest guesses.

Medusa-1 (Cai et al., 2024), sections 2.1 to 2.3.1 and 2.3.3. Head i is a residual SiLU block and an output matrix of its own;
it reads the state h_t of the last token that was read and guesses the i-th token after the root, knowing none of those between.
The tree holds the rank paths that were right most often on text kept apart from the fit. The target stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lithe.card import Card, knob
from lithe.decode.heads import Ends, Output, Residual, Shape, cross_entropy, likeliest, top, usual_rates
from lithe.decode.trail import States
from lithe.ops.tree import Tree
from lithe.train import fitted
from lithe.train.teacher import FINAL

CARD = Card(
    paper="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "tap:final"),
    emits=("det",),
    trains=True,
)
DECAY = 0.8  # a head's weight in the loss, as a share of the one before


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of weights that lithe fit made for this target; fresh: untrained ones")
    depth: int = knob(5, "heads, each guessing one token further", low=1, high=16)
    layers: int = knob(1, "residual blocks of a head", low=1, high=8)
    own: bool = knob(True, "an output matrix for each head, instead of the target's for all")
    nodes: int = knob(63, "tree size without its root", low=1, high=512)
    rate: float = knob(1e-3, "peak learning rate of a fit", low=0.0)


class Heads(nn.Module):
    SHAPED_BY = ("depth", "layers", "own")
    signals = (FINAL,)

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        ends, width = Ends(model), model.config.width
        self.heads = nn.ModuleList(nn.Sequential(*(Residual(width) for _ in range(knobs.layers)), Output(ends, knobs.own))
                                   for _ in range(knobs.depth))

    def guesses(self, batch):
        """For head i: logits from h_t and the token x_{t+1+i} that they foretell; x_{t+1} is the root."""
        h_BTC, ids_BT = batch[FINAL], batch["ids_BT"]
        for i, head in enumerate(self.heads, start=1):
            yield head(h_BTC[:, : -1 - i]), ids_BT[:, 1 + i :]

    def loss(self, batch):
        losses = [cross_entropy(*guess) * DECAY**i for i, guess in enumerate(self.guesses(batch))]
        return sum(losses), batch["ids_BT"][:, 2:].numel()


class Method:
    build = Heads

    def __init__(self, knobs: Knobs, model):
        made = fitted.load("medusa", knobs, model, Heads)
        self.heads, self.states = made.module.heads, States(model.dtype)
        self.shape = Shape(likeliest(made.rates or usual_rates(len(self.heads)), knobs.nodes))
        self.read, self.observe = self.states.read, self.states.observe

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1]) for s in sequences]
        self.states.keep(sequences, [len(s.ids) - 2 for s in sequences])
        known = {b: h_C for b, s in enumerate(sequences) if room[b] > 0 and (h_C := self.states.last(s)) is not None}
        lists = []
        if known:
            h_BC = torch.stack(list(known.values()))
            lists = [dict(zip(known, top(head(h_BC), self.shape.ranks), strict=True)) for head in self.heads]

        def ranked(depth, places):
            return [lists[depth].get(b, []) if lists else [] for b, _ in places]

        self.shape.fill(trees, room, ranked)
        return trees
