"""The suite as one call: from a model's name to cells in the ledger."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence as Seq
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lithe import __version__
from lithe.bench.engines import ENGINES, GGUF_TYPES, LITHE, LLAMA, PRECISIONS
from lithe.bench.engines._rows import ratios
from lithe.bench.engines._suite import Cell, Progress, Run, race
from lithe.bench.engines._target import Target, prepare
from lithe.bench.ledger import Ledger, Record
from lithe.bench.provenance import code_hash, commit, digest, machine
from lithe.errors import UsageError
from lithe.registry import near


def bench_engines(model: str, *, engines: Seq[str] = (), precisions: Seq[str] = (), texts: list[str], rounds: int = 9,
                  tokens: int = 32, threads: int | None = None, ledger: Ledger | None = None, offline: bool = False,
                  progress: Progress = lambda done, total: None) -> tuple[Run, Target]:
    """Measure engines side by side.

    model: a folder, `zoo:NAME`, a hub id, or `shape:135m`, random weights of that shape. engines, precisions: of ENGINES and
    PRECISIONS, all where none are given. texts: scored by a model with a tokenizer. rounds: turns of every engine. tokens: to
    decode in a turn. Files for llama.cpp are made in a temporary folder. Every cell goes to the ledger.
    """
    for asked, known in ((engines, ENGINES), (precisions, PRECISIONS)):
        for name in asked:
            if name not in known:
                raise UsageError(f"there is no {name!r} here{near(name, known)}")
    threads = threads or _usable()
    torch.set_num_threads(threads)  # those on which is listened whether the machine is quiet
    begun = datetime.now(UTC).isoformat(timespec="milliseconds")
    with tempfile.TemporaryDirectory(prefix="lithe-engines-") as home:
        target = prepare(model, Path(home), texts, offline=offline)
        run = race(target, engines=list(dict.fromkeys(engines)) or ENGINES, tokens=tokens,
                   precisions=list(dict.fromkeys(precisions)) or PRECISIONS, rounds=rounds, threads=threads, progress=progress)
        settings = {"run": begun, "rounds": rounds, "tokens": tokens}
        for cell in run.cells:
            if ledger is not None and cell.samples:
                ledger.append(_record(cell, run, target, settings, threads))
    return run, target


def measured(cell: Cell, run: Run, target: Target) -> dict[str, Any]:
    """A cell as JSON: its numbers by round, and in lithe's cells the ratios to the others of its precision."""
    said = cell.json() | {"disturbed": run.disturbed, "left_out": run.left_out, "interrupted": run.interrupted,
                          "join_mean_us": round(run.calm.mean_us, 1), "config": target.config.to_json()}
    if cell.engine == LITHE:
        beside = [other for other in run.cells if other.precision == cell.precision]
        said["ratios"] = {name: value.json() for name, value in ratios(beside, target.config).items()}
    return said


def _record(cell: Cell, run: Run, target: Target, settings: dict[str, Any], threads: int) -> Record:
    kind = GGUF_TYPES[cell.precision] if cell.engine == LLAMA else cell.precision
    return Record(
        suite="engines", model=target.name, model_hash=target.hash, method=cell.engine, settings=settings, seed=0,
        prompts_hash=digest(target.ids), code_hash=code_hash(), measured=measured(cell, run, target), machine=dict(machine()),
        device="cpu", precision=kind, threads=threads, torch=torch.__version__, lithe=__version__, commit=commit(),
        kernels=cell.facts.get("kernels", ""))


def _usable() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
