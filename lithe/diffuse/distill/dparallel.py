"""Teach a model to be certain early: its own right answers, with low entropy asked for wherever it is right already."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lithe.card import Card, knob
from lithe.diffuse.learn import logits
from lithe.errors import UsageError
from lithe.ops.truncate import entropy

CARD = Card(paper="dParallel: Learnable Parallel Decoding for dLLMs", row=40, trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    rate: float = knob(3e-4, "peak learning rate (the paper's 2e-5 is for 8B parameters and LoRA)", low=0)
    beta: float = knob(2.0, "weight of the entropy", low=0)
    heat: float = knob(0.5, "temperature at which the entropy is taken", low=0.01)
    masked: float = knob(0.5, "share of a block that is masked in the first view; the second masks the rest", low=0, high=1)
    block: int = knob(32, "places of a block", low=1)
    correct: bool = knob(True, "ask for certainty only where the model is right; off: everywhere, the paper's ablation")


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs

    def begin(self, room, student):
        """The model's own answers by one token a step, those that are right."""
        self.kept = [(e, said) for e, said in zip(room.examples, room.answers(room.examples), strict=True) if e.right(said)]
        if not self.kept:
            raise UsageError("the model answers no example rightly by one token a step: it has nothing of its own to teach")
        self.room = room

    def batch(self, step, ending=False):
        """Two views of a block of each row: what lies before is clean, what lies behind is masked."""
        room, knobs, dice = self.room, self.knobs, self.room.dice(step)
        at = torch.randint(len(self.kept), (room.lesson.rows,), generator=dice).tolist()
        ids_BT, open_BT = room.whole([self.kept[i][0] for i in at], [self.kept[i][1] for i in at])
        place_BT = open_BT.cumsum(1) - 1
        blocks_B1 = -(-open_BT.sum(1, keepdim=True) // knobs.block)
        block_B1 = (torch.rand(len(at), 1, generator=dice) * blocks_B1).long()
        own_BT = open_BT & (place_BT // knobs.block == block_B1)
        behind_BT = open_BT & (place_BT // knobs.block > block_B1)
        first_BT = torch.rand(ids_BT.shape, generator=dice) < knobs.masked
        asked_BT = torch.cat((own_BT & first_BT, own_BT & ~first_BT))
        hidden_BT = asked_BT | behind_BT.repeat(2, 1)
        clean_BT = ids_BT.repeat(2, 1)
        return {"ids_BT": clean_BT.masked_fill(hidden_BT, room.mask), "clean_BT": clean_BT, "asked_BT": asked_BT}

    def loss(self, model, batch):
        knobs, asked_BT = self.knobs, batch["asked_BT"]
        scores_NV, wanted_N = logits(model, batch["ids_BT"], batch["clean_BT"])[asked_BT], batch["clean_BT"][asked_BT]
        missed = F.cross_entropy(scores_NV, wanted_N)
        right_N = (scores_NV.argmax(-1) == wanted_N) if knobs.correct else torch.ones_like(wanted_N, dtype=torch.bool)
        spread_N = entropy(scores_NV / knobs.heat).flatten()
        forced = (spread_N * right_N).sum() / right_N.sum().clamp_min(1)
        return (missed + knobs.beta * forced) * len(wanted_N), torch.tensor(len(wanted_N))
