"""The target's first layers and a small adapter draft; their rows are kept, so that verifying runs only the layers after them.

Kangaroo (Liu et al., 2024). First exit: after a few shallow layers one layer of attention, without an FFN, makes of their state
what the target's own output matrix can read. Second exit: drafting stops after a token of which the adapter was not sure enough
(exit: least probability of its likeliest token), so that hard tokens are left to the target. Every drafted token, the last one
too, goes through the shallow layers once; the verifying pass starts from those rows. attend=false leaves a norm as adapter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lithe.card import Card, knob
from lithe.decode import heads as shared
from lithe.decode.heads import Ends
from lithe.decode.inner import shared as behind
from lithe.decode.trail import States, Trail, body
from lithe.errors import UsageError
from lithe.model.modules import RMSNorm
from lithe.ops.tree import Tree
from lithe.train import fitted
from lithe.train.teacher import LOGITS

CARD = Card(
    paper="Kangaroo: Lossless Self-Speculative Decoding via Double Early Exiting",
    row=95,
    promises=("same_tokens", "same_law"),
    needs=("target_cache",),
    emits=("chain",),
    trains=True,
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of weights that lithe fit made for this target; fresh: untrained ones")
    layers: int = knob(0, "shallow layers before the first exit; 0: the paper's rule, a sixteenth of all, rounded up",
                       low=0, high=64)
    tokens: int = knob(6, "most tokens to draft", low=1, high=64)
    exit: float = knob(0.6, "no token is drafted after one whose law gave its likeliest token less; 0: no second exit",
                       low=0.0, high=1.0)
    attend: bool = knob(True, "attention in the adapter; else it is a norm")
    rate: float = knob(5e-5, "peak learning rate of a fit", low=0.0)


class Adapter(nn.Module):
    SHAPED_BY = ("layers", "attend")

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        layers = knobs.layers or -(-model.config.layers // 16)
        if layers >= model.config.layers:
            raise UsageError(f"layers={layers} leaves nothing to verify with: this model has {model.config.layers} layers")
        self.ends, self.tap = Ends(model), layers - 1
        self.signals = (f"tap:{self.tap}", LOGITS)
        self.body = body(model, ffn=False)
        if not knobs.attend:
            for weight in self.body.parameters():
                nn.init.zeros_(weight.requires_grad_(False))
        self.norm = RMSNorm(model.config.width, model.config.norm_eps, model.norm.offset)
        with torch.no_grad():
            self.norm.weight.copy_(model.norm.weight)

    def all(self, shallow_BTC):
        """The adapter's states, normed, at every row of a text."""
        return self.norm(self.body(embeds=shallow_BTC, logits="none").hidden)

    def guesses(self, batch):
        """At t, from the shallow states up to x_t: logits of x_{t+1}."""
        yield self.ends.logits(self.all(batch[f"tap:{self.tap}"])[:, :-1]), batch["ids_BT"][:, 1:]

    def loss(self, batch):
        guess_BTV = self.ends.logits(self.all(batch[f"tap:{self.tap}"]))
        return shared.soft_cross_entropy(guess_BTV, batch[LOGITS]), batch["ids_BT"].numel()


class Method:
    build = Adapter
    stop = None  # what ends a chain after a token that was read: stop(sequence, tree, state [C]) -> bool

    def __init__(self, knobs: Knobs, model):
        made = fitted.load("kangaroo", knobs, model, Adapter)
        self.knobs, self.model, self.net, self.width = knobs, model, made.module, model.config.width
        self.shallow, self.deep = range(self.net.tap + 1), range(self.net.tap + 1, model.config.layers)
        self.taps = (self.net.tap,)
        self.states, self.trail = States(model.dtype, self.net.tap), Trail(self.net.body)
        self.read = self.states.read
        self.passed: list = []  # of each sequence, the shallow states of the root and of all that was drafted

    def join(self, lanes):
        self.lanes = lanes

    def begun(self, trees):
        """What the verifying pass need not run again."""
        return {"layers": self.deep, "states": [torch.stack(rows[: len(tree)])
                                                for rows, tree in zip(self.passed, trees, strict=True)]}

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1], "chain") for s in sequences]
        wanted, lanes = [min(most, self.knobs.tokens) for most in room], behind(self.lanes)
        rows, self.passed = [[s.ids[-1]] for s in sequences], [[] for _ in sequences]
        waiting = self._committed(sequences, wanted)
        while any(rows):
            out_BTC = lanes.run(rows, layers=self.shallow, logits="none").hidden
            lanes.commit([len(row) for row in rows])
            for b, row in enumerate(rows):
                self.passed[b] += [out_BTC[b, 0]] * len(row)
            going = [b for b, row in enumerate(rows) if row and b in waiting and len(trees[b]) <= wanted[b]]
            states = self._adapt({b: torch.cat((waiting[b], out_BTC[b, :1])) for b in going})
            waiting = {b: out_BTC[b, :0] for b in going}
            rows = [[] for _ in sequences]
            for b, state_C in states.items():
                if len(trees[b]) > 1 and self.stop is not None and self.stop(sequences[b], trees[b], state_C):
                    continue
                sure = self._draw(trees[b], sequences[b], state_C)
                rows[b] = trees[b].tokens[-1:]
                if sure < self.knobs.exit:
                    wanted[b] = 0  # the second exit: this token is the last
        return trees

    def observe(self, rounds):
        """The adapter forgets what was rejected, and one row more, so that it always has one to read."""
        lengths = list(self.trail.lengths)
        lane = {id(s): n for n, s in enumerate(self.trail.held)}
        for r, states in zip(rounds, self.passed, strict=True):
            r.taps[self.net.tap] = torch.stack(states)
            if (n := lane.get(id(r.sequence))) is not None:
                lengths[n] = max(0, min(lengths[n], len(r.sequence.ids) - 2))
        self.trail.cache.truncate(lengths)
        self.states.observe(rounds)

    def stands(self, ids_BT):
        """States [B, T, C] and logits [B, T, V] of the draft at every token of texts: for what learns when it is right."""
        shallow_BTC = self.model(ids_BT, layers=self.shallow, logits="none").hidden
        states_BTC = self.net.all(shallow_BTC)
        return states_BTC, self.net.ends.logits(states_BTC)

    def _committed(self, sequences, wanted):
        """For each sequence that can be drafted for, the shallow states [T, C] that the adapter has not read yet."""
        live = [b for b, s in enumerate(sequences) if wanted[b] > 0 and self.states.last(s) is not None]
        self.trail.sync([sequences[b] for b in live])
        found = {b: self.states.since(sequences[b], n) for b, n in zip(live, self.trail.lengths, strict=True)}
        known = {b: states for b, states in found.items() if states is not None}
        self.order = list(known)
        held = [sequences[b] for b in known]
        self.trail.sync(held)
        self.states.keep(held, self.trail.lengths)
        return known

    def _adapt(self, rows):
        """The adapter's normed states after the rows of these sequences."""
        none = self.net.norm.weight.new_zeros(0, self.width)
        if not rows:
            return {}
        out_BC = self.net.norm(self.trail.advance([rows.get(b, none) for b in self.order]))
        return {b: out_C for b, out_C in zip(self.order, out_BC, strict=True) if b in rows}

    def _draw(self, tree, sequence, state_C):
        """Add a token of the adapter's law, warped as the sequence asks; returns the probability of the likeliest."""
        node = len(tree) - 1
        context = sequence.ids + [tree.tokens[i] for i in tree.path(node)]
        law_V = sequence.law(self.net.ends.logits(state_C)[None], [context])[0].double().softmax(-1)
        if sequence.law.greedy:
            token = int(law_V.argmax())
        else:
            token = sequence.dice.draw(law_V)
            tree.laws[node] = law_V
        tree.add(token, node)
        return float(law_V.max())
