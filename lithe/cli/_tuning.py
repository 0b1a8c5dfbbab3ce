"""`lithe bench --suite tuning`: its options, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lithe.cli._matrix import carry_on, kept, tell, watch

if TYPE_CHECKING:
    from lithe.bench.ledger import Ledger
    from lithe.bench.tuning._rows import Row

SHIFT = Annotated[list[str] | None, typer.Option("--shift", help="of --suite tuning, only this text; repeats")]

HEADS = ("shift", "method", "values", "gain", "forgets", "loss", "rate", "gradients", "optimizer", "activations")
MIB = 2**20


def tuned(model: str, *, methods: Seq[str], shifts: Seq[str], plan: str | None, runs: int | None, threads: int | None,
          offline: bool, as_json: bool, book: Ledger | None) -> int:
    """Run what the ledger does not hold of the plan's matrix, and print all of it. 130 where Ctrl-C ended the run."""
    from lithe.bench.tuning import SUITE, _plan
    from lithe.bench.tuning._rows import rows
    from lithe.bench.tuning._suite import Matrix

    ledger = kept(book, SUITE, threads)
    asked = _plan.narrowed(_plan.read(Path(plan) if plan else _plan.SHIPPED), tuple(methods), tuple(shifts))
    suite = Matrix(model, asked, ledger, offline=offline, tell=watch)
    code = carry_on(suite, runs)
    tell(rows(suite.known.values()), HEADS, _cells, as_json)
    return code


def _cells(row: Row) -> list[Any]:
    held = [f"{row.bytes[name] / MIB:.2f} MiB" for name in ("gradients", "optimizer", "activations")]
    return [row.shift, row.method, f"{row.values:.2%}", "-" if row.gain is None else f"{row.gain:.0%}",
            f"{row.forgets:+.3f}", f"{row.before:.3f} -> {row.after:.3f}", f"{row.rate:g}", *held]
