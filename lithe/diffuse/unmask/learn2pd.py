"""A small network reads how sure each place of a block is, and says which are already final."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lithe.card import Card, knob
from lithe.diffuse.canvas import OPEN
from lithe.diffuse.oracle import Foreseen, fill_with, foreseen
from lithe.errors import UnsupportedError
from lithe.train import fitted

CARD = Card(paper="Learning to Parallel: Accelerating Diffusion Large Language Models via Adaptive Parallel Decoding", row=2,
            promises=("one_step_is_plain",), trains=True)
ONE = {"floor": 1.01, "heads": "fresh"}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of fitted weights, or fresh")
    size: int = knob(32, "places of a block that are read; shorter ones are filled up as if committed", low=1, high=4096)
    floor: float = knob(0.96, "least chance of being final; above 1 none passes", low=0, high=2)
    rate: float = knob(1e-3, "peak learning rate of a fit", low=0)
    shuffled: bool = knob(False, "learn labels of other steps: the control that must fail")


class Filter(nn.Module):
    """Two layers as wide as a block: confidences in, logits of being final out. Axes: N steps, S places of a block."""

    SHAPED_BY = ("size",)
    signals = ()

    def __init__(self, knobs, model):
        super().__init__()
        self.knobs = knobs
        self.layers = nn.Sequential(nn.Linear(knobs.size, knobs.size), nn.ReLU(), nn.Linear(knobs.size, knobs.size))

    def forward(self, sure_NS):
        return self.layers(sure_NS)

    def prepare(self, room):
        """Fill each example by one token a step, then greedily by the result, noting what could be seen at each step."""
        self.rows, self.seed, seen = room.lesson.rows, room.lesson.seed, []

        def watch(canvas, guess, block, right_P):
            sure_S, open_S, final_S = slots(canvas, guess, block, self.knobs.size, right_P)
            seen.append((sure_S, open_S, final_S))

        if (most := max(e.places for e in room.examples)) > self.knobs.size:
            raise UnsupportedError(f"answers of {most} places do not fit into a block of {self.knobs.size}: raise size")
        for batch in room.asked(room.examples):
            finals = foreseen(room.model, batch)
            fill_with(room.model, batch, [Foreseen(final, watch) for final in finals])
        self.sure, self.open, self.final = (torch.stack(column) for column in zip(*seen, strict=True))
        if self.knobs.shuffled:
            self.final = self.final[torch.randperm(len(self.final), generator=torch.Generator().manual_seed(self.seed))]

    def batch(self, step, ending=False):
        dice = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        at = torch.randint(len(self.sure), (self.rows * 8,), generator=dice)
        return {"ids_BT": self.open[at].long(), "sure_NS": self.sure[at], "final_NS": self.final[at]}

    def loss(self, batch):
        """Binary cross-entropy over the places that are open."""
        each_NS = F.binary_cross_entropy_with_logits(self(batch["sure_NS"]), batch["final_NS"].float(), reduction="none")
        open_NS = batch["ids_BT"].bool()
        return each_NS[open_NS].sum(), open_NS.sum()


def slots(canvas, guess, block, size, right_P=None):
    """A block as the filter reads it [S]: how sure its places are (1 where committed), which are open, which are right."""
    if block[1] - block[0] > size:
        raise UnsupportedError(f"the filter reads blocks of {size} places, and this one has {block[1] - block[0]}: fill blocks "
                               "of its size, or fit a wider one")
    sure_S, open_S, final_S = torch.ones(size), torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    here = guess.within(*block)
    at = here.places_P - block[0]
    sure_S[at], open_S[at] = here.sure_P.float(), canvas.when_T[here.places_P] == OPEN
    if right_P is not None:
        final_S[at] = right_P[(guess.places_P >= block[0]) & (guess.places_P < block[1])]
    return sure_S, open_S, final_S


class Method:
    build = Filter

    @staticmethod
    def load(knobs, model):
        """The filter, read once for all canvases."""
        return fitted.load("learn2pd", knobs, model, Filter).module.float().eval()

    def __init__(self, knobs, model, loaded):
        self.knobs, self.filter = knobs, loaded

    def select(self, canvas, guess, block):
        size = self.filter.knobs.size
        final_S = self.filter(slots(canvas, guess, block, size)[0][None])[0].sigmoid() >= self.knobs.floor
        inside = (guess.places_P >= block[0]) & (guess.places_P < block[1])
        chosen = torch.zeros(len(guess.places_P), dtype=torch.bool)
        chosen[inside] = final_S[guess.places_P[inside] - block[0]]
        best = torch.zeros_like(chosen)
        best[int(guess.sure_P.argmax())] = True
        return chosen | best
