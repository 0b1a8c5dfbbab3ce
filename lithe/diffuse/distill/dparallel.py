"""Teach a model to be certain early: its own right answers, with low entropy asked for wherever it is right already."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lithe.card import Card, knob
from lithe.diffuse.learn import Example, logits
from lithe.errors import UsageError
from lithe.ops.truncate import entropy

CARD = Card(paper="dParallel: Learnable Parallel Decoding for dLLMs", row=40, trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    rate: float = knob(3e-4, "peak learning rate (the paper's 2e-5 is for 8B parameters and LoRA)", low=0)
    beta: float = knob(2.0, "weight of the entropy", low=0)
    heat: float = knob(0.5, "temperature at which the entropy is taken", low=0.01)
    masked: float = knob(0.5, "share of a block that is masked in the first view; the second masks the rest", low=0, high=1)
    spread: bool = knob(False, "draw the first view's share for each row, between `masked` and all; off: the paper's")
    block: int = knob(32, "places of a block", low=1)
    choices: int = knob(1, "own answers of a problem: one a token a step, the others drawn; of those that are right the one is "
                           "taught that the student finds likeliest on an empty canvas. 1: the paper's", low=1)
    patience: int = knob(0, "draw no more for a problem whose first answers, so many, are the same one; 0: draw all", low=0)
    correct: bool = knob(True, "ask for certainty only where the model is right; off: everywhere, the paper's ablation")


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs

    def begin(self, room, student):
        """The model's own answers by one token a step, those that are right, each once."""
        found: list[tuple[Example, dict[tuple[int, ...], bool]]] = [(e, {}) for e in room.examples]
        for turn in range(self.knobs.choices):
            settled = 0 < self.knobs.patience <= turn
            asked = [pair for pair in found if len(pair[1]) > 1 or not settled]
            said = room.answers([e for e, _ in asked], float(turn > 0), room.lesson.seed + turn)
            for (_, own), answer in zip(asked, said, strict=True):
                own[tuple(answer)] = True
        right = [(e, [answer for answer in own if e.right(answer)]) for e, own in found]
        self.kept = [(e, own) for e, own in right if own]
        if not self.kept:
            raise UsageError("the model answers no example rightly by one token a step: it has nothing of its own to teach")
        self.room, self.student = room, student

    @torch.no_grad()
    def likeliest(self, kept):
        """ids_BT and open_BT of these: of each one's answers that of most chance, were all places decided at once."""
        room, counts = self.room, [len(each) for _, each in kept]
        ids_NT, open_NT = room.whole([e for e, each in kept for _ in each], [said for _, each in kept for said in each])
        first_B = torch.tensor([0, *counts[:-1]]).cumsum(0)
        if max(counts) == 1:
            return ids_NT, open_NT
        empty_BT = ids_NT[first_B].masked_fill(open_NT[first_B], room.mask)
        log_BTV = logits(self.student, empty_BT, empty_BT).log_softmax(-1)
        row_N = torch.arange(len(kept)).repeat_interleave(torch.tensor(counts))
        log_N = (log_BTV[row_N].gather(2, ids_NT.unsqueeze(-1)).squeeze(-1) * open_NT).sum(1)
        best_B = torch.stack([begin + each.argmax() for begin, each in zip(first_B, log_N.split(counts), strict=True)])
        return ids_NT[best_B], open_NT[best_B]

    def batch(self, step, ending=False):
        """Two views of a block of each row: what lies before is clean, what lies behind is masked."""
        room, knobs, dice = self.room, self.knobs, self.room.dice(step)
        at = torch.randint(len(self.kept), (room.lesson.rows,), generator=dice).tolist()
        ids_BT, open_BT = self.likeliest([self.kept[i] for i in at])
        place_BT = open_BT.cumsum(1) - 1
        blocks_B1 = -(-open_BT.sum(1, keepdim=True) // knobs.block)
        block_B1 = (torch.rand(len(at), 1, generator=dice) * blocks_B1).long()
        own_BT = open_BT & (place_BT // knobs.block == block_B1)
        behind_BT = open_BT & (place_BT // knobs.block > block_B1)
        first_BT = torch.rand(ids_BT.shape, generator=dice)
        share_B1 = torch.rand(len(at), 1, generator=dice) if knobs.spread else torch.zeros(len(at), 1)
        first_BT = first_BT < knobs.masked + share_B1 * (1 - knobs.masked)
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
