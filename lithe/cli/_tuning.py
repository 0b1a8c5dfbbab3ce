"""`lithe bench --suite tuning`: its options, and what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence as Seq
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lithe.cli._common import table
from lithe.errors import UsageError

if TYPE_CHECKING:
    from lithe.bench.ledger import Ledger
    from lithe.bench.tuning._rows import Row

PLAN = Annotated[str | None, typer.Option("--plan", help="of --suite tuning and compress: a file of methods; the shipped one "
                                                         "where not given")]
SHIFT = Annotated[list[str] | None, typer.Option("--shift", help="of --suite tuning, only this text; repeats")]
RUNS = Annotated[int | None, typer.Option("--runs", help="of --suite tuning and compress: most runs of this call", min=1)]

HEADS = ("shift", "method", "values", "gain", "forgets", "loss", "rate", "gradients", "optimizer", "activations")
MIB = 2**20


def matrix(model: str, *, methods: Seq[str], shifts: Seq[str], plan: str | None, runs: int | None, threads: int | None,
           offline: bool, as_json: bool, book: Ledger | None) -> int:
    """Run what the ledger does not hold of the plan's matrix, and print all of it. 130 where Ctrl-C ended the run."""
    import torch

    from lithe.bench.tuning import _plan
    from lithe.bench.tuning._rows import rows
    from lithe.bench.tuning._suite import Matrix

    if book is None:
        raise UsageError("--suite tuning goes on from its ledger, so it needs one")
    if threads is not None:
        torch.set_num_threads(threads)
    asked = _plan.narrowed(_plan.read(Path(plan) if plan else _plan.SHIPPED), tuple(methods), tuple(shifts))
    suite = Matrix(model, asked, book, offline=offline, tell=lambda line: print(line, file=sys.stderr, flush=True))
    code = 0
    try:
        suite.run(runs)
    except KeyboardInterrupt:
        code = 130
    found = rows(suite.known.values())
    if as_json:
        for row in found:
            print(json.dumps(asdict(row), ensure_ascii=False))
    else:
        table(HEADS, [_cells(row) for row in found])
    return code


def _cells(row: Row) -> list[Any]:
    held = [f"{row.bytes[name] / MIB:.2f} MiB" for name in ("gradients", "optimizer", "activations")]
    return [row.shift, row.method, f"{row.values:.2%}", "-" if row.gain is None else f"{row.gain:.0%}",
            f"{row.forgets:+.3f}", f"{row.before:.3f} -> {row.after:.3f}", f"{row.rate:g}", *held]
