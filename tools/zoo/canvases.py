"""Rows that teach a model long canvases and answers of several lines. Axes: B rows, T places."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lithe.bench.parallel._tasks import END, LINED, LINES, OPEN, WIDER, draw
from lithe.train.batches import IGNORED, Batch

ID = {word: i for i, word in enumerate(WIDER)}
SHORT = dict(copy=2, reverse=2, sort=2, replace_index=2, insert_index=2, remove_index=2, shuffle=1, replace_random=1,
             insert_random=1, remove_random=1, addr=1)
LINED_SHARES = dict(zip(LINES, (1, 2, 2, 3, 2), strict=True))
TASKS = (*SHORT, *LINED_SHARES)
PLACES = (32, 64, 128, 256, 496)  # of long canvases
TURN = "slllsllt"  # what early steps hold, over and over: short answers, lines, or a long canvas of either
LATER = 13_000  # from this step on each holds lines and a long canvas, every other short answers too
HEAVY = 3.0  # how much more an answer's places on a long canvas weigh then: they are few
LEAST = 1e-3
TOKENS = 900  # of a step
TAIL = 8  # places that all ends of text behind an answer weigh as much as


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Fresh problems, each by (seed, step, row), as LLaDA's loss reads them, save that what lies behind an answer's end has a
    noise of its own: uniform, none or all of it. Surest first leaves the answer open there and closes all the rest, which one
    chance for every place comes to next to never.
    """

    seed: int = 2

    def __call__(self, step: int, ending: bool = False) -> list[Batch]:
        dice = np.random.default_rng([self.seed, step])
        if step < LATER:
            return [self.held(TURN[step % len(TURN)], dice)]
        long = self.held("t", dice)
        long["weights_BT"] *= HEAVY
        return [self.held("l", dice), long, *([self.held("s", dice)] if step % 2 else [])]

    def held(self, kind: str, dice: np.random.Generator) -> Batch:
        """Rows of one kind, about as many places whatever the kind."""
        if kind == "s":
            return self.noised(SHORT, 8, 40, dice)
        if kind == "l":
            return self.noised(LINED_SHARES, LINED + 1, TOKENS // (2 * LINED + 6), dice)
        places = int(dice.choice(PLACES))
        lines = places > LINED and dice.random() < 0.3
        prompt = LINED + 5 if lines else 13
        return self.noised(LINED_SHARES if lines else SHORT, places, max(2, TOKENS // (places + prompt)), dice)

    def noised(self, shares: dict[str, int], places: int, rows: int, dice: np.random.Generator) -> Batch:
        """Rows of prompts, answers and ends of text up to `places`, all of one length."""
        share = np.array(list(shares.values()), float)
        drawn = [draw(list(shares)[int(dice.choice(len(shares), p=share / share.sum()))], dice) for _ in range(rows)]
        ids, text, tail = [], [], []
        longest = max(len(problem.prompt) for problem in drawn)
        for problem in drawn:
            before, behind = len(problem.prompt), places - len(problem.answer) - 1 + longest - len(problem.prompt)
            ids.append([ID[word] for word in (*problem.prompt, *problem.answer, END)] + [ID[END]] * behind)
            text.append([False] * before + [True] * (len(problem.answer) + 1) + [False] * behind)
            tail.append([False] * (before + len(problem.answer) + 1) + [True] * behind)
        ids_BT, text_BT, tail_BT = torch.tensor(ids), torch.tensor(text), torch.tensor(tail)
        t_B1 = self.comb(rows, dice)
        kind_B1 = torch.tensor(dice.integers(3, size=(rows, 1)))
        u_B1 = torch.where(kind_B1 == 0, self.comb(rows, dice), (kind_B1 == 1).float())
        p_BT = torch.where(tail_BT, u_B1, t_B1)
        masked_BT = (torch.tensor(dice.random(ids_BT.shape)) < p_BT) & (text_BT | tail_BT)
        light_BT = torch.where(tail_BT, TAIL / tail_BT.sum(1, keepdim=True).clamp(min=TAIL), torch.ones(()))
        return {"ids_BT": ids_BT.masked_fill(masked_BT, ID[OPEN]), "targets_BT": ids_BT.masked_fill(~masked_BT, IGNORED),
                "weights_BT": light_BT / p_BT.clamp(min=LEAST), "learned_BT": text_BT}

    @staticmethod
    def comb(rows: int, dice: np.random.Generator) -> torch.Tensor:
        """Chances [B, 1], uniform each and even together."""
        return torch.tensor((1 - LEAST) * dice.permutation((np.arange(rows) + dice.random()) / rows) + LEAST).float()[:, None]
