"""Fit a method's weights, such as the heads of a draft, to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lithe import registry
from lithe.cli._common import DEVICE, DTYPE, JSON, OFFLINE, SEED, THREADS, emit, open_model
from lithe.cli._filling import fitted, unfit
from lithe.errors import UsageError

GROUP = "change"


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="a model folder, zoo:NAME or a hub id")],
    method: Annotated[str, typer.Option(help="a method with weights, as name:knob=value,...")],
    data: Annotated[str, typer.Option(help="what to learn from: a text, .jsonl (objects with a text) or .npy (ids) file; for a "
                                           "diffusion model .jsonl (prompt and answer) or tasks:NAME,NAME")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder to make; it also holds the run while it lasts")],
    steps: Annotated[int, typer.Option(help="updates", min=1)] = 1000,
    rows: Annotated[int, typer.Option(help="rows of text a step", min=1)] = 8,
    length: Annotated[int, typer.Option(help="tokens of a row", min=8)] = 256,
    warmup: Annotated[int, typer.Option(help="updates until the learning rate, a knob of the method, is reached", min=0)] = 20,
    written: Annotated[int, typer.Option(help="learn from so many tokens that the model itself writes, going on from pieces "
                                              "of the data; 0: from the data", min=0)] = 0,
    temperature: Annotated[float, typer.Option(help="at which it writes; 0 is greedy", min=0)] = 0.0,
    keep: Annotated[bool, typer.Option("--keep", help="put the model's states on disk, so that it reads a row once")] = False,
    examples: Annotated[int, typer.Option(help="of tasks: how many problems are drawn", min=1)] = 1000,
    seed: SEED = 0,
    dtype: DTYPE = "auto",
    device: DEVICE = "cpu",
    threads: THREADS = None,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Fit a method's weights to a model, which stays as it is. Ctrl-C saves; the same command goes on from there."""
    from lithe.model import corpus
    from lithe.train.learn import Lesson, learn

    spec = registry.parse(method)
    if not spec.entry.card.trains:
        able = ", ".join(e.name for e in registry.entries() if e.card.trains)
        raise UsageError(f"{spec.entry.address} has no weights to fit; these have: {able}")
    target = open_model(model, dtype=dtype, device=device, threads=threads, offline=offline, fast=False)
    size = dict(steps=steps, rows=rows, warmup=warmup, seed=seed)
    if target.config.attends != "causal" or spec.entry.room == "diffuse":
        unfit(context)
        fitted(spec, target, data, output, size, pool=examples, model=model, as_json=as_json)
        return
    ids = corpus.load(data, target.tokenizer).ids
    if written:
        ids = _written(target, ids, written, temperature, seed, output, as_json)
    made = learn(spec.entry, spec.knobs, target, ids, Lesson(**size, length=length, keep=keep), folder=output, quiet=as_json)
    first = [row[0] for row in made.rates]
    if as_json:
        emit({"method": spec.entry.address, "folder": str(output), "rates": made.rates,
              "weights": sum(weight.numel() for weight in made.module.parameters() if weight.requires_grad)})
        return
    right = ", ".join(f"{rate:.0%}" for rate in first)
    print(f"{output}: weights of {spec.entry.name} for {model}" + (f"; right at depth 1, 2, ...: {right}" if right else ""))
    print(f"use them: lithe generate {model} PROMPT --method {spec.entry.name}:heads={output}")


def _written(target, ids, tokens: int, temperature: float, seed: int, output: Path, quiet: bool):
    """What the model writes, kept beside the run, so that the same command goes on with the same text."""
    import numpy as np

    from lithe.decode.write import write

    beside = output.with_name(f"{output.name}.written-{tokens}-{temperature:g}-{seed}.npy")
    if beside.is_file():
        return np.load(beside, allow_pickle=False)
    found = write(target, ids, tokens, temperature=temperature, seed=seed, quiet=quiet)
    beside.parent.mkdir(parents=True, exist_ok=True)
    draft = beside.with_suffix(".part")  # what bears the name is whole
    with draft.open("wb") as file:
        np.save(file, found, allow_pickle=False)
    draft.replace(beside)
    return found
