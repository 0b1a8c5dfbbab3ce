"""What a difference is taken of: the tensors of a model folder, or of an adapter's, read one at a time and never written to.

An adapter's difference begins somewhere too: where its receipt says that training began (`fresh`), or at what changes nothing
(`nothing`: zeros, and ones for what multiplies).
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lithe import registry
from lithe.errors import FormatError, UnsupportedError, UsageError
from lithe.model import checkpoint, header
from lithe.model.load import load, resolve
from lithe.tune import folder as folders
from lithe.tune.coding import WORDS
from lithe.tune.rack import Rack

MODEL, ADAPTER = "model", "adapter"
FRESH, NOTHING, OTHER = "fresh", "nothing", "folder"
STARTS = (FRESH, NOTHING)
PAPERS = (folders.THEIRS, folders.OURS, folders.RECEIPT)  # the JSON files that an adapter may have


@dataclass
class Source:
    """Named tensors. what: model or adapter. shapes, dtypes: by name, in the order in which they lie. papers: JSON files that
    belong to an adapter, by name."""

    what: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    read: Callable[[str], Tensor]
    folder: Path | None = None
    start: str = OTHER
    papers: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of what it holds; of a model, its fingerprint."""
        if self.what == MODEL and self.folder is not None:
            return checkpoint.fingerprint(self.folder)
        whole = hashlib.sha256()
        for name in sorted(self.shapes):
            whole.update(repr((name, str(self.dtypes[name]), self.shapes[name])).encode())
            whole.update(self.read(name).contiguous().flatten().view(torch.uint8).numpy().data)
        return whole.hexdigest()

    @property
    def size(self) -> int:
        return sum(map(math.prod, self.shapes.values()))


def is_adapter(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (folders.THEIRS, folders.OURS))


def open_source(name: str | Path, *, offline: bool = False) -> Source:
    """The model or adapter of that name. Raises FormatError for what is neither, UnsupportedError for packed weights."""
    folder = resolve(name, offline=offline)
    if is_adapter(folder):
        found = header.read_header(header.inside(folder, folders.WEIGHTS))
        papers = {file: header.read_json(folder, file, optional=True) for file in PAPERS}
        return _of_entries(ADAPTER, found, folder, {file: paper for file, paper in papers.items() if paper})
    if checkpoint.is_packed(folder):
        raise UnsupportedError(f"{folder} holds packed weights, whose differences are no numbers: take the model that they "
                               "were packed from")
    checkpoint.read_config(folder)  # which says what is no model
    return _of_entries(MODEL, header.tensors(folder), folder, {})


def starting(base: str | Path, after: Source, start: str | None = None, *, offline: bool = False) -> Source:
    """What `after` is compared with: the folder `base`; for an adapter on a model `base`, where it began.

    start: for such an adapter, one of STARTS; where its receipt tells how it was made, `fresh`, else `nothing`.
    """
    before = open_source(base, offline=offline)
    if after.what == MODEL or before.what == ADAPTER:
        if start is not None:
            raise UsageError("a start is said of an adapter that is compared with its base model only")
        return before
    receipt = receipt_of(after.papers)
    base_of = receipt.get("base")
    made_for = base_of.get("hash") if isinstance(base_of, dict) else None
    if made_for not in (None, before.digest):
        raise FormatError(f"{after.folder} was made for other weights than {base}: give its own base")
    if start is None:
        start = FRESH if receipt.get("method") else NOTHING
    return begin(start, before, receipt, after)


def begin(start: str, model: Source, receipt: dict[str, Any], like: Source) -> Source:
    """An adapter as it was before training. like: names, shapes and types. Raises UnsupportedError where that is not known."""
    if start not in STARTS:
        raise UsageError(f"an adapter's start is {' or '.join(STARTS)}, not {start!r:.40}")
    made = fresh(receipt, model, like.size) if start == FRESH else None
    if made is not None and {name: tuple(tensor.shape) for name, tensor in made.items()} != like.shapes:
        raise UnsupportedError("this adapter changed its shape while it was trained, so it cannot be compared with its fresh "
                               f"self: say --start {NOTHING}")
    plain = lambda name: torch.full(like.shapes[name], float(_multiplies(like, name)), dtype=like.dtypes[name])
    read = plain if made is None else lambda name: made[name].to(like.dtypes[name])
    return Source(ADAPTER, like.shapes, like.dtypes, read, model.folder, start, like.papers)


def receipt_of(papers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What an adapter's folder says of how it came to be; {} where it does not."""
    held = papers.get(folders.RECEIPT, {}).get("adapter")
    return held if isinstance(held, dict) else {}


def fresh(receipt: dict[str, Any], model: Source, most: int) -> dict[str, Tensor]:
    """The tensors of an adapter as its method draws them, by its receipt. most: how many values it may have."""
    spec, seed = receipt.get("method"), receipt.get("seed")
    if not isinstance(spec, str) or type(seed) is not int or model.folder is None:
        raise UnsupportedError(f"nothing tells how this adapter began: say --start {NOTHING}")
    if spec.partition(":")[0].endswith(".py"):
        raise UnsupportedError(f"its method is a file of somebody's own, {spec!r:.80}, which is not run for a receipt: "
                               f"say --start {NOTHING}")
    rack, found = Rack.of(load(model.folder, fast=False)), registry.parse(spec)
    size = getattr(found.entry.module.Method(found.knobs, rack.model), "size", None) if found.entry.room == "tune" else None
    if size is None or size(rack.model) > most:
        raise FormatError(f"its receipt says that it was made by {spec!r:.80}, which would make another adapter")
    rack.make(spec, name="start", seed=seed)
    with tempfile.TemporaryDirectory() as place:
        begun = open_source(rack.save("start", Path(place) / "start"))
        return {name: begun.read(name) for name in begun.shapes}


def same_kind(before: Source, after: Source) -> None:
    """Raise FormatError unless both are of one kind and hold tensors of the same names and shapes."""
    if before.what != after.what:
        raise UsageError(f"a {before.what} and an {after.what} have no difference: give two of one kind")
    if names := sorted(before.shapes.keys() ^ after.shapes.keys()):
        raise FormatError(f"{after.folder} is of another architecture than {before.folder}: only one of them has "
                          f"{header.some(names)}")
    if unlike := [name for name in after.shapes if after.shapes[name] != before.shapes[name]]:
        raise FormatError(f"{unlike[0]} has shape {list(after.shapes[unlike[0]])} in {after.folder}, "
                          f"{list(before.shapes[unlike[0]])} in {before.folder}")
    if before.what == MODEL and before.folder is not None and after.folder is not None:
        one, other = (checkpoint.read_config(source.folder) for source in (before, after))  # type: ignore[arg-type]
        if one != other:
            raise FormatError(f"{after.folder} and {before.folder} have other settings in config.json: weights alone do not "
                              "turn one into the other")


def _of_entries(what: str, found: dict[str, header.Entry], folder: Path, papers: dict[str, dict[str, Any]]) -> Source:
    if bad := sorted(name for name, entry in found.items() if entry.dtype not in checkpoint.DTYPES):
        raise UnsupportedError(f"{folder}: {header.some(bad)} holds no floats, whose difference could be taken")
    dtypes = {name: checkpoint.DTYPES[entry.dtype] for name, entry in found.items()}

    def read(name: str) -> Tensor:
        """In memory of its own: a mapped file would stay beside what is made of it."""
        entry = found[name]
        data = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
        with open(entry.file, "rb") as file:
            file.seek(entry.start)
            if file.readinto(data.numpy().data) < len(data):
                raise FormatError(f"{entry.file} ends within {name}; was the download cut short?")
        return data.view(dtypes[name]).view(entry.shape)

    return Source(what, {name: entry.shape for name, entry in found.items()}, dtypes, read, folder, OTHER, papers)


def _multiplies(like: Source, name: str) -> bool:
    """Whether a tensor is multiplied with, so that ones change nothing: PEFT's name for it, or our own kind of part."""
    parts = like.papers.get(folders.OURS, {}).get("parts", {})
    part = parts.get(name.partition("/")[0])
    return name.endswith(".ia3_l") or (isinstance(part, dict) and part.get("kind") == "scale")


def write_tensors(path: Path, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, torch.dtype],
                  made: Iterator[tuple[str, Tensor]]) -> None:
    """A safetensors file, written tensor by tensor. made: all of `shapes`, in their order."""
    spread, at = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtypes[name].itemsize
        spread[name] = {"dtype": WORDS[dtypes[name]], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    with open(path, "wb") as file:
        file.write(head({"__metadata__": {"format": "pt"}, **spread}))
        for (name, tensor), wanted in zip(made, shapes, strict=True):
            assert name == wanted and tensor.dtype == dtypes[name] and tuple(tensor.shape) == shapes[name]
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def head(spread: dict[str, Any]) -> bytes:
    """A safetensors header, its end on a multiple of eight."""
    text = json.dumps(spread, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
