"""A draft that reads all tokens: three-token encodings of what it drafted, and attention over the target's states of the rest.

Chimera (Zeng et al., 2024). Short range: g_t of the embeddings of x_{t-2}, x_{t-1}, x_t, by a residual block and a matrix.
Full context: one layer of attention over g_t and the target's states of all that was verified makes a stand-in for the state
that the target has not computed; later drafted tokens see the stand-ins of those before them. One head on the last verified
state and the stand-in is repeated, level by level, along a fixed tree. It learns tokens and states in one pass for all places,
then with its own stand-ins fed back, `roll` places in all. trigram=false and context=false leave out one encoder each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lithe.card import Card, knob
from lithe.decode import heads as shared
from lithe.decode.heads import Ends, Residual, Shape, cross_entropy, onto
from lithe.decode.sprout import Sprout
from lithe.decode.trail import Follower, Trail, body
from lithe.ops.tree import Tree
from lithe.train import fitted
from lithe.train.teacher import FINAL

CARD = Card(
    paper="Chimera: A Lossless Decoding Method for Accelerating Large Language Models Inference by Fusing all Tokens",
    row=79,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "tap:final"),
    emits=("det",),
    trains=True,
)
MEASURED = 4  # levels whose rates are measured


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of weights that lithe fit made for this target; fresh: untrained ones")
    depth: int = knob(5, "levels of the tree", low=1, high=16)
    trigram: bool = knob(True, "encode three tokens at once; else a drafted token is its embedding alone")
    context: bool = knob(True, "a drafted token sees the target's states of the text before it; else those drafted alone")
    own: bool = knob(True, "an output matrix of its own on both states, instead of the target's")
    nodes: int = knob(25, "tree size without its root", low=1, high=512)
    roll: int = knob(4, "places in a row that a fit drafts, its own stand-ins fed back; 1: none are", low=1, high=8)
    state: float = knob(1.0, "weight of the squared distance to the target's state in a fit", low=0.0)
    rate: float = knob(2e-4, "peak learning rate of a fit", low=0.0)


class Trigram(nn.Module):
    """Three embeddings [..., 3, C] made one state [..., C]; at the start it is the last of them."""

    def __init__(self, width: int):
        super().__init__()
        self.block, self.join = Residual(3 * width), nn.Linear(3 * width, width)
        with torch.no_grad():
            self.join.bias.zero_()
            self.join.weight.zero_()[:, 2 * width :].fill_diagonal_(1.0)

    def forward(self, embeds):
        return self.join(self.block(embeds.flatten(-2)))


class Heads(nn.Module):
    SHAPED_BY = ("trigram", "context", "own")
    signals = (FINAL,)

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        self.knobs, self.ends, width = knobs, Ends(model), model.config.width
        self.trigram = Trigram(width) if knobs.trigram else None
        self.body = body(model, passes=1 + max(knobs.roll, MEASURED))  # a fit's pass holds each text so many times
        # Both halves begin as the target's own matrix, whether it is copied or looked through.
        self.head = nn.Linear(2 * width, self.ends.vocab if knobs.own else width, bias=False)
        with torch.no_grad():
            start = self.ends.matrix().float() if knobs.own else torch.eye(width)
            self.head.weight.copy_(torch.cat((start, start), dim=1))

    def encode(self, ids, like):
        """g [..., C] of three ids [..., 3], the last one being the token itself."""
        embeds = self.ends.embed(ids, like)
        return embeds[..., -1, :] if self.trigram is None else self.trigram(embeds)

    def logits(self, verified, stand_ins):
        """Of the token after: from the last verified state and the stand-in [..., C] of the last drafted token."""
        out = self.head(torch.cat((verified, stand_ins), dim=-1))
        return out if self.knobs.own else self.ends.logits(out)

    def roll(self, states_BTC, ids_BT, steps):
        """Step s yields stand-ins [B, T - s, C] for the tokens from place s on, each drafted after s - 1 others.

        A pass holds the target's states, the stand-ins of earlier steps and g of all tokens. A row of step s at place p sees
        states up to p - s, the stand-in of step k at p - s + k, and itself.
        """
        B, T = ids_BT.shape
        before_BT = torch.cat((ids_BT[:, :1], ids_BT[:, :1], ids_BT), dim=1)  # at the start the first one is repeated
        g_BTC = self.encode(before_BT.unfold(1, 3, 1), states_BTC)
        place_T = torch.arange(T, device=ids_BT.device)
        kept: list[Any] = []
        for step in range(1, steps + 1):
            parts = [states_BTC, *kept, g_BTC[:, step:]]
            places = torch.cat([place_T, *(place_T[k:] for k in range(1, step + 1))])
            kinds = torch.cat([torch.full((len(place_T[k:]),), k, device=ids_BT.device) for k in range(step + 1)])
            out_BNC = self.body(embeds=torch.cat(parts, dim=1), pos_BT=places.expand(B, -1), logits="none",
                                mask=self.sees(places, kinds, step).expand(B, -1, -1)).hidden
            kept.append(out_BNC[:, -(T - step) :])
            yield kept[-1]

    def sees(self, places, kinds, step):
        """Who sees whom [N, N] in that pass; a row that nothing is read off sees itself and no more."""
        behind = places[:, None] - places[None, :]
        states = (kinds == 0)[None, :] & (behind >= step) & self.knobs.context
        drafted = (kinds[None, :] > 0) & (kinds[None, :] < step) & (behind == step - kinds[None, :])
        return ((kinds == step)[:, None] & (states | drafted)) | torch.eye(len(places), dtype=torch.bool, device=places.device)

    def guesses(self, batch, steps=MEASURED):
        """At level s, from states up to h_t and x_{t+1..t+s}: logits of x_{t+1+s}; x_{t+1} is the root."""
        ids_BT, states_BTC = batch["ids_BT"], batch[FINAL]
        for s, stand_in_BTC in enumerate(self.roll(states_BTC, ids_BT, min(steps, self.knobs.depth)), start=1):
            yield self.logits(states_BTC[:, : -1 - s], stand_in_BTC[:, :-1]), ids_BT[:, 1 + s :]

    def loss(self, batch):
        ids_BT, states_BTC, total = batch["ids_BT"], batch[FINAL], 0.0
        for s, stand_in_BTC in enumerate(self.roll(states_BTC, ids_BT, self.knobs.roll), start=1):
            logits_BTV = self.logits(states_BTC[:, : -1 - s], stand_in_BTC[:, :-1])
            away = (stand_in_BTC - states_BTC[:, s:]).square().mean(-1).sum()
            total = total + cross_entropy(logits_BTV, ids_BT[:, 1 + s :]) + self.knobs.state * away
        return total, ids_BT[:, 2:].numel()


class Method:
    build = Heads

    def __init__(self, knobs: Knobs, model):
        made = fitted.load("chimera", knobs, model, Heads)
        self.knobs, self.net, self.device = knobs, made.module, model.device
        rates = list(made.rates or shared.usual_rates(1))[: knobs.depth]
        rates += [rates[-1]] * (knobs.depth - len(rates))
        self.shape = Shape(shared.likeliest(rates, knobs.nodes))
        self.follower = Follower(self.net.body, lambda s, start, states: states)
        self.read, self.observe = self.follower.read, self.follower.observe

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1]) for s in sequences]
        verified = [self.follower.states.last(s) for s in sequences]  # h_t: the root's own state is not known yet
        live, _ = self.follower.follow(sequences, room)
        if not live:
            return trees
        grown, held = [trees[b] for b in live], [sequences[b] for b in live]
        last_BC = torch.stack([h_C for b in live if (h_C := verified[b]) is not None])

        def enter(places):
            ids_N3 = [([s.ids[0]] * 2 + s.ids[-3:-1] + onto(grown[b], node))[-3:] for b, node in places for s in [held[b]]]
            return self.net.encode(torch.tensor(ids_N3, device=self.device), last_BC)

        trail = self.follower.trail
        if not self.net.knobs.context:
            trail = Trail(self.net.body)  # an empty one: places count from anywhere, for only their distance matters
            trail.sync(held)
        sprout = Sprout(trail, grown, enter, back=True)

        def ranked(depth, places):
            return shared.top(self.net.logits(last_BC[[b for b, _ in places]], sprout(places)), self.shape.ranks)

        self.shape.fill(grown, [min(room[b], self.knobs.depth) for b in live], ranked)
        return trees
