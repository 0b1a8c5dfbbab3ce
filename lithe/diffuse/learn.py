"""Learning to fill canvases faster: from problems with answers, and from what the model itself fills in.

A part with weights of its own is fitted as a draft's heads are, into a folder; a method that trains the model gives a model.
Axes: B rows, T places.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lithe.diffuse.loop import run
from lithe.diffuse.plan import ROOM, plan
from lithe.errors import UnsupportedError, UsageError
from lithe.model.decoder import Decoder
from lithe.registry import Spec
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from lithe.train import fitted
from lithe.train.loop import Plan, fit
from lithe.train.masked import predicted
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine

TOGETHER = 64  # canvases that are filled at once
WIDE = 512  # and at once where canvases are rows of one tensor


@dataclass(frozen=True)
class Example:
    """A prompt, one answer, the rule that judges any, and the places that an answer may take."""

    prompt: Seq[int]
    answer: Seq[int]
    right: Callable[[Seq[int]], bool]
    places: int


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How long to learn, and from how many examples a step."""

    steps: int
    rows: int = 16
    warmup: int = 20
    seed: int = 0


@dataclass
class Class:
    """What a method learns in: the examples, the model that is asked, and the ends that fill a canvas up."""

    model: Decoder
    examples: Seq[Example]
    end: int  # the token that fills a canvas up behind its answer
    lesson: Lesson

    @property
    def mask(self) -> int:
        return int(self.model.config.mask_token or 0)

    def dice(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.lesson.seed * 1_000_003 + step)

    def chosen(self, step: int, rows: int = 0) -> list[Example]:
        """Examples of a step, by seed and step alone."""
        at = torch.randint(len(self.examples), (rows or self.lesson.rows,), generator=self.dice(step))
        return [self.examples[i] for i in at.tolist()]

    def whole(self, examples: Seq[Example], answers: Seq[Seq[int]] | None = None) -> tuple[Tensor, Tensor]:
        """ids_BT: prompt, answer (another one where given), ends; open_BT: where a canvas is. All rows are as long."""
        most = max(len(e.prompt) + e.places for e in examples)
        texts = [[*e.prompt, *(e.answer if answers is None else answers[i])] for i, e in enumerate(examples)]
        ids_BT = torch.tensor([text + [self.end] * (most - len(text)) for text in texts])
        return ids_BT, torch.arange(most) >= torch.tensor([[len(e.prompt)] for e in examples])

    def filled(self, examples: Seq[Example], *methods: str, temperature: float = 0.0, seed: int = 0) -> list[Any]:
        """The model's own fillings, as runs with their canvases."""
        made, runs = plan(self.model, *methods), []
        for batch in self.asked(examples, temperature, seed):
            for _ in run(made, batch):
                pass
            runs += made.runs
        return runs

    def answers(self, examples: Seq[Example], temperature: float = 0.0, seed: int = 0) -> list[list[int]]:
        """What the model says to each by one token a step: as `filled`, but hundreds of canvases are rows of one tensor."""
        if self.model.config.attends != "full":
            runs = self.filled(examples, temperature=temperature, seed=seed)
            return [self.said(e, run.canvas.ids_T) for e, run in zip(examples, runs, strict=True)]
        dice = torch.Generator().manual_seed(seed)
        shapes: dict[tuple[int, int], list[int]] = {}
        for i, e in enumerate(examples):
            shapes.setdefault((len(e.prompt), e.places), []).append(i)
        found: dict[int, list[int]] = {}
        for members in shapes.values():
            for at in range(0, len(members), WIDE):
                some = members[at : at + WIDE]
                ids_BT = self._surest([examples[i] for i in some], temperature, dice)
                found |= {i: self.said(examples[i], ids_T) for i, ids_T in zip(some, ids_BT, strict=True)}
        return [found[i] for i in range(len(examples))]

    @torch.no_grad()
    def _surest(self, examples: Seq[Example], temperature: float, dice: torch.Generator) -> Tensor:
        """Canvases of one shape, filled to their ends by one token a step at the surest place: its likeliest, or one drawn."""
        ids_BT, open_BT = self.whole(examples, [[]] * len(examples))
        ids_BT, row_B = ids_BT.masked_fill(open_BT, self.mask), torch.arange(len(examples))
        for _ in range(examples[0].places):
            scores_BTV = logits(self.model, ids_BT, ids_BT)
            sure_BT, token_BT = scores_BTV.softmax(-1).max(-1)
            place_B = sure_BT.masked_fill(ids_BT != self.mask, -1.0).argmax(1)
            if temperature:
                chance_BV = (scores_BTV[row_B, place_B] / temperature).softmax(-1)
                ids_BT[row_B, place_B] = torch.multinomial(chance_BV, 1, generator=dice).squeeze(1)
            else:
                ids_BT[row_B, place_B] = token_BT[row_B, place_B]
        return ids_BT

    def asked(self, examples: Seq[Example], temperature: float = 0.0, seed: int = 0) -> Iterator[list[Sequence]]:
        """Requests for these prompts, some at once."""
        law = Law.of(temperature=temperature) if temperature else None
        for at in range(0, len(examples), TOGETHER):
            yield [Sequence(e.prompt, limit=e.places, context=self.model.config.context, law=law, seed=seed + at + i)
                   for i, e in enumerate(examples[at : at + TOGETHER])]

    def said(self, example: Example, ids_T: Tensor) -> list[int]:
        """A canvas's answer, up to its end."""
        found = ids_T[len(example.prompt) :].tolist()
        return found[: found.index(self.end)] if self.end in found else found


def learn(spec: Spec, model: Decoder, examples: Seq[Example], lesson: Lesson, *, folder: Path | None = None,
          quiet: bool = False) -> Any:
    """Fit a method: the module with its weights (kept in the folder), or the model that was trained, which the caller keeps.

    Raises UsageError for a method that has nothing to learn and for a folder that holds fitted weights.
    """
    entry, knobs = spec.entry, spec.knobs
    if entry.room != ROOM or model.config.attends == "causal":
        raise UnsupportedError(f"{entry.name} cannot be fitted to {model.source or 'this model'}: one of them reads from left "
                               "to right, the other fills masked places")
    if getattr(knobs, "heads", ""):
        raise UsageError(f"{entry.name}: knob heads names weights to decode with; a fit makes them, so leave it out")
    if not examples:
        raise UsageError("there are no examples to learn from")
    if folder is not None and (folder / fitted.NOTES).exists():
        raise UsageError(f"{folder} holds fitted weights already: take another folder, or delete it")
    ends = model.tokenizer.eos_ids if model.tokenizer is not None else ()
    if not ends:
        raise UsageError("this model has no end of text, which canvases are filled up with")
    room = Class(model, examples, min(ends), lesson)
    settings = Plan(schedule=Cosine(steps=lesson.steps, warmup=min(lesson.warmup, lesson.steps)),
                    optimizer=Optimizer(lr=knobs.rate, weight_decay=0.0))
    work = None if folder is None else run_of(folder)
    identity = {"spec": spec.exact, "lesson": dataclasses.asdict(lesson), "target": fitted.identity(model)}
    torch.manual_seed(lesson.seed)
    model.requires_grad_(False)
    if hasattr(entry.module.Method, "build"):
        module: Any = fitted.fresh(entry.module.Method.build, knobs, model, lesson.seed)
        module.prepare(room)
        at = fit(module, module.batch, lambda own, batch: cast(Any, own).loss(batch), settings, folder=work, quiet=quiet,
                 identity=identity)
        if folder is not None:
            training = dataclasses.asdict(lesson) | {"seconds": round(at.seconds, 1), "loss": at.loss}
            fitted.save(folder, entry.name, knobs, model, module.eval(), training=training)
        return module.eval()
    shared = {id(model.tokenizer): model.tokenizer}  # a chat template's engine cannot be copied
    student = copy.deepcopy(model, shared).requires_grad_(True)  # the model itself stays as it is: the method's teacher
    method = entry.module.Method(knobs, model)
    method.begin(room, student)
    fit(student, method.batch, method.loss, settings, folder=work, quiet=quiet, identity=identity)
    student.folder = None
    return student.eval()


def run_of(folder: Path) -> Path:
    """Where a fit into a folder keeps its state while it lasts: beside it."""
    return folder.with_name(f"{folder.name}.run")


def logits(model: nn.Module, ids_BT: Tensor, clean_BT: Tensor) -> Tensor:
    """What a model foretells of every place of noisy rows, [B, T, V], beside the clean ones; never an open place."""
    scores_BTV = predicted(model, {"ids_BT": ids_BT, "clean_BT": clean_BT}).float()
    bar_V = torch.zeros(scores_BTV.shape[-1], device=scores_BTV.device)
    bar_V[cast(Any, model).config.mask_token] = -1e9  # finite: gradients stay numbers
    return scores_BTV + bar_V
