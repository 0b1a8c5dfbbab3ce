"""What verbs share: options, JSON and tables on standard output, opening a model, reading prompt files."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lithe.errors import FormatError, UsageError

if TYPE_CHECKING:
    from lithe.model.decoder import Decoder

JSON = Annotated[bool, typer.Option("--json", help="print JSON, nothing else")]
METHODS = Annotated[list[str] | None, typer.Option("--method", help="a method as name:knob=value,...; repeats")]
DEVICE = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 or mps")]
DTYPE = Annotated[str, typer.Option("--dtype", help="auto, fp32, bf16, fp16, fp64, int8 or int4; int4:128 says the group")]
THREADS = Annotated[int | None, typer.Option("--threads", help="processor threads; all cores where not given", min=1, max=256)]
SEED = Annotated[int, typer.Option("--seed", help="of everything random")]
OFFLINE = Annotated[bool, typer.Option("--offline", help="never ask the network, not even for a hub id")]

LEAST = 20  # characters: a last column with less room than this is better left whole
FIELDS = ("prompt", "text", "question", "turns")  # where a JSON line keeps its prompt, the first that is there


def emit(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns, one line a row. On a terminal the head is bold and the last column is cut to its width."""
    lines = [list(heads), *(["" if cell is None else str(cell) for cell in row] for row in rows)]
    *widths, _ = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = shutil.get_terminal_size().columns - sum(widths) - 2 * len(widths) if sys.stdout.isatty() else 0
    bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for number, (*cells, last) in enumerate(lines):
        if LEAST <= room < len(last):
            last = last[: room - 1] + "…"
        line = "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last]).rstrip()
        print(f"\033[1m{line}\033[0m" if bold and number == 0 else line)


def open_model(name: str, *, dtype: str = "auto", device: str = "cpu", threads: int | None = None,
               offline: bool = False, fast: bool = True) -> Decoder:
    """Load a model as the options ask; fast: for the compiled kernels, whose weights cannot be trained.

    Raises UsageError for an unknown dtype or a device that is not there.
    """
    import torch

    from lithe.model.load import load
    from lithe.model.precision import Precision

    Precision.of(dtype)  # before the device: what was typed wrong is told first
    try:
        torch.empty(0, device=device).tolist()  # which a device without memory, as meta, cannot give
    except (RuntimeError, AssertionError) as problem:  # torch raises AssertionError where it was built without CUDA
        raise UsageError(f"device {device!r} cannot be used: {str(problem).splitlines()[0]}") from None
    return load(name, dtype=dtype, device=device, offline=offline, threads=threads, fast=fast)


def runs_as(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What `model.runtime.report` found, as lines of a name and a text."""
    lines = [("precision", facts["precision"]), ("kernels", f"{facts['kernels']}: {facts['why_kernels']}"),
             ("threads", f"{facts['threads']}: {facts['why_threads']}"),
             ("layers", f"{facts['compiled']} of {facts['layers']} compiled")]
    by_reason: dict[str, list[int]] = {}
    for layer, why in facts["why_not"].items():
        by_reason.setdefault(why, []).append(layer)
    lines += [("uncompiled", f"layer {', '.join(map(str, layers))}: {why}") for why, layers in by_reason.items()]
    if (curve := facts["curve"]) is None:
        return [*lines, ("pass", "not measured here yet; lithe env MODEL does it")]
    beside = "; something ran beside it, so believe it little and measure anew" if curve["noisy"] else ""
    return [*lines, ("pass", f"{curve['T1_ms']:.2f} ms a row behind {curve['context']} tokens; 8 rows take "
                             f"{curve['T8/T1']:.2f} times as long, 16 rows {curve['T16/T1']:.2f}{beside}")]


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a file, as of `read_kinds`."""
    return [prompt for prompt, _ in read_kinds(path)]


def read_kinds(path: str | Path) -> list[tuple[str, str]]:
    """Prompts of a file, and of each its kind, "" where the file tells none.

    `.txt` holds a prompt a line; `.jsonl` and `.jsonl.gz` one object a line, its prompt in one of FIELDS, its kind in "kind".

    Empty lines may only end the file. Raises UsageError for a file that is not there or of another kind, FormatError with
    the line's number for one that cannot be read.
    """
    path = Path(path).expanduser()
    suffix = next((end for end in (".txt", ".jsonl", ".jsonl.gz") if path.name.endswith(end)), None)
    if suffix is None:
        raise UsageError(f"{path}: prompts are read from .txt (one a line), .jsonl or .jsonl.gz files")
    prompts = []
    for number, line in _lines(path, compressed=suffix.endswith(".gz")):
        where = f"{path}, line {number}"
        prompt, kind = (line, "") if suffix == ".txt" else _prompt_of(line, where)
        if not prompt.strip():
            raise FormatError(f"{where}: the prompt is empty")
        prompts.append((prompt, kind))
    if not prompts:
        raise FormatError(f"{path} holds no prompts")
    return prompts


def _lines(path: Path, *, compressed: bool) -> Iterator[tuple[int, str]]:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if compressed else data
    except FileNotFoundError:
        raise UsageError(f"there is no prompts file {path}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise FormatError(f"{path} is not a whole gzip file: {problem}") from None
    except OSError as problem:
        raise UsageError(f"cannot read prompts: {problem}") from None
    data = data.rstrip(b"\r\n")
    for number, line in enumerate(data.split(b"\n") if data else (), start=1):
        try:  # utf-8-sig: a byte-order mark, as some editors write, is no part of the first prompt
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
        except UnicodeDecodeError as problem:
            byte = f"byte {problem.start + 1} is {line[problem.start]:#04x}"
            raise FormatError(f"{path}, line {number} is not UTF-8: {byte}") from None


def _prompt_of(line: str, where: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise FormatError(f"{where} is not JSON: {problem}") from None
    if not isinstance(record, dict):
        raise FormatError(f"{where} is not a JSON object")
    field = next((name for name in FIELDS if name in record), None)
    if field is None:
        raise FormatError(f"{where} has none of the fields {', '.join(FIELDS)}; it has {', '.join(record) or 'none'}")
    value = record[field]
    if field == "turns":  # a conversation: its first question
        value = value[0] if isinstance(value, list) and value else None
    if not isinstance(value, str):
        raise FormatError(f"{where}: field {field!r} holds no text")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise FormatError(f"{where}: field {field!r} holds half a surrogate pair, which is no letter")
    kind = record.get("kind", "")
    if not isinstance(kind, str):
        raise FormatError(f"{where}: field 'kind' holds no text")
    return value, kind
