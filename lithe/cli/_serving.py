"""`lithe bench --suite serving`: its options, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lithe.bench.ledger import Ledger

PART = Annotated[list[str] | None, typer.Option(
    "--part", help="of --suite serving: overhead, stalls, prefix, together, through; repeats")]


def served(model: str, parts: Seq[str], dtype: str, threads: int | None, offline: bool, as_json: bool,
           book: Ledger | None) -> int:
    """Run the suite and print it."""
    from lithe.bench.serving._suite import serving

    for part, found in serving(model, parts=parts, dtype=dtype, threads=threads, ledger=book, offline=offline):
        if as_json:
            print(json.dumps({"part": part} | found), flush=True)
        else:
            print(part, flush=True)
            for name, value in found.items():
                print(f"  {name:<10} {_said(value)}", flush=True)
    return 0


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(one)}" for name, one in value.items())
    if isinstance(value, list):
        return " ".join(map(_said, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
