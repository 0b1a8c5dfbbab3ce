"""`lithe bench --suite engines`: its options, and what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lithe.cli._common import table
from lithe.cli._measure import chosen_prompts, progress
from lithe.errors import UsageError
from lithe.registry import near

if TYPE_CHECKING:
    from lithe.bench.engines._suite import Cell, Run
    from lithe.bench.ledger import Ledger

SUITE = Annotated[str, typer.Option(help="methods; engines: lithe beside transformers and llama.cpp; tuning; compress; serving"
                                         "; json; parallel")]
ENGINE = Annotated[list[str] | None, typer.Option("--engine", help="of --suite engines, only this one; repeats")]
PRECISION = Annotated[list[str] | None, typer.Option("--precision", help="of --suite engines: int8, bf16, fp32, int4; repeats")]
ROUNDS = Annotated[int, typer.Option(help="of --suite engines: turns that every engine has", min=1)]

# Options of one suite alone.
OWN = {"methods": set(), "engines": {"engine", "precision", "rounds"}, "tuning": {"plan", "shift", "runs"},
       "compress": {"plan", "runs"}, "serving": {"part"}, "json": {"schemas", "write"},
       "parallel": {"task", "problems", "places", "rows"}}
BOTH = {"model", "suite", "as_json", "ledger", "no_ledger", "threads", "offline"}
SHARED = {"engines": BOTH | {"prompts", "limit"}, "tuning": BOTH | {"method"}, "compress": BOTH | {"method"},
          "serving": BOTH | {"dtype"}, "json": BOTH | {"limit", "max_tokens", "seed", "dtype", "device"},
          "parallel": BOTH | {"method", "seed", "dtype"}}  # with plain benches
HEADS = ("tokens/s", "prefill tokens/s", "T(1) ms", "T(8) ms", "T(16) ms", "T(64) ms", "loss", "start s", "peak MB")


def checked(context: typer.Context, suite: str) -> None:
    """Raises UsageError for a suite that there is none of, and for options that belong to another one."""
    if suite not in OWN:
        raise UsageError(f"there is no suite {suite!r}{near(suite, OWN)}")
    given = {name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    foreign = set.union(*(own for name, own in OWN.items() if name != suite))
    wrong = given & foreign if suite not in SHARED else given - OWN[suite] - SHARED[suite]
    if wrong:
        said = ", ".join("--" + name.replace("_", "-") for name in sorted(wrong))
        raise UsageError(f"--suite {suite} has no {said}")


def compare(model: str, *, engines: Seq[str], precisions: Seq[str], rounds: int, prompts: str | None, limit: int | None,
            threads: int | None, offline: bool, as_json: bool, book: Ledger | None) -> int:
    """Run the suite and print it. 1 where an engine failed, 130 where Ctrl-C ended the run."""
    from lithe.bench.engines._bench import bench_engines, measured
    from lithe.bench.engines._rows import ratios

    with progress("measuring") as tell:
        run, target = bench_engines(model, engines=engines, precisions=precisions, texts=chosen_prompts(prompts, limit),
                                    rounds=rounds, threads=threads, ledger=book, offline=offline, progress=tell)
    if as_json:
        for cell in run.cells:
            print(json.dumps(measured(cell, run, target), ensure_ascii=False))
    else:
        table(("engine", "precision", *HEADS), [_cells(cell) for cell in run.cells if cell.engine != "machine"])
        for precision in dict.fromkeys(cell.precision for cell in run.cells):
            found = ratios([cell for cell in run.cells if cell.precision == precision], target.config)
            if found:
                print(f"\n{precision} (95 % in brackets)")
                table(("ratio", ""), [(name, str(value)) for name, value in found.items()])
    _warn(run)
    failed = any(cell.error and cell.facts for cell in run.cells)
    return 130 if run.interrupted else int(failed)


def _cells(cell: Cell) -> list[Any]:
    from lithe.bench.engines._rows import speeds
    from lithe.bench.engines._suite import named

    if cell.error:
        return [cell.engine, named(cell), cell.error, *[None] * (len(HEADS) - 1)]
    found = speeds(cell)
    return [cell.engine, named(cell), *(_short(found.get(head)) for head in HEADS)]


def _short(number: float | None) -> str:
    return "-" if number is None else f"{number:.4g}"


def _warn(run: Run) -> None:
    """What a reader must know before believing the numbers, on standard error."""
    tell = lambda text: print(text, file=sys.stderr)
    if run.left_out:
        tell(f"{run.left_out} rounds during which something else ran on this machine were left out")
    if run.disturbed:
        tell(f"disturbed: too few quiet rounds were left, so believe no time above ({run.calm})")
    if run.interrupted:
        tell("interrupted: no more was measured than is shown")
    for cell in run.cells:
        if cell.facts.get("busy_waiting", 0) > 0.1:
            tell(f"{cell.engine} {cell.precision} kept {cell.facts['busy_waiting']:.0%} of a processor busy while others had "
                 "their turn")
