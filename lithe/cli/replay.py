"""Do a compression again from its receipt, and compare the hashes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lithe.cli._common import JSON, OFFLINE, THREADS, emit
from lithe.cli._measure import progress

GROUP = "change"


def command(
    folder: Annotated[str, typer.Argument(help="a folder that `lithe compress` wrote")],
    model: Annotated[str, typer.Option(help="the model that it was made from, where it no longer lies where it did")] = "",
    calibration: Annotated[str, typer.Option(help="the calibration text, likewise")] = "",
    threads: THREADS = None,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Compress again as a folder's receipts say, in a place of its own, and hold every bit against the folder.

    On the same versions and machine the two must be the same bit for bit; elsewhere each layer's weights may differ by 0.1 % of
    their norm. Exits with 1 where they differ by more. The folder is not touched.
    """
    import torch

    from lithe.compress.replay import replay

    if threads is not None:
        torch.set_num_threads(threads)
    with progress("replaying") as bar:
        found = replay(folder, model=model, calibration=calibration, offline=offline,
                       tell=lambda what, done, total: bar(done, total))
    if as_json:
        emit(asdict(found) | {"same": found.same, "good": found.good})
    elif found.same:
        print(f"the same, bit for bit: {found.now}")
    else:
        around = "; ".join(f"{key} was {was}, is {now}" for key, (was, now) in found.changed.items())
        print(f"not the same: {found.layer} differs by {found.worst:.1e} of its norm; {around or 'nothing around it changed'}")
    if not found.good:
        raise typer.Exit(1)
