"""One small layer carries the target's hidden state on, token by token, and reads guesses off it.

EAGLE (Li et al., 2024), sections 3 and 4.1: a row joins the state f_t with the embedding of the token that follows, one decoder
layer makes f_{t+1} of it, the target's own output matrix the law of the token after. What the target accepts replaces guessed
states by true ones. tree=dynamic is EAGLE-2 (2024), section 4: each level goes on from its likeliest paths, and of all that was
met the likeliest nodes are verified. Such trees look at their tokens, so they are walked as chosen ones, never as drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import smooth_l1_loss

from lithe.card import Card, knob
from lithe.decode import heads as shared
from lithe.decode.heads import Ends, Join, Shape
from lithe.decode.sprout import Sprout, likely
from lithe.decode.trail import Follower, body
from lithe.ops.tree import Tree
from lithe.train import fitted
from lithe.train.teacher import FINAL, LOGITS

CARD = Card(
    paper="EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty",
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "tap:final"),
    emits=("det",),
    trains=True,
)
DECAY = 0.8  # weight of a step that reads guessed states, as a share of the step before
MEASURED = 5  # levels whose rates are measured


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of weights that lithe fit made for this target; fresh: untrained ones")
    tree: str = knob("fixed", "rank paths that were right most often, or those that look likeliest each round (EAGLE-2)",
                     choices=("fixed", "dynamic"))
    depth: int = knob(5, "levels of the tree", low=1, high=16)
    width: int = knob(10, "dynamic: paths that each level goes on from, and guesses of each", low=1, high=64)
    nodes: int = knob(25, "tree size without its root; EAGLE-2 takes 60", low=1, high=512)
    feature: float = knob(1.0, "weight of the distance to the target's state in a fit", low=0.0)
    law: float = knob(0.1, "weight of the cross-entropy with the target's law in a fit", low=0.0)
    noise: float = knob(0.2, "width of the uniform noise put on states in a fit", low=0.0)
    roll: int = knob(1, "steps of a fit in which the layer reads its own states; 1 is EAGLE's", low=1, high=8)
    rate: float = knob(3e-5, "peak learning rate of a fit", low=0.0)


class Heads(nn.Module):
    SHAPED_BY = ()
    signals = (FINAL, LOGITS)

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        self.knobs, self.ends = knobs, Ends(model)
        self.join, self.body = Join(model.config.width, 2), body(model)

    def rows(self, states, ids):
        """The layer's rows: each state with the embedding of the token after it."""
        return self.join(states, self.ends.embed(ids, states))

    def roll(self, states_BTC, ids_BT, steps):
        """Step s yields the states its rows t >= s make: guesses of f_{t+1}, from f_t as guessed by the step before."""
        T = ids_BT.shape[1]
        for step in range(steps):
            pos_BT = torch.arange(step, T - 1, device=ids_BT.device).expand(len(ids_BT), -1)
            rows_BTC = self.rows(states_BTC[:, : T - 1 - step], ids_BT[:, step + 1 :])
            states_BTC = self.body(embeds=rows_BTC, pos_BT=pos_BT, logits="none").hidden
            yield states_BTC

    def guesses(self, batch):
        """At level s, from f_t and x_{t+1..t+s}: logits of x_{t+1+s}; x_{t+1} is the root."""
        ids_BT = batch["ids_BT"]
        for step, states_BTC in enumerate(self.roll(batch[FINAL], ids_BT, min(self.knobs.depth, MEASURED))):
            yield self.ends.logits(states_BTC[:, :-1]), ids_BT[:, step + 2 :]

    def loss(self, batch):
        true_BTC, total = batch[FINAL], 0.0
        given_BTC = true_BTC + (torch.rand_like(true_BTC) - 0.5) * self.knobs.noise
        for step, states_BTC in enumerate(self.roll(given_BTC, batch["ids_BT"], self.knobs.roll)):
            away = smooth_l1_loss(states_BTC, true_BTC[:, step + 1 :], reduction="sum") / states_BTC.shape[-1]
            law = shared.soft_cross_entropy(self.ends.logits(states_BTC), batch[LOGITS][:, step + 1 :])
            total = total + DECAY**step * (self.knobs.feature * away + self.knobs.law * law)
        return total, batch["ids_BT"][:, 1:].numel()


class Method:
    build = Heads

    def __init__(self, knobs: Knobs, model):
        made = fitted.load("eagle", knobs, model, Heads)
        self.knobs, self.net, self.device = knobs, made.module, model.device
        rates = list(made.rates or shared.usual_rates(1))[: knobs.depth]
        rates += [rates[-1]] * (knobs.depth - len(rates))
        self.shape = Shape(shared.likeliest(rates, knobs.nodes))
        self.follower = Follower(self.net.body, self._rows)
        self.read, self.observe = self.follower.read, self.follower.observe

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1]) for s in sequences]
        live, f_BC = self.follower.follow(sequences, room)
        if not live:
            return trees
        grown, most = [trees[b] for b in live], [min(room[b], self.knobs.depth) for b in live]
        sprout = self._sprout(grown, f_BC)
        logits = lambda places: self.net.ends.logits(sprout(places))
        if self.knobs.tree == "fixed":
            self.shape.fill(grown, most, lambda depth, places: shared.top(logits(places), self.shape.ranks))
            return trees
        found = likely(grown, most, logits, width=self.knobs.width, nodes=self.knobs.nodes)
        for b, tree in zip(live, found, strict=True):
            trees[b] = tree
        return trees

    def _sprout(self, trees, f_BC):
        """Guessed states of the nodes of growing trees; a node's row joins the state guessed before it with its token."""

        def enter(places):
            before = torch.stack([sprout.said[b, trees[b].parents[node]] for b, node in places])
            return self.net.rows(before, torch.tensor([trees[b].tokens[node] for b, node in places], device=self.device))

        sprout = Sprout(self.follower.trail, trees, enter, roots_BC=f_BC)
        return sprout

    def _rows(self, sequence, start, states):
        ids = torch.tensor(sequence.ids[start + 1 : start + 1 + len(states)], device=self.device)
        return self.net.rows(states, ids)
