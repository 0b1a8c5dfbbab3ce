"""Write a model for other programs: stock floats, compressed-tensors or GPTQ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lithe.cli._common import JSON, OFFLINE, emit

GROUP = "change"


def command(
    model: Annotated[str, typer.Argument(help="a model folder, zoo:NAME or a hub id")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the folder to write")],
    layout: Annotated[str, typer.Option(help="plain, compressed-tensors or gptq")] = "plain",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a model folder of that name")] = False,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Export a compressed model in a layout that transformers reads; the weights stay what they are.

    plain: floats in stock shapes; what was cut from some layers only is padded with zeros. compressed-tensors, gptq: whole
    numbers stay packed, kinds that the layout lacks become floats. What had to be padded or widened is told.
    """
    from lithe.model.export import export
    from lithe.model.load import load

    loaded = load(model, fast=False, offline=offline)
    notes = export(loaded, out, layout, overwrite=overwrite)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    if as_json:
        emit({"out": str(out), "layout": layout, "bytes": size, "notes": notes})
        return
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {size:,} bytes to {out}")
