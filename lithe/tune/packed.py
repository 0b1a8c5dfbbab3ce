"""Packed differences: a folder of `delta.safetensors` (an index and all bytes) and `delta.json` (what it is and fits on).

The index is deflated JSON: for each tensor its form, type, shape, numbers and number of bytes, in the order in which they lie.
What is in such a folder is not trusted: every claim is checked before memory is given.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lithe import __version__
from lithe.errors import FormatError, UsageError
from lithe.model.checkpoint import DTYPES
from lithe.model.header import MAX_JSON, inside, parse_json, read_header, read_json
from lithe.model.writing import writing
from lithe.tune.coding import READERS, WORDS, Coded
from lithe.tune.source import ADAPTER, FRESH, MODEL, NOTHING, OTHER, PAPERS, head

VERSION = 1
NOTES, WEIGHTS = "delta.json", "delta.safetensors"
INDEX, DATA = "index", "data"
PER_BYTE = 2**12  # values that a byte of a file may stand for where no base says how many there are
MOST_DIMENSIONS = 8


@dataclass(frozen=True, kw_only=True)
class Notes:
    """delta.json. what: model or adapter. start: what an adapter's is counted from. base, model: SHA-256 of what it is added
    to, and of the model that an adapter is for. sha256: of delta.safetensors."""

    what: str
    base: str
    start: str = OTHER
    model: str | None = None
    methods: tuple[str, ...] = ()
    seed: int = 0
    values: int = 0
    sha256: str = ""
    lithe: str = __version__


@dataclass(frozen=True)
class Packed:
    """A folder that was read: its notes, shapes and types of what comes out, and an adapter's JSON files."""

    folder: Path
    notes: Notes
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    places: dict[str, tuple[str, dict[str, float], int, int]]  # form, numbers, start, stop
    papers: dict[str, dict[str, Any]]

    def coded(self, name: str) -> Coded:
        form, numbers, start, stop = self.places[name]
        with open(self.folder / WEIGHTS, "rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        if len(data) < stop - start:
            raise FormatError(f"{self.folder / WEIGHTS} ends within {name}; was the download cut short?")
        return Coded(form, math.prod(self.shapes[name]), numbers, data)

    @property
    def bytes(self) -> int:
        """Of both files."""
        return sum((self.folder / name).stat().st_size for name in (NOTES, WEIGHTS))

    def forms(self) -> dict[str, dict[str, int]]:
        """For each form: tensors, values and bytes."""
        found: dict[str, dict[str, int]] = {}
        for name, (form, _, start, stop) in self.places.items():
            row = found.setdefault(form, {"tensors": 0, "values": 0, "bytes": 0})
            for key, more in (("tensors", 1), ("values", math.prod(self.shapes[name])), ("bytes", stop - start)):
                row[key] += more
        return found


def is_packed_difference(folder: Path) -> bool:
    return (folder / NOTES).is_file()


def write(folder: Path, notes: Notes, coded: Iterable[tuple[str, Coded]], shapes: dict[str, tuple[int, ...]],
          dtypes: dict[str, torch.dtype], papers: dict[str, dict[str, Any]]) -> Path:
    """Write a folder, one tensor at a time. Nothing is seen under its name until all of it is written."""
    fresh(folder)
    index: list[list[Any]] = []
    with writing(folder) as draft, tempfile.TemporaryFile(dir=draft.parent) as spool:
        for name, one in coded:
            index.append([name, one.form, WORDS[dtypes[name]], list(shapes[name]), one.numbers, len(one.data)])
            spool.write(one.data)
        told = zlib.compress(json.dumps({"tensors": index, "papers": papers}, separators=(",", ":")).encode(), 9)
        size = spool.tell()
        spool.seek(0)
        entry = lambda start, stop: {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
        with open(draft / WEIGHTS, "wb") as file:
            file.write(head({INDEX: entry(0, len(told)), DATA: entry(len(told), len(told) + size)}) + told)
            shutil.copyfileobj(spool, file, 2**20)
        values = sum(math.prod(shapes[name]) for name, *_ in index)
        said = asdict(notes) | {"values": values, "sha256": _sha256(draft / WEIGHTS)}
        (draft / NOTES).write_text(json.dumps({"version": VERSION, **said}, indent=1) + "\n", encoding="utf-8")
    return folder


def fresh(folder: Path) -> None:
    """Raise UsageError unless the folder is not there yet, or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already; choose another name")


def read(folder: Path) -> Packed:
    """The folder's notes and index. Raises FormatError for what cannot be."""
    notes, path = read_notes(folder), inside(folder, WEIGHTS)
    if not path.is_file():
        raise FormatError(f"{path} does not exist; was the download cut short?")
    found = read_header(path)
    if found.keys() != {INDEX, DATA} or any(entry.dtype != "U8" or len(entry.shape) != 1 for entry in found.values()):
        raise FormatError(f"{path} must hold the bytes of an {INDEX} and of {DATA}, nothing else")
    if _sha256(path) != notes.sha256:
        raise FormatError(f"{path} is not the file that {NOTES} tells of: copy the folder anew")
    with open(path, "rb") as file:
        file.seek(found[INDEX].start)
        told = _inflated(file.read(found[INDEX].stop - found[INDEX].start), path)
    if told.keys() != {"tensors", "papers"} or not isinstance(told["tensors"], list) or not isinstance(told["papers"], dict) \
            or not all(isinstance(paper, dict) for paper in told["papers"].values()):
        raise FormatError(f"{path}: its index must hold tensors and papers, nothing else")
    if told["papers"].keys() - (PAPERS if notes.what == ADAPTER else ()):  # they become files of these names
        raise FormatError(f"{path}: its index holds {sorted(told['papers'])!r:.200}, which are no papers of an {ADAPTER}")
    made = Packed(folder, notes, {}, {}, {}, told["papers"])
    at = found[DATA].start
    for row in told["tensors"]:
        at = _place(made, row, at, found[DATA].stop, path)
    if at != found[DATA].stop:
        raise FormatError(f"{path}: {found[DATA].stop - at} bytes belong to no tensor")
    if sum(map(math.prod, made.shapes.values())) != notes.values:
        raise FormatError(f"{path}: its index does not hold the {notes.values} values that {NOTES} tells of")
    return made


def read_notes(folder: Path) -> Notes:
    if not folder.is_dir() or not is_packed_difference(folder):
        raise FormatError(f"{folder} holds no {NOTES}: it is no packed difference")
    raw, where = read_json(folder, NOTES), folder / NOTES
    if raw.pop("version", None) != VERSION:
        raise FormatError(f"{where} is of another version, this lithe reads {VERSION}; update lithe")
    kinds = {"what": str, "base": str, "start": str, "model": (str, type(None)), "methods": list, "seed": int, "values": int,
             "sha256": str, "lithe": str}
    for key, kind in kinds.items():
        if key not in raw or not isinstance(raw[key], kind) or isinstance(raw[key], bool):  # type: ignore[arg-type]
            raise FormatError(f"{where}: {key} is missing or no {kind}")
    if unknown := sorted(raw.keys() - kinds.keys()):
        raise FormatError(f"{where} has unknown keys: {', '.join(unknown)[:200]}")
    if raw["what"] not in (MODEL, ADAPTER) or raw["start"] not in (FRESH, NOTHING, OTHER) or \
            not all(isinstance(spec, str) for spec in raw["methods"]):
        raise FormatError(f"{where}: {raw['what']!r:.40} counted from {raw['start']!r:.40} is no difference that lithe knows")
    return Notes(**raw | {"methods": tuple(raw["methods"])})


def bounded(made: Packed) -> None:
    """Raise FormatError where more values are told than a file of this size could stand for; for what has no base to say so."""
    most = PER_BYTE * made.bytes
    if (told := sum(map(math.prod, made.shapes.values()))) > most:
        raise FormatError(f"{made.folder} tells of {told} values, more than its {made.bytes} bytes can stand for")


def _place(made: Packed, row: Any, at: int, end: int, path: Path) -> int:
    """Take one row of the index in, and say where the next one's bytes begin."""
    kinds = (str, str, str, list, dict, int)
    if not isinstance(row, list) or [type(x) for x in row] != [*kinds]:
        raise FormatError(f"{path}: {row!r:.200} in its index is no tensor")
    name, form, dtype, shape, numbers, size = row
    whole = all(type(n) is int and n >= 0 for n in shape) and len(shape) <= MOST_DIMENSIONS
    if not whole or dtype not in DTYPES or form not in READERS or not 0 <= size <= end - at or name in made.shapes:
        told = f"{dtype!r:.20} {shape!r:.80} as {form!r:.20} in {size} bytes"
        raise FormatError(f"{path}: {name!r:.200} in its index, {told}, cannot be")
    made.shapes[name], made.dtypes[name] = tuple(shape), DTYPES[dtype]
    made.places[name] = form, numbers, at, at + size
    return at + size


def _inflated(data: bytes, path: Path) -> dict[str, Any]:
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(data, MAX_JSON)
    except zlib.error as problem:
        raise FormatError(f"{path}: its index cannot be read: {problem}") from None
    if not inflate.eof or inflate.unused_data:
        raise FormatError(f"{path}: its index is cut short, has a tail, or more than {MAX_JSON} bytes")
    return parse_json(text, path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
