"""What concerns diffusion models alone: problems to learn from and to measure on, and how a fit of them is told."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence as Seq
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lithe import __version__
from lithe.cli._common import emit, open_model, table
from lithe.cli._matrix import watch
from lithe.errors import FormatError, UsageError

if TYPE_CHECKING:
    from lithe.bench.ledger import Ledger
    from lithe.bench.parallel._rows import Row
    from lithe.bench.parallel._tasks import Problem
    from lithe.diffuse.learn import Example
    from lithe.model.decoder import Decoder
    from lithe.registry import Spec

TASK = Annotated[list[str] | None, typer.Option("--task", help="of --suite parallel: only this one; repeats")]
PROBLEMS = Annotated[int, typer.Option("--problems", help="of --suite parallel: how many of each task", min=2)]
PLACES = Annotated[int, typer.Option("--places", help="of --suite parallel: places of a canvas; 0: what the longest answer "
                                                      "of the task takes", min=0)]
ROWS = Annotated[str | None, typer.Option("--rows", help="of --suite parallel: ParallelBench's parallel_bench_data.zip, whose "
                                          "lists and squares are asked instead of drawn ones")]
DRAWN = "tasks:"  # begins what names drawn problems instead of a file
FITS = {"model", "method", "data", "output", "steps", "rows", "warmup", "examples", "seed", "dtype", "device", "threads",
        "offline", "as_json"}  # options of a fit that mean something to a diffusion model
HELD = 1 << 20  # seeds of drawn problems to learn from begin here: none of a suite's is among them
HEADS = ("method", "right", "points lost", "95 %", "passes", "fewer", "95 %", "of all", "tokens/pass", "rows", "faster")


def examples(source: str, model: Decoder, count: int) -> list[Example]:
    """`tasks:NAME,NAME` (or `tasks:` for all) draws problems; else a .jsonl file of objects with a prompt and an answer.

    Raises UsageError for an unknown task, FormatError with file and line for what is no such object.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UsageError("this model has no tokenizer, which problems in words need")
    if source.startswith(DRAWN):
        return _drawn(source[len(DRAWN) :], model, count)
    return [_read(line, f"{source} line {number}", model) for number, line in enumerate(_lines(source), 1) if line.strip()]


def _lines(source: str) -> list[str]:
    try:
        return Path(source).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"cannot read {source}: {problem}; give a .jsonl file or {DRAWN}NAME,NAME") from None


def _read(line: str, where: str, model: Decoder) -> Example:
    from lithe.diffuse.learn import Example

    assert model.tokenizer is not None
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    parts = [found.get(name) if isinstance(found, dict) else None for name in ("prompt", "answer")]
    if not all(isinstance(part, str) and part for part in parts):
        raise FormatError(f"{where}: not an object with a prompt and an answer, both texts")
    prompt, answer = (model.tokenizer.encode(str(part), bos=False) for part in parts)
    return Example(prompt, answer, lambda said: list(said) == list(answer), len(answer) + 1)


def _drawn(names: str, model: Decoder, count: int) -> list[Example]:
    import numpy as np

    from lithe.bench.parallel._tasks import LINES, TASKS, draw, room
    from lithe.diffuse.learn import Example

    assert model.tokenizer is not None
    tasks = names.split(",") if names else list(TASKS)
    if unknown := [task for task in tasks if task not in (*TASKS, *LINES)]:
        raise UsageError(f"there is no task {unknown[0]!r}; known: {', '.join((*TASKS, *LINES))}")
    encode, decode = model.tokenizer.encode, model.tokenizer.decode

    def example(problem: Problem) -> Example:
        judge = lambda said: problem.right([decode([token]).strip(" ") for token in said])
        return Example(encode(" ".join(problem.prompt), bos=False), encode(" ".join(problem.answer), bos=False), judge,
                       room(problem.task))

    return [example(draw(tasks[i % len(tasks)], np.random.default_rng([HELD, i]))) for i in range(count)]


def fitted(spec: Spec, target: Decoder, data: str, output: Path, asked: dict[str, int], *, pool: int, model: str,
           as_json: bool) -> None:
    """Fit a method of a diffusion model and say what came of it: a folder of weights, or a trained model.

    asked: steps, rows, warmup and seed of the lesson.
    """
    from lithe.diffuse.learn import Lesson, learn, run_of
    from lithe.model.checkpoint import save
    from lithe.train.fitted import identity

    lesson = Lesson(**asked)
    made = learn(spec, target, examples(data, target, pool), lesson, folder=output, quiet=as_json)
    weights = sum(weight.numel() for weight in made.parameters())
    trained = hasattr(made, "config")
    if trained:
        made.receipts = [*target.receipts, {"verb": "fit", "method": spec.entry.name, "knobs": asdict(spec.knobs), "data": data,
                                            "lesson": asdict(lesson), "parent": identity(target), "lithe": __version__}]
        save(made, output, tokenizer_from=target.folder, overwrite=True)
    shutil.rmtree(run_of(output), ignore_errors=True)
    if as_json:
        emit({"method": spec.entry.address, "folder": str(output), "weights": weights, "model": trained})
    elif trained:
        print(f"{output}: {model}, trained by {spec.entry.name}; use it as a model: lithe generate {output} PROMPT")
    else:
        print(f"{output}: {weights:,} weights of {spec.entry.name} for {model}")
        print(f"use them: lithe generate {model} PROMPT --method {spec.entry.name}:heads={output}")


def unfit(context: typer.Context) -> None:
    """Raises UsageError for options that were given and say nothing to a diffusion model."""
    given = [name for name in context.params if name not in FITS
             and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        raise UsageError(f"--{given[0]} is for models that read from left to right: leave it out")


def paralleled(model: str, *, methods: Seq[str], tasks: Seq[str], problems: int, places: int, seed: int, rows: str | None,
               dtype: str, threads: int | None, offline: bool, as_json: bool, book: Ledger | None) -> int:
    """Run what the ledger lacks of the suite and print all of it. 130 where Ctrl-C ended the run."""
    from lithe.bench.parallel._rows import good, rows as compared
    from lithe.bench.parallel._suite import Course, best, cells, policies
    from lithe.bench.parallel._tasks import TASKS

    target = open_model(model, dtype=dtype, threads=threads, offline=offline)
    given = _published(rows, watch) if rows else {}
    course = Course(target, book, watch, given=given)
    asked = ["", *methods] if methods else policies()
    found, code = [], 0
    for cell in cells(tasks or list(given) or TASKS, asked, problems, seed, given=given, places=places):
        try:
            found += course.run([cell])
        except KeyboardInterrupt:
            code = 130
            break
    able = good(found)
    told = compared(found, able, best())
    if as_json:
        for row in told:
            print(json.dumps(row.json(), ensure_ascii=False))
        return code
    print(f"tasks on which one token a step is right for 80 % and more: {', '.join(able) or 'none'}")
    table(HEADS, [_cells(row) for row in told])
    return code


def _published(source: str, tell: Callable[[str], None]) -> dict[str, list[Problem]]:
    """The problems of published rows, and a line for each group of files and reason of what is left out."""
    from lithe.bench.parallel._published import published

    found, left = published(Path(source).expanduser()), Counter[tuple[str, str]]()
    for name, reasons in found.left_out.items():
        for why, count in reasons.items():
            left[name.partition("/")[0], why] += count
    for (group, why), count in left.items():
        tell(f"left out of {group}: {count} rows: {why}")
    tell("every name, of people and of symbols, was renamed to a word that the model knows, one to one and in order")
    return found.problems


def _cells(row: Row) -> list[Any]:
    if row.error:
        return [row.method, "-", row.error, *[""] * (len(HEADS) - 3)]
    between = lambda pair, form: "-" if pair is None else f"{pair[0]:{form}} - {pair[1]:{form}}"
    return [row.method, f"{row.accuracy:.1%}", f"{row.lost:+.1f}", between(row.lost_interval, ".1f"), f"{row.passes:.1f}",
            f"{row.fewer:.2f} x", between(row.fewer_interval, ".2f"), "-" if row.headroom is None else f"{row.headroom:.0%}",
            f"{row.tokens_per_pass:.2f}", f"{row.rows:.0f}", f"{row.faster:.2f} x"]
