"""ParallelBench's own rows, asked in the words of our forms; they are read where they lie and never kept.

What a list operation asks for stays the same under any renaming of its items, so each row's names become words of our
vocabulary, one to one, in alphabetical order among themselves; so do a square's symbols. What is asked in sentences is
left out, and said.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lithe.bench.parallel._tasks import CHOSEN, LONGEST, RANDOM, WORDS, Problem, Words, listed, squared
from lithe.errors import FormatError, UsageError

HOME = "output/test/"  # in the archive and in a checkout's data folder
MOST = 1 << 24  # bytes of a file that are read
SEED = 7  # of the renaming
LISTS, SQUARE = "waiting_line", "puzzle/latin_square_n4"
UNASKED = {"words_to_sentence": "asks for sentences, which needs a model of a language",
           "paraphrase_summarize": "asks for sentences, which needs a model of a language",
           "puzzle": "asks for a puzzle that the vocabulary has no word for"}


@dataclass
class Published:
    """problems: by file, as `waiting_line/copy`. left_out: by file, how many rows were, and why."""

    problems: dict[str, list[Problem]] = field(default_factory=dict)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)


class Unasked(Exception):
    """A row that cannot be a problem of ours; the text says why."""


def published(source: Path) -> Published:
    """Read the archive of ParallelBench's data, or a folder of the same layout.

    Raises UsageError where there is neither, FormatError with file and line for a row that is not one.
    """
    found = Published()
    for name, lines in _files(source):
        group, _, task = name.partition("/")
        lists = group.startswith(LISTS)
        made, left = [], Counter[str]()
        for number, line in enumerate(lines, 1):
            try:
                if not lists and name != SQUARE:
                    raise Unasked(UNASKED.get(group, "is a task that is not known here"))
                row = _row(line, f"{source}: {name}.jsonl line {number}")
                dice = np.random.default_rng([SEED, number])
                made.append(_list(task, row, dice) if lists else _square(row))
            except Unasked as why:
                left[str(why)] += 1
        if made:
            found.problems[name] = made
        if left:
            found.left_out[name] = left
    if not found.problems and not found.left_out:
        raise UsageError(f"{source} holds no {HOME}*/*.jsonl: give ParallelBench's parallel_bench_data.zip, or its data folder")
    return found


def _files(source: Path) -> list[tuple[str, list[str]]]:
    """Names without ending and lines of every file of rows, in order; nothing is unpacked, and nothing else is opened."""
    root: Any = source
    if source.is_file():
        try:
            root = zipfile.Path(zipfile.ZipFile(source))
        except (zipfile.BadZipFile, OSError) as problem:
            raise UsageError(f"cannot read {source}: {problem}; give ParallelBench's parallel_bench_data.zip") from None
    home = root / HOME
    if not home.is_dir():
        return []
    found = []
    for group in sorted((g for g in home.iterdir() if g.is_dir()), key=lambda g: str(g.name)):
        for file in sorted((f for f in group.iterdir() if f.name.endswith(".jsonl")), key=lambda f: str(f.name)):
            name = f"{group.name}/{file.name.removesuffix('.jsonl')}"
            try:
                with file.open("rb") as lines:
                    data = lines.read(MOST + 1)
                text = data.decode("utf-8")
            except (UnicodeDecodeError, zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError) as problem:
                raise FormatError(f"{source}: {name}.jsonl cannot be read: {problem}") from None
            if len(data) > MOST:
                raise FormatError(f"{source}: {name}.jsonl is longer than {MOST >> 20} MiB: it is none of ParallelBench's")
            found.append((name, [line for line in text.splitlines() if line.strip()]))
    return found


def _row(line: str, where: str) -> dict[str, Any]:
    """One row: its input's fields and, under `answer`, the published answer as a list of texts."""
    try:
        row = json.loads(line)
        given, answer = row["input"], row["answer"]
        if isinstance(answer, dict):  # one answer of many
            answer = answer["example"]
        if "context" in given:
            given, answer = given | {"context": json.loads(given["context"])}, json.loads(answer)
        else:
            answer = [cell for part in answer.split("\n") for cell in part.split(",")]
        texts = [*given.get("context", ()), *answer, *([given["word"]] if "word" in given else [])]
        if not all(isinstance(text, str) for text in texts) or not isinstance(given.get("index", 0), int):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise FormatError(f"{where} is no row of ParallelBench's: an object with an input (a list of names, or symbols) and an "
                          "answer") from None
    return {**given, "answer": answer}


def _list(task: str, row: dict[str, Any], dice: np.random.Generator) -> Problem:
    items, new = row.get("context", []), row.get("word", "")
    kind, _, where = task.partition("_")
    if task not in (*CHOSEN, *RANDOM):
        raise Unasked("is a task that is not known here")
    if len(items) > LONGEST:
        raise Unasked(f"lists of more than {LONGEST} names")
    names = sorted({*items, *([new] if new else [])})
    if len(names) != len(items) + bool(new) or bool(new) != (kind in ("insert", "replace")) or not items:
        raise Unasked("names that are there twice, or not at all")
    at = row.get("index", 0)
    if where == "index" and ("index" not in row or not 0 <= at < len(items) + (kind == "insert")):
        raise Unasked("a place that the list does not have")
    words = sorted(WORDS[i] for i in dice.choice(len(WORDS), len(names), replace=False))
    renamed = dict(zip(names, words, strict=True))
    answer = [renamed.get(name, "") for name in row["answer"]]
    made = listed(task, [renamed[name] for name in items], renamed.get(new, ""), at, answer)
    if not made.right(answer):
        raise Unasked("a published answer that the rule does not take")
    return made


def _square(row: dict[str, Any]) -> Problem:
    """A whole square of four symbols: once they are renamed all rows ask the same."""
    symbols = sorted(set(row["answer"]))
    renamed: Words = [str(1 + symbols.index(cell)) for cell in row["answer"]]
    made = squared(["_"] * 16, renamed)
    if not made.right(renamed):
        raise Unasked("a published answer that the rule does not take")
    return made
