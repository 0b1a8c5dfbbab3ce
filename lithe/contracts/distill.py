"""What a method that trains a diffusion model promises nothing of, and does all the same: a finite loss that falls."""

from __future__ import annotations

import torch

from lithe.contracts.diffuse import small_model
from lithe.diffuse.learn import Class, Example, Lesson
from lithe.model.decoder import Decoder
from lithe.registry import Entry

END = 0  # stands for an end of text on models without a tokenizer


def class_of(model: Decoder, steps: int = 8, rows: int = 4) -> Class:
    """A class whose answers are what the model itself says, so that some of them are right."""
    prompts = [[1 + i % 7, 8 + i % 5, 3] for i in range(6)]
    asked = [Example(p, [5], lambda said: True, 6) for p in prompts]
    room = Class(model, asked, END, Lesson(steps=steps, rows=rows))
    answers = [room.said(e, run.canvas.ids_T) for e, run in zip(asked, room.filled(asked), strict=True)]
    same = lambda want: lambda said: tuple(said) == tuple(want)
    made = [Example(p, said, same(said), 6) for p, said in zip(prompts, answers, strict=True)]
    return Class(model, made, END, Lesson(steps=steps, rows=rows))


def check_verbs(entry: Entry) -> None:
    """Batches depend on seed and step alone; the loss is finite, has a gradient, and leaves the teacher as it is."""
    teacher, student = small_model("full", 0), small_model.__wrapped__("full", 0)
    before = [weight.clone() for weight in teacher.parameters()]
    student.requires_grad_(True)
    method = entry.module.Method(entry.module.Knobs(), teacher)
    method.begin(class_of(teacher), student)
    batch, again = method.batch(1), method.batch(1)
    assert all(torch.equal(batch[name], again[name]) for name in batch), "a batch is not the same when asked for twice"
    summed, counted = method.loss(student, batch)
    assert torch.isfinite(summed) and float(counted) > 0, "the loss is no number, or over nothing"
    summed.backward()
    moved = [weight.grad for weight in student.parameters() if weight.grad is not None]
    assert moved and all(torch.isfinite(grad).all() for grad in moved), "a gradient is missing or no number"
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True)), "the teacher was changed"
