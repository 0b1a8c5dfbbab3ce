"""Make a small model that drafts for a model, of any shape and without data of your own but a text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from lithe.cli._common import DEVICE, DTYPE, JSON, OFFLINE, SEED, THREADS, emit, open_model

GROUP = "change"


def command(
    model: Annotated[str, typer.Argument(help="the model to draft for: a folder, zoo:NAME or a hub id")],
    data: Annotated[str, typer.Option(help="what to begin from: a text, .jsonl (objects with a text) or .npy (ids) file")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the model folder to make; the run lies beside it")],
    start: Annotated[str, typer.Option(help="a small model with the same tokenizer that has read text already")] = "",
    keep: Annotated[int, typer.Option(help="of the model it starts from, the first so many layers; 0: all", min=0)] = 0,
    exits: Annotated[str, typer.Option(help="layers after which it is to be of use, as 6/9/12; empty: all")] = "",
    layers: Annotated[int, typer.Option(help="layers of a fresh draft; few, since each waits for the one before", min=1)] = 3,
    width: Annotated[int, typer.Option(help="its width, a multiple of the model's head width", min=1)] = 128,
    pretrain: Annotated[int, typer.Option(help="updates on the data; where it is fresh, cut or gets exits", min=0)] = 2500,
    align: Annotated[int, typer.Option(help="updates on what the model writes", min=0)] = 1000,
    written: Annotated[int, typer.Option(help="tokens that the model writes for them", min=1)] = 500_000,
    law: Annotated[float, typer.Option(help="share of the model's law in what is learned then, 0 to 1", min=0, max=1)] = 0.0,
    rate: Annotated[float, typer.Option(help="peak learning rate on the data", min=0)] = 3e-3,
    align_rate: Annotated[float, typer.Option("--align-rate", help="and on what the model writes", min=0)] = 1e-3,
    rows: Annotated[int, typer.Option(help="rows of text a step", min=1)] = 8,
    length: Annotated[int, typer.Option(help="tokens of a row", min=8)] = 256,
    seed: SEED = 0,
    dtype: DTYPE = "auto",
    device: DEVICE = "cpu",
    threads: THREADS = None,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Make a small model that drafts for a model: it reads the data, then what the model writes. Ctrl-C saves; the same command
    goes on from there. The result is a model folder like any other."""
    from lithe.decode.drafter import Recipe, make
    from lithe.model import corpus

    given = locals()
    recipe = Recipe(**{field.name: given[field.name] for field in dataclasses.fields(Recipe)})
    target = open_model(model, dtype=dtype, device=device, threads=threads, offline=offline)
    made = make(target, corpus.load(data, target.tokenizer).ids, recipe, output, quiet=as_json)
    stages = made.receipts[-1]["stages"]
    if as_json:
        emit({"folder": str(output), "weights": made.size, "stages": stages})
        return
    told = ", then ".join(f"{stage['stage']}: {stage['tokens']:,} tokens, loss {stage['loss']:.3f}" for stage in stages)
    print(f"{output}: a draft of {made.size:,} weights for {model}; {told}")
    print(f"use it where a method wants a second model: model={output}")
