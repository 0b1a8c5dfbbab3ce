"""Run the suite and keep records of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence as Seq
from pathlib import Path
from typing import Any

from lithe.bench.engines._target import PREFIX as SHAPE, prepare
from lithe.bench.ledger import Ledger
from lithe.bench.provenance import record
from lithe.bench.quiet import listen
from lithe.bench.serving._parts import PARTS, chosen, needed
from lithe.errors import UnsupportedError, UsageError
from lithe.model.load import load
from lithe.registry import near


def serving(name: str, *, parts: Seq[str] = (), dtype: str = "auto", threads: int | None = None, ledger: Ledger | None = None,
            offline: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each part measured, as it is known. name: a folder, zoo:NAME, a hub id, or shape:135m, random weights of that shape.

    Raises UsageError for a part that there is none of, UnsupportedError where the model's context is too short for it.
    """
    if wrong := [part for part in parts if part not in PARTS]:
        raise UsageError(f"the suite has no part {wrong[0]!r}{near(wrong[0], PARTS)}")
    with tempfile.TemporaryDirectory(prefix="lithe-") as home:
        folder = str(prepare(name, Path(home), []).folder) if name.startswith(SHAPE) else name
        model = load(folder, dtype=dtype, threads=threads, offline=offline)
        model.source = name
        for part in chosen(model, list(parts)):
            if needed(part) > model.config.context:
                raise UnsupportedError(f"{part} needs a context of {needed(part)} tokens, the model has {model.config.context}")
            quiet = listen()
            found = PARTS[part](model) | {"disturbed": quiet.disturbed or listen().disturbed}
            if ledger is not None:
                ledger.append(record("serving", model, measured=found, inputs=part, settings={"part": part}, seed=0,
                                     method=part))
            yield part, found
