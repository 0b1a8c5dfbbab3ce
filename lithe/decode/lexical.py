"""Lexical units: runs of tokens a model is sure of, and how it is tuned to say such a run at once.

LUD (Sun et al., 2024). Behind a text stand placeholders, all the same embedding; the first guesses the token after next, and so
on. A unit is a run whose tokens, but for the first, the untuned model gave at least `alpha` each; placeholders learn the units
of the text, beside what the model learns anyway. Of the paper only the abstract was at hand: alpha, the longest unit, the even
mix of both losses and the first embedding are ours.

Axes: B rows, T tokens, P units, G placeholders, C width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lithe import __version__
from lithe.errors import UsageError
from lithe.model import checkpoint
from lithe.model.decoder import ALL, Decoder
from lithe.train import fitted
from lithe.train.batches import Batch
from lithe.train.loop import Plan, fit
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine
from lithe.train.teacher import LOGITS, Teacher, Windows

WARMUP = 0.05  # share of the steps


def span(laws_GV: Tensor, before: Seq[int], alpha: float) -> list[int]:
    """What placeholders say, as far as each is sure and none says again what was just said.

    laws_GV: their laws; before: the step's tokens so far. It ends before a law that gives its likeliest token less than alpha,
    before a token equal to the last, and before a pair of tokens that the step holds already.
    """
    said = list(before)
    for law_V in laws_GV:
        token = int(law_V.argmax())
        if float(law_V[token]) < alpha or token == said[-1] or (said[-1], token) in pairwise(said):
            break
        said.append(token)
    return said[len(before) :]


def units(sure_T: Seq[bool], most: int) -> list[tuple[int, int]]:
    """Units that tile a text: start and length of each. sure_T: whether the model gave a token, after those before it, enough.

    >>> units([False, True, True, True, False], 3)
    [(0, 3), (3, 1), (4, 1)]
    """
    found: list[tuple[int, int]] = []
    for at, sure in enumerate(sure_T):
        if found and sure and found[-1][1] < most:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((at, 1))
    return found


def blocks(points_BP: Tensor, steps: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Positions [B, T + G] and sight [B, T + G, T + G] of a text and, behind each point of it, so many placeholders.

    A placeholder sees the text up to its point and those of its block up to itself; the text sees no placeholder.
    """
    B, P = points_BP.shape
    block_G, step_G = torch.arange(P).repeat_interleave(steps), torch.arange(steps).repeat(P)
    point_BG, text_T = points_BP[:, block_G], torch.arange(tokens)
    pos = torch.cat((text_T.expand(B, -1), point_BG + step_G + 1), 1)
    seen = torch.zeros(B, tokens + P * steps, tokens + P * steps, dtype=torch.bool)
    seen[:, :tokens, :tokens] = text_T[:, None] >= text_T
    seen[:, tokens:, :tokens] = text_T <= point_BG[..., None]
    seen[:, tokens:, tokens:] = (block_G[:, None] == block_G) & (step_G[:, None] >= step_G)
    return pos, seen


def lesson(ids_BT: Tensor, sure_BT: Tensor, most: int, many: int) -> tuple[Tensor, Tensor]:
    """Points [B, P] after which a unit of at least two tokens begins, drawn anew, and what each placeholder should say
    [B, P * (most - 1)]: -1 where nothing is asked of it."""
    points = torch.zeros(len(ids_BT), many, dtype=torch.int64)
    said = torch.full((len(ids_BT), many, most - 1), -1)
    for b, (ids_T, sure_T) in enumerate(zip(ids_BT.tolist(), sure_BT.tolist(), strict=True)):
        known = [(at, size) for at, size in units(sure_T, most) if at > 0 and size > 1]
        for p, i in enumerate(torch.randperm(len(known))[:many].tolist()):
            at, size = known[i]
            points[b, p] = at - 1
            said[b, p, : size - 1] = torch.tensor(ids_T[at + 1 : at + size])
    return points, said.flatten(1)


def loss(model: Any, batch: Batch, alpha: float, most: int, many: int) -> tuple[Tensor, Tensor]:
    """Nats of the text's next tokens, and in the same measure those of what the placeholders should say."""
    ids_BT = batch["ids_BT"]
    B, T = ids_BT.shape
    p_BT = batch[LOGITS][:, :-1].softmax(-1).gather(-1, ids_BT[:, 1:, None])[..., 0]
    sure_BT = torch.cat((torch.zeros(B, 1, dtype=torch.bool), (p_BT >= alpha).cpu()), 1)
    points_BP, said_BG = lesson(ids_BT, sure_BT, most, many)
    pos, seen = blocks(points_BP, most - 1, T)
    rows = torch.cat((ids_BT, torch.full_like(said_BG, placeholder(model)).to(ids_BT.device)), 1)
    out = model(rows, pos_BT=pos.to(rows.device), mask=seen.to(rows.device), logits=ALL).scores.float()
    text = F.cross_entropy(out[:, : T - 1].flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum")
    ahead = F.cross_entropy(out[:, T:].flatten(0, 1), said_BG.flatten().to(rows.device), ignore_index=-1, reduction="sum")
    tokens, asked = B * (T - 1), int((said_BG >= 0).sum())
    return text + ahead * (tokens / max(1, asked)), torch.tensor(tokens)


def placeholder(model: Decoder) -> int:
    """The last row of its embedding."""
    return model.config.vocab - 1


def widened(model: Decoder) -> Decoder:
    """The model with one token more, whose rows are the mean of all."""
    made = Decoder(model.config.replace(vocab=model.config.vocab + 1)).to(model.device, torch.float32)
    state = {name: weight.float() for name, weight in model.state_dict().items()}
    for name in ("embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = torch.cat((state[name], state[name].mean(0, keepdim=True)))
    made.load_state_dict(state)
    made.tokenizer, made.token_ids, made.settings = model.tokenizer, model.token_ids, model.settings
    made.receipts = model.receipts
    return made


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is tuned. alpha: what makes a unit. most: tokens of the longest. points: units of a row a step learns."""

    steps: int = 1000
    alpha: float = 0.9
    most: int = 4
    points: int = 32
    rows: int = 8
    length: int = 256
    rate: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or not 2 <= self.most <= 16 or min(self.steps, self.points) < 1:
            raise UsageError("alpha lies from 0 to 1, a unit has 2 to 16 tokens, and steps and points are positive")


def make(model: Decoder, ids: np.ndarray, recipe: Recipe, folder: Path, *, states: Path | None = None,
         quiet: bool = False) -> Decoder:
    """Tune all weights on a text of token ids; the model is written to `folder`, the run lies beside it and resumes.

    The model itself stays as it is: it says which units there are. states: its own on these very rows, kept in a folder, as
    train.learn takes them. Raises what `train.loop.fit` does, and UsageError for a folder that is taken.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty: choose another folder")
    length = min(recipe.length, model.config.context - recipe.points * (recipe.most - 1))
    prefix = () if model.tokenizer is None else model.tokenizer.prefix
    windows = Windows(ids=ids, rows=recipe.rows, length=length, seed=recipe.seed, prefix=prefix)
    torch.manual_seed(recipe.seed)
    made = widened(model).requires_grad_(True)
    model.requires_grad_(False)
    told = {"parent": fitted.identity(model), "recipe": dataclasses.asdict(recipe)}
    plan = Plan(schedule=Cosine(steps=recipe.steps, warmup=max(1, round(WARMUP * recipe.steps)), floor=0.1),
                optimizer=Optimizer(lr=recipe.rate))
    learn = partial(loss, alpha=recipe.alpha, most=recipe.most, many=recipe.points)
    at = fit(made, Teacher(model, windows, (LOGITS,), states), learn, plan, folder=folder.with_name(folder.name + ".run"),
             identity=told, quiet=quiet)
    made.receipts = [*made.receipts, {"verb": "units", "lithe": __version__, **told, "tokens": at.tokens, "loss": at.loss}]
    checkpoint.save(made.eval(), folder, tokenizer_from=model.folder)
    return made
