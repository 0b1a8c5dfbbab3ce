"""A small model drafts with its layers side by side: the attentions of a group all read what the group's first one reads.

EasySpec (Wu et al., 2025). The first and the last layer run as ever; those between are cut into groups. In a group every
attention takes the same input, so that several devices may compute them at once; then, in order, each is added and the FFN
of its layer follows. What such a pass caches is only near the truth: it is dropped at the next round, whose first pass reads
what was committed layer by layer and gives the first law. Tokens are drawn from the law in use: the output is the target's.

On one device the groups run one after the other: exactness and schedule are the paper's, its speed is not to be had here.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.decode.inner import grow
from lithe.decode.lanes import Lanes
from lithe.decode.second import WAITING, Second
from lithe.model.decoder import NONE, Output
from lithe.ops.tree import Tree

CARD = Card(
    paper="EasySpec: Layer-Parallel Speculative Decoding for Efficient Multi-GPU Utilization",
    row=96,
    promises=("same_tokens", "same_law"),
    needs=("second_model",),
    emits=("chain",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    model: str = knob("zoo:tiny-draft", "the model that drafts: a folder or zoo:name, with the target's tokenizer")
    tokens: int = knob(4, "tokens to draft each round", low=1, high=64)
    group: int = knob(4, "layers whose attentions read the same input; 1 is the model as it is", low=1, high=64)
    calibrate: bool = knob(True, "drop what group passes cached, and read what was committed once more, exactly")
    ffn: str = knob("serial", "a group's FFNs in turn, as in the paper, or beside the attentions", choices=("serial", "beside"))


def groups(layers: int, size: int) -> list[tuple[int, ...]]:
    """Consecutive layers that run together: the first and the last alone.

    >>> groups(9, 4)
    [(0,), (1, 2, 3, 4), (5, 6, 7), (8,)]
    """
    between = range(1, layers - 1)
    cut = [tuple(between[at : at + size]) for at in range(0, len(between), size)]
    return [(0,), *cut, (layers - 1,)] if layers > 1 else [(0,)]


class Side(Lanes):
    """Lanes on which groups of layers run side by side, once a first pass that was `exact` has given a law."""

    def __init__(self, model, *, size: int, ffn: str):
        super().__init__(model)
        self.groups, self.serial, self.exact = groups(model.config.layers, size), ffn == "serial", True
        self.turns = 0  # attentions one after the other, in all passes: what groups save

    def run(self, ids, **said) -> Output:
        together = [] if self.exact else self.groups
        self.turns += len(together) or self.model.config.layers
        if all(len(group) == 1 for group in together):
            self.exact &= said.get("logits") == NONE
            return super().run(ids, **said)
        if not self.serial:
            return super().run(ids, layers=[group if len(group) > 1 else group[0] for group in together], **said)
        x_BTC = super().run(ids, layers=(), logits=NONE).hidden
        for group in together:
            x_BTC = self._group(ids, x_BTC, group)
        return Output(self.model.head(x_BTC), x_BTC)

    def ahead(self, ids, goal, **parts):
        """Several passes in one call, where no layers are side by side."""
        if any(len(group) > 1 for group in self.groups):
            return None
        found = super().ahead(ids, goal, **parts)
        self.turns += self.model.config.layers * len(found.tokens_BN[0]) if found else 0
        return found

    def _group(self, ids, x_BTC, group):
        """One attention after the other on the same input, as if side by side; then each is added and its FFN follows."""
        part = lambda states, i, *left: super(Side, self).run(ids, states=list(states), layers=[i], logits=NONE,
                                                              skip=[(i, half) for half in left]).hidden
        if len(group) == 1:
            return part(x_BTC, group[0])
        added = [part(x_BTC, i, "mlp") - x_BTC for i in group]
        for i, a_BTC in zip(group, added, strict=True):
            x_BTC = part(x_BTC + a_BTC, i, "attn")
        return x_BTC


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.second = knobs, Second(knobs.model, model)
        self.lanes = Side(self.second.model, size=knobs.group, ffn=knobs.ffn)

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1], "chain") for s in sequences]
        wanted = [min(most, self.knobs.tokens, self.second.reach(s)) for s, most in zip(sequences, room, strict=True)]
        live = [b for b, want in enumerate(wanted) if want > 0]
        if live:
            self.lanes.exact = True
            self.lanes.sync([sequences[b] for b in live])
            if max(len(sequences[b].ids) - n for b, n in zip(live, self.lanes.cache.lengths, strict=True)) > WAITING:
                self.lanes.prefill()
            rows = [sequences[b].ids[n:] for b, n in zip(live, self.lanes.cache.lengths, strict=True)]
            sure = [len(sequences[b].ids) for b in live]
            grow(self.lanes, [sequences[b] for b in live], [trees[b] for b in live], [wanted[b] for b in live], rows,
                 vocab=self.second.vocab)
            if self.knobs.calibrate:
                self.lanes.cut(sure)
        return trees

    def observe(self, rounds):
        """Nothing to learn: the next round begins with what was committed."""
