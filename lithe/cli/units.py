"""Tune a model to say several tokens at once where it is sure of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from lithe.cli._common import DEVICE, DTYPE, JSON, OFFLINE, SEED, THREADS, emit, open_model

GROUP = "change"


def command(
    model: Annotated[str, typer.Argument(help="a model folder, zoo:NAME or a hub id")],
    data: Annotated[str, typer.Option(help="what to learn from: a text, .jsonl (objects with a text) or .npy (ids) file")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the model folder to make; the run lies beside it")],
    steps: Annotated[int, typer.Option(help="updates", min=1)] = 1000,
    alpha: Annotated[float, typer.Option(help="probability that makes a token part of the unit before it", min=0, max=1)] = 0.9,
    most: Annotated[int, typer.Option(help="tokens of the longest unit", min=2, max=16)] = 4,
    points: Annotated[int, typer.Option(help="units of a row that an update learns from", min=1)] = 32,
    rows: Annotated[int, typer.Option(help="rows of text an update", min=1)] = 8,
    length: Annotated[int, typer.Option(help="tokens of a row", min=8)] = 256,
    rate: Annotated[float, typer.Option(help="peak learning rate", min=0)] = 1e-4,
    seed: SEED = 0,
    dtype: DTYPE = "auto",
    device: DEVICE = "cpu",
    threads: THREADS = None,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Tune all weights of a model so that placeholders behind a text say what follows. Ctrl-C saves; the same command goes on
    from there. The result is a model folder with one token more, the placeholder."""
    from lithe.decode.lexical import Recipe, make
    from lithe.model import corpus

    given = locals()
    recipe = Recipe(**{field.name: given[field.name] for field in dataclasses.fields(Recipe)})
    target = open_model(model, dtype=dtype, device=device, threads=threads, offline=offline, fast=False)
    made = make(target, corpus.load(data, target.tokenizer).ids, recipe, output, quiet=as_json)
    done = made.receipts[-1]
    if as_json:
        emit({"folder": str(output), "weights": made.size, "tokens": done["tokens"], "loss": done["loss"]})
        return
    print(f"{output}: {model} tuned on {done['tokens']:,} tokens, loss {done['loss']:.3f}")
