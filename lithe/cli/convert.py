"""Turn a llama2.c checkpoint into a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

GROUP = "change"


def command(
    checkpoint: Annotated[Path, typer.Argument(help="a llama2.c .bin file: float32, int8 (version 2) or ternary (version 1)")],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="its tokenizer, a llama2.c tok*.bin file")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the folder to write")],
) -> None:
    """Convert a llama2.c checkpoint and its tokenizer to the Hugging Face layout."""
    from lithe.model.convert import convert

    convert(checkpoint, tokenizer, out)
    print(f"wrote {out}; try: lithe generate {out} 'Once upon a time'")
