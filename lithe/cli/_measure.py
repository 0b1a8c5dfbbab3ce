"""What the measuring verbs share: the ledger's options and progress on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from lithe.errors import UsageError

if TYPE_CHECKING:
    from lithe.bench.ledger import Ledger

LEDGER = Annotated[str | None, typer.Option("--ledger", help="file of records; else $LITHE_LEDGER, else .lithe/ledger.jsonl")]
NO_LEDGER = Annotated[bool, typer.Option("--no-ledger", help="keep no record")]
PROMPTS = Annotated[str | None, typer.Option("--prompts", help=".txt or .jsonl file; the shipped mixture where not given")]
LIMIT = Annotated[int | None, typer.Option("--limit", help="only the first prompts of the file", min=1)]

EVERY_S = 10  # between plain lines of progress


def open_ledger(path: str | None, no_ledger: bool) -> Ledger | None:
    """The ledger, found to be writable before the work starts, or None where none is wanted."""
    from lithe.bench.ledger import Ledger

    if not no_ledger:
        return Ledger(path)
    if path is not None:
        raise UsageError("--ledger and --no-ledger exclude each other")
    return None


def chosen_prompts(path: str | None, limit: int | None) -> list[str]:
    """Prompts of a file, or of the shipped mixture."""
    return [prompt for prompt, _ in chosen_kinds(path, limit)]


def chosen_kinds(path: str | None, limit: int | None) -> list[tuple[str, str]]:
    """The same, each with its kind."""
    from lithe.cli._common import read_kinds
    from lithe.model.load import ZOO

    return read_kinds(path if path is not None else ZOO / "prompts" / "mixed.jsonl")[:limit]


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function of done and total: a bar where standard error is a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        yield _Lines(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    def __init__(self, what: str):
        self.what, self.last = what, monotonic()

    def __call__(self, done: int, total: int) -> None:
        if monotonic() - self.last >= EVERY_S:
            self.last = monotonic()
            print(f"{self.what}: {done} of {total}", file=sys.stderr, flush=True)
