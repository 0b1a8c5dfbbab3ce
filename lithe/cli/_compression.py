"""`lithe bench --suite compress`: what it prints."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lithe.cli._matrix import carry_on, kept, tell, watch

if TYPE_CHECKING:
    from lithe.bench.compress._rows import Row
    from lithe.bench.ledger import Ledger

HEADS = ("model", "method", "ratio", "bytes", "loss", "KL", "against", "gains", "95 %", "seeds")


def compressed(model: str, *, methods: Seq[str], plan: str | None, runs: int | None, threads: int | None, offline: bool,
               as_json: bool, book: Ledger | None) -> int:
    """Run what the ledger does not hold of the plan, and print all of it. 130 where Ctrl-C ended the run."""
    from lithe.bench.compress import SUITE, _plan
    from lithe.bench.compress._rows import rows
    from lithe.bench.compress._suite import Matrix

    ledger = kept(book, SUITE, threads)
    asked = _plan.narrowed(_plan.read(Path(plan) if plan else _plan.SHIPPED), tuple(methods))
    suite = Matrix(model, asked, ledger, offline=offline, tell=watch)
    code = carry_on(suite, runs)
    tell(rows(suite.known, asked), HEADS, _cells, as_json)
    return code


def _cells(row: Row) -> list[Any]:
    between = "-" if row.low is None else f"{row.low:+.4f} - {row.high:+.4f}"
    gains = "-" if row.gains is None else f"{row.gains:+.4f}" + ("" if row.same_bytes else " (more bytes)")
    return [row.on, row.method, "-" if row.ratio is None else f"{row.ratio:g}", f"{row.bytes:.1%}", f"{row.more:+.4f}",
            f"{row.kl:.4f}", row.against or "-", gains, between, row.seeds]
