"""One small layer carries the target's hidden state on, token by token, and reads guesses off it.

EAGLE (Li et al., 2024), sections 3 and 4.1: a row joins the state f_t with the embedding of the token that follows, one decoder
layer makes f_{t+1} of it, the target's own output matrix the law of the token after. What the target accepts replaces guessed
states by true ones. tree=dynamic is EAGLE-2 (2024), section 4: each level goes on from its likeliest paths, and of all that was
met the likeliest nodes are verified. Such trees look at their tokens, so they are walked as chosen ones, never as drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import smooth_l1_loss

from lithe.card import Card, knob
from lithe.decode import heads as shared
from lithe.decode.carry import Carried, Carrier
from lithe.decode.heads import Ends, Join, Shape
from lithe.decode.trail import body
from lithe.train import fitted
from lithe.train.teacher import FINAL, LOGITS

CARD = Card(
    paper="EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty",
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "tap:final"),
    emits=("det",),
    laws=("heads",),
    trains=True,
)
DECAY = 0.8  # weight of a step that reads guessed states, as a share of the step before


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


class Heads(Carried):
    SHAPED_BY = ()
    signals = (FINAL, LOGITS)

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        self.knobs, self.ends = knobs, Ends(model)
        self.join, self.body = Join(model.config.width, 2), body(model)

    def rows(self, states, ids):
        """The layer's rows: each state with the embedding of the token after it."""
        return self.join(states, self.ends.embed(ids, states))

    def logits(self, said):
        return self.ends.logits(said)

    def loss(self, batch):
        true_BTC, total = batch[FINAL], 0.0
        given_BTC = true_BTC + (torch.rand_like(true_BTC) - 0.5) * self.knobs.noise
        for step, states_BTC in enumerate(self.roll(given_BTC, batch["ids_BT"], self.knobs.roll)):
            away = smooth_l1_loss(states_BTC, true_BTC[:, step + 1 :], reduction="sum") / states_BTC.shape[-1]
            law = shared.soft_cross_entropy(self.ends.logits(states_BTC), batch[LOGITS][:, step + 1 :])
            total = total + DECAY**step * (self.knobs.feature * away + self.knobs.law * law)
        return total, batch["ids_BT"][:, 1:].numel()


class Method(Carrier):
    build = Heads

    def __init__(self, knobs: Knobs, model):
        made = fitted.load("eagle", knobs, model, Heads)
        super().__init__(knobs, made.module, model.device)
        rates = list(made.rates or shared.usual_rates(1))[: knobs.depth]
        rates += [rates[-1]] * (knobs.depth - len(rates))
        self.shape = Shape(shared.likeliest(rates, knobs.nodes))

    def shaped(self, trees, most, ask):
        if self.knobs.tree == "dynamic":
            return super().shaped(trees, most, ask)
        self.shape.fill(trees, most, lambda depth, places: shared.top(ask(places), self.shape.ranks))
        return trees
