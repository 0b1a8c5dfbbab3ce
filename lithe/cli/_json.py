"""`lithe bench --suite json`: its options, and what it prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence as Seq
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lithe.cli._common import open_model, table
from lithe.cli._measure import progress

if TYPE_CHECKING:
    from lithe.bench.json._rows import Row
    from lithe.bench.ledger import Ledger

SCHEMAS = Annotated[list[str] | None, typer.Option("--schemas", help="of --suite json: schemas with instances; repeats; "
                                                                    "the shipped and those in $LITHE_DATA where not given")]
WRITE = Annotated[int, typer.Option("--write", help="of --suite json: schemas of each set under which the model writes", min=0)]
HEADS = ("set", "schemas", "enforced", "exact", "let through", "too strict", "the raw library: enforced", "let through",
         "texts", "valid", "cut", "invalid", "passes saved")


def structured(model: str, *, schemas: Seq[str], write: int, limit: int | None, max_tokens: int, seed: int,
               dtype: str, device: str, threads: int | None, offline: bool, as_json: bool, book: Ledger | None) -> int:
    """Run the suite and print it. 1 where anything invalid was let through."""
    from lithe.bench.json._rows import records, rows
    from lithe.bench.json._sets import chosen
    from lithe.bench.json._suite import method, outcomes
    from lithe.decode.plan import plan

    cases, spec = chosen(schemas, os.environ.get("LITHE_DATA"), limit), method()
    target = open_model(model, dtype=dtype, device=device, threads=threads, offline=offline)
    with progress("schemas") as tell:
        found = outcomes(plan(target), cases, spec=spec, max_tokens=max_tokens, seed=seed, write=write, progress=tell)
    lines = rows(found)
    if book is not None:
        for record in records(lines, found, target, spec=spec, settings={"max_tokens": max_tokens, "write": write}, seed=seed):
            book.append(record)
    if as_json:
        for row in lines:
            print(json.dumps(asdict(row) | {"invalid": row.invalid}, ensure_ascii=False))
    else:
        table(HEADS, [_cells(row) for row in lines])
        _times(lines[-1])
    if len(found) < len(cases):
        print(f"interrupted: {len(found)} of {len(cases)} schemas", file=sys.stderr)
        return 130
    return int(any(row.wrongly_accepted or row.invalid for row in lines))


def _cells(row: Row) -> list[Any]:
    return [row.set, row.schemas, row.declared, row.exact, row.wrongly_accepted, row.overly_strict, row.raw_declared,
            row.raw_wrongly_accepted, row.texts, row.valid, row.cut, row.invalid,
            "-" if row.skipped is None else f"{row.skipped:.0%}"]


def _times(row: Row) -> None:
    told = [f"{what} {' / '.join(f'{value:.3g}' for value in values)} {unit}" for what, values, unit in
            (("to compile", row.compile_ms, "ms"), ("a mask", row.mask_us, "us")) if values]
    told += [f"a token {way} {value:.3g} ms" for way, value in row.per_token_ms.items()]
    print("; ".join(told) + " (median / 99 % / most)")
    if row.written:
        print(f"texts are the same without forcing under {row.same} of {row.written} schemas; unconstrained, {row.free_valid} "
              f"of {row.texts // 2} are valid")
