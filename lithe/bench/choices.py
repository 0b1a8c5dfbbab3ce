"""Multiple choice: which of several continuations a model finds likeliest."""

from __future__ import annotations

from collections.abc import Callable, Sequence as Seq
from dataclasses import asdict, dataclass
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from lithe.bench.evaluate import score
from lithe.bench.stats import interval
from lithe.errors import FormatError, LitheError, UsageError
from lithe.model.decoder import Decoder
from lithe.train import rows


@dataclass(frozen=True, kw_only=True)
class Question:
    """A text, what may follow it, and which of these is right, from 0. A space stands between where neither brings one."""

    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares of questions whose right choice is likeliest, as a whole and by each of its bytes, with 95 % bootstrap intervals.
    chance: what blind guessing gets."""

    accuracy: float
    accuracy_interval: tuple[float, float] | None
    accuracy_by_byte: float
    accuracy_by_byte_interval: tuple[float, float] | None
    chance: float
    questions: int

    def json(self) -> dict[str, Any]:
        return asdict(self)


def questions(path: str | Path) -> list[Question] | None:
    """Of a .jsonl file whose lines say "text", "choices" and "answer"; None for any other. Raises FormatError for a line that
    begins so and is none."""
    lines = rows.lines(path)
    try:
        first = next(lines, None)
    except LitheError:  # no .jsonl, or none that can be read: who reads it as texts says so
        return None
    if first is None or "choices" not in first[1]:
        return None
    return [_question(row, where) for where, row in chain([first], lines)]


def _question(row: dict[str, Any], where: str) -> Question:
    text, choices, answer = (row.get(name) for name in ("text", "choices", "answer"))
    if not isinstance(text, str) or not isinstance(choices, list) or len(choices) < 2 or not all(
            isinstance(choice, str) and choice.strip() for choice in choices):
        raise FormatError(f"{where}: a question has a \"text\" and two \"choices\" or more, all texts")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise FormatError(f"{where}: \"answer\" is the number of the right choice, 0 to {len(choices) - 1}, not {answer!r:.40}")
    return Question(text=text, choices=tuple(choices), answer=answer)


def accuracy(model: Decoder, asked: Seq[Question], progress: Callable[[int, int], None] | None = None) -> Accuracy:
    """How often a model prefers the right choice. Raises UsageError for a question longer than its context."""
    if model.tokenizer is None:
        raise UsageError("this model has no tokenizer, so it cannot read a text")
    right_Q2 = np.zeros((len(asked), 2))
    for number, question in enumerate(asked):
        nats = [_of(model, question.text, choice, number) for choice in question.choices]
        each = [n / len(choice.encode()) for n, choice in zip(nats, question.choices, strict=True)]
        right_Q2[number] = [scores.index(min(scores)) == question.answer for scores in (nats, each)]
        if progress is not None:
            progress(number + 1, len(asked))
    whole, byte = ((float(right_Q.mean()), interval(lambda drawn: drawn.mean((-1, -2)), right_Q[:, None]))
                   for right_Q in right_Q2.T)
    return Accuracy(accuracy=whole[0], accuracy_interval=whole[1], accuracy_by_byte=byte[0], accuracy_by_byte_interval=byte[1],
                    chance=float(np.mean([1 / len(question.choices) for question in asked])), questions=len(asked))


def _of(model: Decoder, text: str, choice: str, number: int) -> float:
    """Nats of a choice behind a text: of all tokens from the first that the choice changes."""
    assert model.tokenizer is not None
    between = "" if not text or text[-1].isspace() or choice[0].isspace() else " "
    alone, ids = (model.tokenizer.encode(one) for one in (text, text + between + choice))
    if len(ids) > model.config.context + 1:
        raise UsageError(f"question {number + 1} takes {len(ids)} tokens, where the model reads {model.config.context}")
    same = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), min(len(alone), len(ids)))
    same = max(1, min(same, len(ids) - 1))  # a token is predicted from another, and one at least is scored
    nats = sum(found for found, _ in score(model, ids[same:], bos=ids[:same], context=model.config.context))
    if not isfinite(nats):
        raise LitheError(f"the model's loss on question {number + 1} is {nats}: its logits overflow in {model.dtype}")
    return nats
