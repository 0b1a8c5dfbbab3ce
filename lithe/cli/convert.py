"""Write a model in another precision, with its adapters merged, or a llama2.c checkpoint as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lithe.cli._common import DTYPE, OFFLINE
from lithe.errors import UsageError

GROUP = "change"


def command(
    model: Annotated[str, typer.Argument(help="a model folder, zoo:NAME, a hub id, or a llama2.c .bin file")],
    folder: Annotated[Path | None, typer.Argument(metavar="OUT", help="the folder to write")] = None,
    dtype: DTYPE = "auto",
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="of a .bin file: its llama2.c tok*.bin")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="an adapter's folder, to be merged first; repeats")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="the folder to write, said this way")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a model folder of that name")] = False,
    offline: OFFLINE = False,
) -> None:
    """Round a model's weights to nearest: to floats, or to whole numbers with a scale a group, packed for lithe's kernels.

    Packed folders load without the original and bit for bit. What was done is kept in lithe.json. With --adapter: merge
    adapters into the weights first, which must be floats. With --tokenizer: convert a llama2.c checkpoint (float32, int8 of
    version 2 or ternary of version 1) to the Hugging Face layout, as it is.
    """
    target = folder or out
    if target is None or (folder and out):
        raise UsageError("say which folder to write, once: lithe convert MODEL OUT")
    if tokenizer is not None:
        if dtype != "auto" or overwrite or adapter:
            raise UsageError("a llama2.c checkpoint is converted as it is; convert the folder that it becomes once more")
        from lithe.model.convert import convert

        convert(model, tokenizer, target)
    else:
        _round(model, target, dtype, overwrite, offline, adapter or [])
    print(f"wrote {target}; try: lithe generate {target} 'Once upon a time'")


def _round(name: str, target: Path, dtype: str, overwrite: bool, offline: bool, adapters: list[str]) -> None:
    from lithe.model.checkpoint import fingerprint, save
    from lithe.model.load import load
    from lithe.model.precision import precision
    from lithe.tune.rack import attach

    if name.endswith(".bin"):
        raise UsageError("a llama2.c checkpoint needs its --tokenizer")
    if dtype == "auto" and not adapters:
        raise UsageError("say into which precision: --dtype bf16, int8, int4:128, ...")
    model = load(name, dtype=dtype, offline=offline, fast=False)
    assert model.folder is not None
    parent = fingerprint(model.folder)
    if adapters:
        rack = attach(model, *adapters)
        rack.merge(dict.fromkeys(rack.adapters, 1.0))
        model.receipts = [*model.receipts, *({"verb": "merge", **held.receipt, "parent": parent} for held in
                                             rack.adapters.values())]
    if dtype != "auto":
        model.receipts = [*model.receipts, {"method": "round to nearest", "knobs": {"dtype": precision(model)}, "seed": None,
                                            "parent": parent}]
    save(model, target, tokenizer_from=model.folder, overwrite=overwrite)
