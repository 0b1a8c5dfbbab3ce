"""Teach a model to foretell from few given tokens what it foretells from more of them: discrete consistency distillation."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lithe.card import Card, knob
from lithe.diffuse.learn import logits

CARD = Card(paper="CD4LM: Consistency Distillation and aDaptive Decoding for Diffusion Language Models", row=10, trains=True)
MOST = 5.0  # either term is cut here
WARM, LAST = 0.1, 0.5  # the share of steps at the first weight of the teacher, and its last weight


@dataclass(frozen=True, kw_only=True)
class Knobs:
    rate: float = knob(3e-4, "peak learning rate (the paper's 5e-6 is for 8B parameters)", low=0)
    heat: float = knob(2.0, "temperature of both laws", low=0.01)
    weight: float = knob(0.9, "of the teacher's law at first, against the true tokens", low=0, high=1)
    nested: bool = knob(True, "the teacher's masks are some of the student's; off: drawn apart, the ablation")


class Method:
    def __init__(self, knobs, model):
        self.knobs, self.teacher = knobs, model

    def begin(self, room, student):
        self.room = room

    def batch(self, step, ending=False):
        """Each row twice: as the student sees it, and with fewer masks, as the teacher does."""
        room, dice = self.room, self.room.dice(step)
        ids_BT, open_BT = room.whole(room.chosen(step))
        order_BT = torch.rand(ids_BT.shape, generator=dice).masked_fill(~open_BT, 2.0).argsort(1).argsort(1)
        apart_BT = torch.rand(ids_BT.shape, generator=dice).masked_fill(~open_BT, 2.0).argsort(1).argsort(1)
        student_B1, teacher_B1 = self.counts(open_BT.sum(1), dice)
        asked_BT = open_BT & (order_BT < student_B1)
        given_BT = open_BT & ((order_BT if self.knobs.nested else apart_BT) < teacher_B1)
        done = step / max(1, room.lesson.steps)
        fall = 0.5 * (1 + math.cos(math.pi * max(0.0, done - WARM) / (1 - WARM)))
        return {"ids_BT": ids_BT.masked_fill(asked_BT, room.mask), "teacher_BT": ids_BT.masked_fill(given_BT, room.mask),
                "clean_BT": ids_BT, "asked_BT": asked_BT, "weight": torch.tensor(LAST + (self.knobs.weight - LAST) * fall)}

    def counts(self, length_B, dice):
        """How many places the student and the teacher do not see, [B, 1] each."""
        student, teacher = [], []
        for length in length_B.tolist():
            a, b = torch.rand(2, generator=dice).tolist()
            share = 0.4 + 0.5 * a
            share = min(share, 0.5) if length < 20 else share
            few = min(max(share * (0.3 + 0.4 * b), 0.1), 0.6)
            most = 2 if length <= 10 else max(math.ceil(length * share), 2, math.ceil(0.1 * length))
            student.append(min(most, length))
            teacher.append(1 if length <= 10 else min(int(length * few), most))
        return torch.tensor(student)[:, None], torch.tensor(teacher)[:, None]

    def loss(self, model, batch):
        asked_BT, heat, weight = batch["asked_BT"], self.knobs.heat, batch["weight"]
        own_NV = logits(model, batch["ids_BT"], batch["clean_BT"])[asked_BT]
        with torch.no_grad():
            taught_NV = logits(self.teacher, batch["teacher_BT"], batch["clean_BT"])[asked_BT]
        wanted_N = batch["clean_BT"][asked_BT]
        law_NV, log_NV = (taught_NV / heat).softmax(-1), (own_NV / heat).log_softmax(-1)
        apart = torch.where(law_NV > 0, law_NV * (law_NV.clamp_min(1e-20).log() - log_NV), 0.0).sum(-1).mean() * heat**2
        missed = F.cross_entropy(own_NV, wanted_N)
        found = weight * apart.clamp(0, MOST) + (1 - weight) * missed.clamp(0, MOST)
        return found * len(wanted_N), torch.tensor(len(wanted_N))
