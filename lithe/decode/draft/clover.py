"""Heads that share one small attention: each reads the token drafted before it into the state that it was handed.

Clover (Xiao et al., 2024). An augmenting block of attention over all committed states makes s_0 of h_t. Head i adds to s_{i-1}
what the attention decoder takes of the token before it, e_i from the normalised output matrix (the regressive connection): per
attention head the similarity of state and token gates the token's value. The tree keeps, at each node, tokens up to a summed
probability and no less than a share of the best, and of each level the paths that are likeliest. The inner form follows the
successor's code as it was described to us. regress=false and augment=0 leave out one part each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize, smooth_l1_loss

from lithe.card import Card, knob
from lithe.decode import heads as shared
from lithe.decode.heads import Ends, Join, Residual
from lithe.decode.trail import Follower, States, body
from lithe.model.modules import RMSNorm
from lithe.ops.tree import Tree
from lithe.train import fitted
from lithe.train.teacher import FINAL, LOGITS

CARD = Card(
    paper="Clover: Regressive Lightweight Speculative Decoding with Sequential Knowledge",
    row=89,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "tap:final"),
    emits=("det",),
    trains=True,
)
DECAY = 0.7  # a head's weight in the loss, as a share of the one before


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of weights that lithe fit made for this target; fresh: untrained ones")
    depth: int = knob(5, "heads, each guessing one token further", low=1, high=16)
    augment: int = knob(1, "layers of the augmenting block; 0: none", low=0, high=4)
    regress: bool = knob(True, "heads read the token before theirs; else they know the state alone")
    similarity: str = knob("cosine", "of state and token, before it gates the token's value", choices=("cosine", "dot"))
    top_p: float = knob(0.95, "a node's children are the likeliest that reach this probability", low=0.0, high=1.0)
    ratio: float = knob(0.25, "and have at least this share of the best one's", low=0.0, high=1.0)
    width: int = knob(4, "nodes of a level", low=1, high=64)
    nodes: int = knob(20, "tree size without its root; 4 for large batches", low=1, high=512)
    feature: float = knob(10.0, "weight of the distance to the target's state in a fit", low=0.0)
    law: float = knob(1.0, "weight of the cross-entropy with the target's law in a fit", low=0.0)
    rate: float = knob(1e-3, "peak learning rate of a fit", low=0.0)


class Regress(nn.Module):
    """A state and the value of the token after it, gated in each head by their similarity; at the start the state itself."""

    def __init__(self, width: int, heads: int, cosine: bool, eps: float):
        super().__init__()
        self.heads, self.cosine = heads, cosine
        self.norm = RMSNorm(width, eps)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.mlp = Residual(width)
        nn.init.zeros_(self.out.weight)

    def forward(self, states, embeds):
        q, k, v = (part.unflatten(-1, (self.heads, -1))
                   for part in (self.query(self.norm(states)), self.key(embeds), self.value(embeds)))
        alike = (normalize(q, dim=-1) * normalize(k, dim=-1)).sum(-1) if self.cosine else (q * k).sum(-1) * q.shape[-1] ** -0.5
        return self.mlp(states + self.out((alike[..., None] * v).flatten(-2)))


class Heads(nn.Module):
    SHAPED_BY = ("depth", "augment", "regress", "similarity")
    signals = (FINAL, LOGITS)
    tokens_VC: torch.Tensor  # the output matrix's rows, all of one length

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        self.knobs, self.ends, width, eps = knobs, Ends(model), model.config.width, model.config.norm_eps
        self.augment = body(model, knobs.augment) if knobs.augment else None
        heads = next(n for n in (model.config.layer(0).heads or 1, 1) if width % n == 0)
        self.regress = Regress(width, heads, knobs.similarity == "cosine", eps) if knobs.regress else None
        self.joins = nn.ModuleList(Join(width, 2) for _ in range(knobs.depth))
        norms = [RMSNorm(width, eps) for _ in range(knobs.depth)]
        scale = (model.norm.weight.detach() + model.norm.offset).float().square().mean().sqrt()
        for norm in norms:  # what they give begins as long as the target's own states are
            nn.init.constant_(norm.weight, float(scale))
        self.norms = nn.ModuleList(norms)
        self.register_buffer("tokens_VC", normalize(self.ends.matrix().float(), dim=-1) * width**0.5, persistent=False)

    def step(self, i, states, ids):
        """Head i = 0, 1, ... on s_i [..., C] and the tokens [...] after it: s_{i+1}, and what the target would hold there."""
        embeds = self.tokens_VC[ids].to(states.dtype) if self.regress is not None else torch.zeros_like(states)
        states = states if self.regress is None else self.regress(states, embeds)
        return states, self.norms[i](self.joins[i](states, embeds))

    def foretold(self, batch):
        """For head i = 1, 2, ...: a guess of the state at x_{t+i}, from h_t and x_{t+1..t+i}."""
        states_BTC, ids_BT = batch[FINAL], batch["ids_BT"]
        states_BTC = states_BTC if self.augment is None else self.augment(embeds=states_BTC, logits="none").hidden
        for i in range(len(self.joins)):
            states_BTC, guess_BTC = self.step(i, states_BTC[:, : ids_BT.shape[1] - 2 - i], ids_BT[:, i + 1 : -1])
            yield guess_BTC

    def guesses(self, batch):
        """For head i: logits of x_{t+1+i}; x_{t+1} is the root."""
        for i, guess_BTC in enumerate(self.foretold(batch), start=1):
            yield self.ends.logits(guess_BTC), batch["ids_BT"][:, 1 + i :]

    def loss(self, batch):
        total: Any = 0.0
        for i, guess_BTC in enumerate(self.foretold(batch), start=1):  # the row that has read x_{t+i} tells state and law
            away = smooth_l1_loss(guess_BTC, batch[FINAL][:, i:-1], reduction="sum") / guess_BTC.shape[-1]
            law = shared.soft_cross_entropy(self.ends.logits(guess_BTC), batch[LOGITS][:, i:-1])
            total = total + DECAY**i * (self.knobs.feature * away + self.knobs.law * law)
        return total, batch["ids_BT"][:, 2:].numel()


class Method:
    build = Heads

    def __init__(self, knobs: Knobs, model):
        made = fitted.load("clover", knobs, model, Heads)
        self.knobs, self.net, self.device = knobs, made.module, model.device
        self.follower = None if self.net.augment is None else Follower(self.net.augment, lambda s, start, states: states)
        self.states = States(model.dtype) if self.follower is None else self.follower.states
        self.read, self.observe = self.states.read, self.states.observe

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1]) for s in sequences]
        latest = self.states.latest if self.follower is None else self.follower.follow
        live, states_BC = latest(sequences, room)
        if states_BC is None:
            return trees
        scores = {b: [0.0] for b in live}
        front = [(b, 0) for b in live]
        for i in range(len(self.net.joins)):
            kept = [n for n, (b, _) in enumerate(front) if i < room[b]]
            if not kept:
                break
            front = [front[n] for n in kept]
            ids_N = torch.tensor([trees[b].tokens[node] for b, node in front], device=self.device)
            states_NC, guess_NC = self.net.step(i, states_BC[kept], ids_N)
            laws_NV = self.net.ends.logits(guess_NC).double().softmax(-1)
            front, before = self._level(trees, scores, front, laws_NV)
            states_BC = states_NC[before]
        for b in live:
            trees[b] = shared.best(trees[b], scores[b], self.knobs.nodes)
        return trees

    def _level(self, trees, scores, front, laws_NV):
        """Children of the front's nodes: the level's likeliest paths, and for each the place of its parent in the front."""
        met: dict[int, list] = {}
        most = min(self.knobs.width, laws_NV.shape[-1])
        for n, ((b, node), best, tokens) in enumerate(zip(front, *(part.tolist() for part in laws_NV.topk(most)), strict=True)):
            summed = 0.0
            for chance, token in zip(best, tokens, strict=True):
                if chance < self.knobs.ratio * best[0] or (summed >= self.knobs.top_p and summed):
                    break
                summed += chance
                met.setdefault(b, []).append((scores[b][node] + float(torch.tensor(chance).log()), n, token))
        below, before = [], []
        for b, paths in met.items():
            for score, n, token in sorted(paths, key=lambda path: -path[0])[: self.knobs.width]:
                scores[b].append(score)
                below.append((b, trees[b].add(token, front[n][1])))
                before.append(n)
        return below, before
