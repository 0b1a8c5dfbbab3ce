"""One way for every method that learns from a target: its module, the teacher's signals, the loop, a folder that says it all.

Axes: B rows, T tokens of a row, N guesses, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lithe.errors import UsageError
from lithe.model.decoder import Decoder
from lithe.registry import Entry
from lithe.train import fitted
from lithe.train.batches import Batch
from lithe.train.loop import Plan, fit
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine
from lithe.train.teacher import Teacher, Windows

RANKS = 10  # of a guess whose rates are measured
MEASURED = 32  # rows they are measured on, at most
RUN, STATES = "run", "states"  # what a fit keeps in its folder while it lasts


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How long to learn, and from what rows. keep: write the teacher's states to disk instead of making them anew."""

    steps: int
    rows: int = 8
    length: int = 256
    warmup: int = 20
    seed: int = 0
    keep: bool = False


def learn(entry: Entry, knobs: Any, model: Decoder, ids: np.ndarray, lesson: Lesson, *, folder: Path | None = None,
          states: Path | None = None, quiet: bool = False, autocast: torch.dtype | None = None) -> fitted.Fitted:
    """Fit a method's weights to a target on a text of token ids; with a folder, resume there and leave the result.

    states: the target's states on these very rows, which stay when the fit ends, so that another may read them.

    The method's `build(knobs, model)` gives a module with `signals`, `loss(batch)` and, where it guesses tokens,
    `guesses(batch)`; one that the text has a say in has `prepare(ids)`, too. The target is frozen. Raises UsageError for a
    method that has nothing to learn and for a folder that holds another fit; Interrupted where a signal came, the state being
    saved.
    """
    build = getattr(entry.module.Method, "build", None)
    if build is None:
        raise UsageError(f"{entry.address} has no weights to fit")
    if knobs.heads:
        raise UsageError(f"{entry.name}: knob heads names weights to draft with; a fit makes them, so leave it out")
    if folder is not None:
        _claim(folder, entry, knobs, model, ids, lesson)
    prefix = () if model.tokenizer is None else model.tokenizer.prefix
    length = min(lesson.length, model.config.context)
    windows = Windows(ids=ids, rows=lesson.rows, length=length, seed=lesson.seed, prefix=prefix)
    model.requires_grad_(False)
    torch.manual_seed(lesson.seed)
    module = fitted.fresh(build, knobs, model, lesson.seed)
    if hasattr(module, "prepare"):
        module.prepare(ids[: windows.held[0] * (length - len(prefix))])  # what is measured on has no say
    module = module.to(model.device)
    if model.dtype == torch.float64:
        module.double()
    own = folder / STATES if folder is not None and lesson.keep else None
    teacher = Teacher(model, windows, module.signals, states or own)
    settings = Plan(schedule=Cosine(steps=lesson.steps, warmup=min(lesson.warmup, lesson.steps)), autocast=autocast,
                    optimizer=Optimizer(lr=knobs.rate))
    at = fit(module, teacher, _own_loss, settings, folder=folder / RUN if folder else None, quiet=quiet)
    module.eval()
    rates = measure(module, teacher) if hasattr(module, "guesses") else ()
    if folder is not None:
        training = dataclasses.asdict(lesson) | {"tokens": at.tokens, "seconds": round(at.seconds, 1), "loss": at.loss}
        fitted.save(folder, entry.name, knobs, model, module, rates=rates, training=training)
        (folder / RUN / "log.jsonl").replace(folder / "log.jsonl")
        for done in (RUN, STATES):
            shutil.rmtree(folder / done, ignore_errors=True)
    return fitted.Fitted(module, rates)


def _own_loss(module: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    return module.loss(batch)


@torch.no_grad()
def measure(module: Any, teacher: Teacher) -> fitted.Rates:
    """How often the guess of each rank is right at each depth, the tokens before it being right, on rows not learned from."""
    held = teacher.windows.held[:MEASURED]
    right: list[np.ndarray] = []
    asked: list[int] = []
    for at in range(0, len(held), teacher.windows.rows):
        for depth, (logits_BTV, targets_BT) in enumerate(module.guesses(teacher.batch(held[at : at + teacher.windows.rows]))):
            best_NR = logits_BTV.flatten(0, -2).topk(min(RANKS, logits_BTV.shape[-1])).indices
            hits_R = (best_NR == targets_BT.flatten()[:, None]).sum(0).cpu().numpy()
            if depth == len(right):
                right.append(np.zeros_like(hits_R))
                asked.append(0)
            right[depth] = right[depth] + hits_R
            asked[depth] += targets_BT.numel()
    return tuple(tuple((hits / count).tolist()) for hits, count in zip(right, asked, strict=True))


def _claim(folder: Path, entry: Entry, knobs: Any, model: Decoder, ids: np.ndarray, lesson: Lesson) -> None:
    """Note what is fitted here; refuse a folder that holds a result or another fit's state."""
    if (folder / fitted.NOTES).exists():
        raise UsageError(f"{folder} holds fitted weights already: take another folder, or delete it")
    text = hashlib.sha256(np.ascontiguousarray(ids, dtype="<i4").tobytes()).hexdigest()
    ours = {"method": entry.name, "knobs": dataclasses.asdict(knobs), "target": fitted.identity(model), "text": text,
            "lesson": dataclasses.asdict(lesson)}
    note = folder / "fit.json"
    if not note.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty, and no fit began there: take another folder")
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")
        return
    try:
        begun = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:
        begun = {}
    if unlike := differing(begun, json.loads(json.dumps(ours))):
        raise UsageError(f"{folder} holds a fit with another {', '.join(unlike)}: take another folder, or delete it")


def differing(a: Any, b: dict) -> Sequence[str]:
    """Names of the settings in which two notes differ."""
    a = a if isinstance(a, dict) else {}
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
