"""`lithe bench --suite tuning` and `--suite compress`: a plan's options, its runs and their table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence as Seq
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lithe.cli._common import table
from lithe.errors import UsageError

if TYPE_CHECKING:
    from lithe.bench.ledger import Ledger
    from lithe.bench.matrix import Matrix

PLAN = Annotated[str | None, typer.Option("--plan", help="of --suite tuning and compress: a file of methods; the shipped one "
                                                         "where not given")]
RUNS = Annotated[int | None, typer.Option("--runs", help="of --suite tuning and compress: most runs of this call", min=1)]


def kept(book: Ledger | None, suite: str, threads: int | None) -> Ledger:
    """The ledger that a plan goes on from; sets the threads. Raises UsageError where there is none."""
    import torch

    if book is None:
        raise UsageError(f"--suite {suite} goes on from its ledger, so it needs one")
    if threads is not None:
        torch.set_num_threads(threads)
    return book


def watch(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def carry_on(suite: Matrix[Any, Any], runs: int | None) -> int:
    """Run what the ledger does not hold of a plan: 0, or 130 where Ctrl-C ended it."""
    try:
        suite.run(runs)
    except KeyboardInterrupt:
        return 130
    return 0


def tell(rows: Seq[Any], heads: Seq[str], cells: Callable[[Any], list[Any]], as_json: bool) -> None:
    """All that is known of the plan: a table, or a line of JSON a row."""
    if not as_json:
        table(heads, [cells(row) for row in rows])
    for row in rows if as_json else ():
        print(json.dumps(asdict(row), ensure_ascii=False))
