"""A state carried on as EAGLE does, but first sampled by the token that follows, and with room for confidence beside it.

FSPAD (Gui et al., 2024), over EAGLE's layer and EAGLE-2's trees. Feature sampling: the known next token picks from the
uncertain state in a wider space, s = f + W_down(SiLU(W_token E(x)) * W_up f). Partial alignment: the layer's rows have columns
beyond the state's; the state alone is held against the target's and fed back, the guess is read off all of them. The size of
the wider space, the columns and the form of the gate are our reading: no code is known. gate=0,extra=0 is the host, EAGLE-2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import pad, silu, smooth_l1_loss

from lithe.card import Card, knob
from lithe.decode import heads as shared
from lithe.decode.carry import Carried, Carrier
from lithe.decode.heads import Ends, Join
from lithe.decode.trail import body
from lithe.train import fitted
from lithe.train.teacher import FINAL, LOGITS

CARD = Card(
    paper="Boosting Lossless Speculative Decoding via Feature Sampling and Partial Alignment Distillation",
    row=179,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "tap:final"),
    emits=("det",),
    laws=("heads", "gate", "extra"),
    trains=True,
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of weights that lithe fit made for this target; fresh: untrained ones")
    gate: int = knob(2, "the wider space as a multiple of the state's width; 0: no feature sampling", low=0, high=8)
    extra: float = knob(0.25, "columns beside the state as a share of its width; 0: no partial alignment", low=0.0, high=4.0)
    depth: int = knob(6, "levels of the tree", low=1, high=16)
    width: int = knob(10, "paths that each level goes on from, and guesses of each", low=1, high=64)
    nodes: int = knob(60, "tree size without its root", low=1, high=512)
    feature: float = knob(1.0, "weight of the distance to the target's state in a fit", low=0.0)
    law: float = knob(0.1, "weight of the cross-entropy with the target's law in a fit", low=0.0)
    noise: float = knob(0.2, "width of the uniform noise put on states in a fit", low=0.0)
    rate: float = knob(3e-5, "peak learning rate of a fit", low=0.0)


class Sampling(nn.Module):
    """The part of an uncertain state that fits the token known to follow; at the start the state itself."""

    def __init__(self, width: int, times: int):
        super().__init__()
        self.up, self.token = (nn.Linear(width, times * width, bias=False) for _ in range(2))
        self.down = nn.Linear(times * width, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, states, embeds):
        return states + self.down(silu(self.token(embeds)) * self.up(states))


class Heads(Carried):
    SHAPED_BY = ("gate", "extra")
    signals = (FINAL, LOGITS)

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        self.knobs, self.ends, self.width = knobs, Ends(model), model.config.width
        self.more = round(knobs.extra * self.width)
        self.sampling = Sampling(self.width, knobs.gate) if knobs.gate else None
        self.join, self.body = Join(self.width, 2), body(model, more=self.more)
        self.out = nn.Linear(self.width + self.more, self.width, bias=False) if self.more else None
        if self.out is not None:
            with torch.no_grad():
                self.out.weight.zero_().fill_diagonal_(1.0)

    def rows(self, states, ids):
        """The layer's rows [..., C + more]: each state, sampled by the token after it, with that token's embedding."""
        embeds = self.ends.embed(ids, states)
        states = states if self.sampling is None else self.sampling(states, embeds)
        return pad(self.join(states, embeds), (0, self.more))

    def state(self, out):
        """The aligned part [..., C], which is fed back."""
        return out[..., : self.width]

    def logits(self, out):
        return self.ends.logits(out if self.out is None else self.out(out))

    def loss(self, batch):
        true_BTC = batch[FINAL]
        noisy_BTC = true_BTC + (torch.rand_like(true_BTC) - 0.5) * self.knobs.noise
        out_BTC = next(self.roll(noisy_BTC, batch["ids_BT"], 1))
        away = smooth_l1_loss(self.state(out_BTC), true_BTC[:, 1:], reduction="sum") / self.width
        law = shared.soft_cross_entropy(self.logits(out_BTC), batch[LOGITS][:, 1:])
        return self.knobs.feature * away + self.knobs.law * law, batch["ids_BT"][:, 1:].numel()


class Method(Carrier):
    build = Heads

    def __init__(self, knobs: Knobs, model):
        super().__init__(knobs, fitted.load("fspad", knobs, model, Heads).module, model.device)
