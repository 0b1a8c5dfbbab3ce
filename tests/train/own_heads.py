"""Guess what follows next with one matrix of its own."""

from dataclasses import dataclass

import torch
from torch import nn

from lithe.card import Card, knob
from lithe.ops.tree import Tree
from lithe.train import fitted

CARD = Card(paper="Mine", promises=("same_tokens",), needs=("tap:final",), emits=("det",), trains=True, shelf="decode/draft")


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of fitted weights")
    wide: bool = knob(False, "whether it has a bias")
    nodes: int = knob(1, "guesses", low=1, high=4)
    rate: float = knob(0.02, "peak learning rate", low=0.0)


class Heads(nn.Module):
    SHAPED_BY = ("wide",)
    signals = ("tap:final", "tap:0", "logits")

    def __init__(self, knobs, model):
        super().__init__()
        self.linear = nn.Linear(model.config.width, model.config.vocab, bias=knobs.wide)

    def guesses(self, batch):
        yield self.linear(batch["tap:final"][:, :-2]), batch["ids_BT"][:, 2:]

    def loss(self, batch):
        noise = torch.rand(())  # a resumed run must have the same
        (logits, ids), = self.guesses(batch)
        total = nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum")
        return total * (1 + 0.1 * noise), ids.numel()


class Method:
    build = Heads

    def __init__(self, knobs, model):
        self.net, self.state = fitted.load("own_heads", knobs, model, Heads).module, None

    def propose(self, sequences, room):
        if self.state is None or len(sequences) > 1:
            return [Tree.root(s.ids[-1]) for s in sequences]
        return [Tree.chain(sequences[0].ids[-1], [int(self.net.linear(self.state).argmax())])]

    def observe(self, rounds):
        self.state = rounds[0].taps["final"][([0, *rounds[0].walk.path])[-1]]
