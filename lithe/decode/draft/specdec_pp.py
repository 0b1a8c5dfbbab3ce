"""A head on the draft's state tells how likely each token is accepted; drafting stops once a rejection is likely enough.

SpecDec++ (Huang et al., 2024). The best chain ends where the chance that one of its tokens is rejected exceeds a threshold. The
head reads the draft's state after a token and gives the chance that the target takes it; their product over the round's tokens
is the chance that none is rejected. The token after which drafting stops is kept, so the output's law holds. The head learns
from what the target and the draft say of the same text; the draft stays as it is. Any draft of chains that can be stopped will
do: draft=name(knob=value;...); where none is named, a small model drafts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lithe import registry
from lithe.card import Card, knob
from lithe.decode.heads import Residual
from lithe.decode.plan import shapeable
from lithe.errors import UsageError
from lithe.train import fitted
from lithe.train.teacher import LOGITS

CARD = Card(
    paper="SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths",
    row=66,
    promises=("same_tokens", "same_law"),
    needs=("second_model", "target_cache"),
    emits=("chain",),
    trains=True,
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of weights that lithe fit made for this target; fresh: untrained ones")
    model: str = knob("zoo:tiny-draft", "the model that drafts, where no draft is named: a folder or zoo:name")
    draft: str = knob("", "the draft of chains that is stopped, as name(knob=value;knob=value)")
    threshold: float = knob(0.3, "stop once the chance that some drafted token is rejected exceeds this", low=0.0, high=1.0)
    least: int = knob(2, "tokens before which drafting never stops", low=1, high=64)
    most: int = knob(20, "tokens at which it always does", low=1, high=64)
    layers: int = knob(3, "times the head's residual block is run", low=1, high=16)
    mix: float = knob(0.15, "share of the text's own tokens in what a fit shows the draft; the others are its own draws",
                      low=0.0, high=1.0)
    temperature: float = knob(1.0, "of both laws in a fit; 0: learn whether the two agree on the likeliest token", low=0.0)
    reject: float = knob(6.0, "weight of rejected tokens in the loss; accepted ones have 1", low=0.0)
    rate: float = knob(5e-5, "peak learning rate of a fit", low=0.0)


class Head(nn.Module):
    SHAPED_BY = ("model", "draft", "layers")
    signals = (LOGITS,)

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        self.knobs, self.draft = knobs, _draft(knobs, model)
        self.block, self.end = Residual(self.draft.width), nn.Linear(self.draft.width, 2)

    def forward(self, states):
        """Logarithms [..., 2] of the chances that the token just read is rejected and accepted; states [..., C]."""
        states = states.to(self.end.weight.dtype)  # a small model may be of another precision than the target
        for _ in range(self.knobs.layers):
            states = self.block(states)
        return self.end(states).log_softmax(-1)

    def lesson(self, batch):
        """The draft's states [B, T - 1, C] after its own tokens, the chance that each is accepted, and which are its own."""
        ids_BT, mix = batch["ids_BT"], self.knobs.mix
        with torch.no_grad():
            _, draft_BTV = self.draft.stands(ids_BT)
            said_BT, accepted_BT = self._accepted(draft_BTV[:, :-1], batch[LOGITS][:, :-1])
            own_BT = torch.rand(said_BT.shape, device=ids_BT.device) >= mix
            mixed_BT = torch.cat((ids_BT[:, :1], torch.where(own_BT, said_BT, ids_BT[:, 1:])), dim=1)
            states_BTC = self.draft.stands(mixed_BT)[0][:, 1:]
        return states_BTC.to(self.end.weight.dtype), accepted_BT, own_BT

    def _accepted(self, draft_BTV, target_BTV):
        """Tokens the draft says and the chance min(1, p / q) that the target takes each."""
        if self.knobs.temperature == 0:
            said_BT = draft_BTV.argmax(-1)
            return said_BT, (said_BT == target_BTV.argmax(-1)).to(draft_BTV.dtype)
        q_BTV, p_BTV = ((part / self.knobs.temperature).softmax(-1) for part in (draft_BTV, target_BTV.to(draft_BTV)))
        said_BT1 = torch.multinomial(q_BTV.flatten(0, 1), 1).view(*q_BTV.shape[:2], 1)
        ratio_BT1 = p_BTV.gather(-1, said_BT1) / q_BTV.gather(-1, said_BT1).clamp_min(1e-30)
        return said_BT1[..., 0], ratio_BT1[..., 0].clamp_max(1.0)

    def loss(self, batch):
        states_BTC, accepted_BT, own_BT = self.lesson(batch)
        log_BT2 = self(states_BTC)
        nats_BT = -(self.knobs.reject * (1 - accepted_BT) * log_BT2[..., 0] + accepted_BT * log_BT2[..., 1])
        return (nats_BT * own_BT).sum(), int(own_BT.sum())


class Method:
    build = Head

    def __init__(self, knobs: Knobs, model):
        self.knobs, self.head = knobs, fitted.load("specdec_pp", knobs, model, Head).module
        self.draft = self.head.draft
        self.draft.stop = self.stop
        self.taken: dict[int, float] = {}  # by sequence, the chance that all tokens of this round are accepted

    def __getattr__(self, verb):
        """All but when to stop is the draft's own affair: what it reads, learns, and has run already."""
        if verb == "draft":
            raise AttributeError(verb)
        return getattr(self.draft, verb)

    def join(self, lanes):
        if hasattr(self.draft, "join"):
            self.draft.join(lanes)

    def propose(self, sequences, room):
        self.taken = dict.fromkeys((s.number for s in sequences), 1.0)
        return self.draft.propose(sequences, room)

    def observe(self, rounds):
        self.draft.observe(rounds)

    def stop(self, sequence, tree, state_C):
        """Whether the token just read, the tree's last, is the round's last."""
        self.taken[sequence.number] *= float(self.head(state_C)[1].exp())
        return len(tree) - 1 >= self.knobs.least and 1 - self.taken[sequence.number] > self.knobs.threshold


def _draft(knobs, model):
    """The draft to be stopped. Raises UsageError for one that cannot be."""
    if knobs.draft:
        spec = registry.parse(knobs.draft.replace("(", ":").replace(";", ",").removesuffix(")"), "draft")
    else:
        spec = registry.Spec(shapeable().entry, {"model": knobs.model})
    if not all(hasattr(spec.entry.module.Method, verb) for verb in ("stop", "stands")):
        able = [e.name for e in registry.entries("decode", "draft") if e.card.emits == ("chain",)
                and hasattr(e.module.Method, "stop") and hasattr(e.module.Method, "stands")]
        raise UsageError(f"{spec.entry.name} drafts no chain that can be stopped; these do: {', '.join(able)}")
    spec.values.setdefault("tokens", knobs.most)
    return spec.entry.module.Method(spec.knobs, model)
