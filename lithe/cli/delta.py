"""Take the difference of two checkpoints: pack, apply, merge and evaluate it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lithe.cli._common import JSON, METHODS, OFFLINE, SEED, THREADS, emit

GROUP = "change"
ACTIONS = "pack BASE AFTER, apply BASE DELTA, merge BASE A B ..., eval BASE A ..., or show DELTA ..."


def command(
    action: Annotated[str, typer.Argument(help=ACTIONS)],
    places: Annotated[list[str], typer.Argument(metavar="FOLDERS", help="models, adapters of BASE, or packed deltas")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="the folder to write")] = None,
    method: METHODS = None,
    weight: Annotated[list[float] | None, typer.Option("--weight", help="merge: of each difference; repeats; 1 each")] = None,
    valid: Annotated[str | None, typer.Option("--valid", help="pack, merge: a text; its loss chooses open knobs")] = None,
    unlabelled: Annotated[str | None, typer.Option("--unlabelled", help="pack: a text; knobs are chosen by how little the "
                                                                        "last states change")] = None,
    text: Annotated[str | None, typer.Option("--text", help="eval: a .txt or .jsonl file to score")] = None,
    seeds: Annotated[int, typer.Option(help="eval: how often methods that draw are tried", min=1, max=1000)] = 3,
    start: Annotated[str | None, typer.Option("--start", help="an adapter on a model is compared with: fresh, as its receipt "
                                                              "says that it began, or nothing")] = None,
    seed: SEED = 0,
    threads: THREADS = None,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Pack what training changed, put it back, add several up, and measure what is left of the gain.

    Without a method the difference is exact: applied, it gives the second checkpoint back bit for bit. The folders that are
    read are never written to, and a packed delta fits the base that it was taken from and no other.
    """
    from lithe.cli import _delta

    order = _delta.Order(places=places, out=out, specs=method or [], weights=weight, valid=valid, unlabelled=unlabelled,
                         text=text, seeds=seeds, start=start, seed=seed, threads=threads, offline=offline)
    told = _delta.run(action, order)
    emit(told) if as_json else _delta.show(told)
