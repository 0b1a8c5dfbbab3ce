"""Files of a plan's shifts as examples: every token is learned, in pieces of the context."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lithe.bench.tuning._plan import Plan, Shift
from lithe.errors import FormatError, UsageError
from lithe.model.tokenizer import Tokenizer
from lithe.train.text import Examples, end_id, of_ids

EPOCH = 4  # times the tokens of a run: more are not read from a file


@dataclass(frozen=True)
class Texts:
    """Of one shift: what is learned from, what chooses the rate, what is reported."""

    train: Examples
    choose: Examples
    test: Examples

    @property
    def digest(self) -> str:
        return "-".join(part.digest[:8] for part in (self.train, self.choose, self.test))


def texts(shift: Shift, plan: Plan, root: Path, tokenizer: Tokenizer) -> Texts:
    """The examples of a shift. Raises FormatError where a file holds too little."""
    train = cut(rows(shift, root / shift.train, shift.train_rows), EPOCH * plan.steps * plan.tokens, plan, tokenizer, shift)
    held = cut(rows(shift, root / shift.test, shift.test_rows), plan.chosen_by + plan.held_out, plan, tokenizer, shift)
    seen, first = 0, 0
    while seen < plan.chosen_by:
        seen, first = seen + int(held.lengths[first]), first + 1
    return Texts(train, some(held, range(first)), some(held, range(first, len(held))))


def home(plan: Plan, root: Path, tokenizer: Tokenizer) -> Examples:
    """Held-out text of what the model knows already."""
    return cut(rows(plan.home, root / plan.home.test, plan.home.test_rows), plan.held_out, plan, tokenizer, plan.home)


def rows(shift: Shift, path: Path, wanted: tuple[int, int] | None) -> Iterator[str]:
    """The texts of a file: filled templates of JSON lines, or the lines themselves."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in islice(file, *(wanted or (0, None))):
                yield shift.text.format(**json.loads(line)) if ".jsonl" in path.name else line.strip()
    except OSError as problem:
        raise UsageError(f"cannot read {path} of the shift {shift.name!r}: {problem.strerror or problem}") from None
    except (ValueError, KeyError, TypeError) as problem:
        raise FormatError(f"{path} does not read as {shift.text!r}: {problem!r}") from None


def cut(documents: Iterator[str], tokens: int, plan: Plan, tokenizer: Tokenizer, shift: Shift) -> Examples:
    """The first so many tokens, in pieces of the context; pieces share a token, so that each but a text's first is foretold."""
    pieces, seen, end = [], 0, end_id(tokenizer)
    for document in documents:
        ids = [*tokenizer.encode(document), *([] if end is None else [end])]
        for start in range(0, len(ids) - 1, plan.context):
            piece = ids[start : start + plan.context + 1]
            pieces.append((piece, [True] * len(piece)))
            seen += len(piece) - 1
            if seen >= tokens:
                return of_ids(pieces)
    if seen < tokens / EPOCH:
        raise FormatError(f"the shift {shift.name!r} holds {seen} tokens where {tokens} were asked for: too few")
    return of_ids(pieces)


def some(examples: Examples, which: range) -> Examples:
    return of_ids((ids.tolist(), counted.tolist()) for ids, counted in (examples[i] for i in which))
