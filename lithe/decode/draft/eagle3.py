"""One small layer reads low, middle and high states of the target and drafts on from its own, as it did while it learned.

EAGLE-3 (Li et al., 2025), section 3. Three taps are fused into one state g_t; joined with the embedding of the token that
follows, one decoder layer makes a state of it, and an output matrix of its own, over the commonest tokens only, the law of the
token after. No state is compared with the target's: what the layer makes takes the place of g one token on. In a fit it is
tested as it is used: each later step reads the states of the step before, and attends to the text up to where it left it and
to its own states since (training-time test). Trees are EAGLE-2's.

Axes: B rows, T tokens, C width, V the draft's vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lithe.card import Card, knob
from lithe.decode.beside import Beside
from lithe.decode.carry import Carried, Carrier
from lithe.decode.heads import Ends, Join
from lithe.decode.trail import body
from lithe.errors import FormatError
from lithe.model.modules import RMSNorm
from lithe.train import fitted
from lithe.train.teacher import LOGITS

CARD = Card(
    paper="EAGLE-3: Scaling up Inference Acceleration of Large Language Models via Training-Time Test",
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather"),
    emits=("det",),
    laws=("heads", "layers", "fused", "vocab"),
    trains=True,
)
DECAY = 0.8  # weight of a step in the loss, as a share of the step before


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of weights that lithe fit made for this target; fresh: untrained ones")
    depth: int = knob(6, "levels of the tree", low=1, high=16)
    width: int = knob(10, "paths that each level goes on from, and guesses of each", low=1, high=64)
    nodes: int = knob(60, "tree size without its root", low=1, high=512)
    steps: int = knob(7, "steps of a fit, of which all but the first read the layer's own states; 1: no training-time test",
                      low=1, high=16)
    layers: int = knob(1, "decoder layers; the paper has one", low=1, high=16)
    fused: bool = knob(True, "low, middle and high states of the target instead of the last layer's alone")
    vocab: int = knob(0, "tokens that can be guessed, the commonest of the text it learns from; 0: all", low=0)
    rate: float = knob(5e-5, "peak learning rate of a fit", low=0.0)


def tapped(layers: int) -> tuple[int, int, int]:
    """The layers whose outputs are fused, highest first: the authors' 2, L/2 and L - 3 of 32, nearer the ends of fewer."""
    aside = min(2, layers // 8)
    return layers - 1 - aside, layers // 2, aside


class Heads(Carried):
    SHAPED_BY = ("layers", "fused", "vocab")
    tokens: torch.Tensor

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        self.knobs, self.ends, width = knobs, Ends(model), model.config.width
        self.taps = tapped(model.config.layers)[: 3 if knobs.fused else 1]
        self.signals = (*(f"tap:{layer}" for layer in dict.fromkeys(self.taps)), LOGITS)
        self.fuse, self.join, self.body = Join(width, len(self.taps)), Join(width, 2), body(model, knobs.layers)
        self.norm = RMSNorm(width, model.config.norm_eps, model.config.norm_offset)
        self.norm.load_state_dict(model.norm.state_dict())
        known = min(knobs.vocab or self.ends.vocab, self.ends.vocab)
        self.register_buffer("tokens", torch.arange(known))
        self.output = nn.Parameter(self.ends.matrix().float()[:known])

    def prepare(self, ids) -> None:
        """Guess the commonest tokens of the text to learn from."""
        counts_V = torch.bincount(torch.as_tensor(ids).long(), minlength=self.ends.vocab)
        self.tokens = counts_V.argsort(descending=True, stable=True)[: len(self.tokens)].sort().values
        self.output.data = self.ends.matrix()[self.tokens].to(self.output)

    def rows(self, states, ids):
        """The layer's rows: each state with the embedding of the token after it."""
        return self.join(states, self.ends.embed(ids, states))

    def fused(self, taps):
        return self.fuse(*taps.split(taps.shape[-1] // len(self.taps), -1))

    def small(self, states):
        """Logits [..., V] over the draft's own vocabulary."""
        return F.linear(self.norm(states), self.output)

    def logits(self, states):
        """Logits over the target's: what cannot be guessed has none."""
        some = self.small(states)
        if len(self.tokens) == self.ends.vocab:
            return some
        whole = some.new_full((*some.shape[:-1], self.ends.vocab), float("-inf"))
        return whole.index_copy(-1, self.tokens, some)

    def rollout(self, batch, steps: int):
        """Step s yields states whose row t foretells x_{t+2+s}, the tokens up to x_{t+1+s} being known, the states up to t."""
        ids_BT = batch["ids_BT"]
        states_BTC = self.fuse(*(batch[f"tap:{layer}"] for layer in self.taps))[:, :-1]
        B, T, _ = states_BTC.shape
        cache, seen_TS = Beside(self.body, T, B), torch.ones(T, T, dtype=torch.bool, device=ids_BT.device).tril()
        for step in range(min(steps, T - 1)):
            following_BT = F.pad(ids_BT[:, step + 1 :], (0, step))  # rows that look past the end count for nothing
            cache.seen_GS = seen_TS if step == 0 else torch.cat((cache.seen_GS, torch.eye(T, dtype=torch.bool).to(seen_TS)), 1)
            pos_BT = torch.arange(step, T + step, device=ids_BT.device).expand(B, -1)
            states_BTC = self.body(embeds=self.rows(states_BTC, following_BT), pos_BT=pos_BT, cache=cache, logits="none").hidden
            yield states_BTC[:, : T - step]

    def guesses(self, batch):
        """At level s, from true states up to t and x_{t+1..t+1+s}: logits of x_{t+2+s}; x_{t+1} is the root."""
        for step, states_BTC in enumerate(self.rollout(batch, self.knobs.depth)):
            yield self.logits(states_BTC[:, :-1]), batch["ids_BT"][:, step + 2 :]

    def loss(self, batch):
        total = 0.0
        for step, states_BTC in enumerate(self.rollout(batch, self.knobs.steps)):
            law_BTV = batch[LOGITS][:, step + 1 :].index_select(-1, self.tokens).softmax(-1)  # of what it can guess
            total = total - DECAY**step * (law_BTV * self.small(states_BTC).log_softmax(-1)).sum()
        return total, torch.tensor(batch["ids_BT"][:, 1:].numel())


class Method(Carrier):
    build = Heads

    def __init__(self, knobs: Knobs, model):
        made = fitted.load("eagle3", knobs, model, Heads)
        self.taps, tokens = made.module.taps, made.module.tokens
        if tokens.min() < 0 or tokens.max() >= model.config.vocab:
            raise FormatError(f"{knobs.heads} draws its guesses from tokens that this target does not have")
        super().__init__(knobs, made.module, model.device, *self.taps)
