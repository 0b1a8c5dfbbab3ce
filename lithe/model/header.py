"""Reading the files of a model folder without trusting them: JSON, and the headers of safetensors files."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from lithe.errors import FormatError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
              "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE = "is a pickle, which can run code when it is read; convert it to safetensors where you trust it"
FOREIGN = {".bin": PICKLE, ".pt": PICKLE, ".pth": PICKLE, ".gguf": "is GGUF; convert it to a folder with safetensors"}
MAX_HEADER, MAX_JSON = 100_000_000, 20_000_000  # bytes; the first is the format's own limit


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes start..stop of its file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def open_folder(folder: str | Path) -> Path:
    """The folder, if it can be one that holds a model. Raises FormatError with what to do about what is there instead."""
    folder = Path(folder)
    if not folder.is_dir():
        what = FOREIGN.get(folder.suffix, "is no model folder") if folder.exists() else "does not exist"
        raise FormatError(f"{folder} {what}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise FormatError(f"{folder} cannot be read; you have no permission")
    if not (folder / WEIGHTS).exists() and not (folder / INDEX).exists():
        for file in sorted(folder.iterdir()):
            if file.suffix in FOREIGN:
                raise FormatError(f"{file} {FOREIGN[file.suffix]}")
    return folder


def inside(folder: Path, name: object) -> Path:
    """The file called `name` in `folder`. Raises FormatError for names or links that lead outside it."""
    if not isinstance(name, str) or not name or name != os.path.basename(name) or name in (".", "..") or "\0" in name:
        raise FormatError(f"{folder}: {name!r} is not the name of a file in this folder")
    path = folder / name
    try:
        root, target = folder.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:
        raise FormatError(f"{path} is a link that leads nowhere: {error}") from error
    if root.parent.name == "snapshots":  # the hub's download cache links from snapshots/<commit> to blobs/ beside it
        root = root.parent.parent
    if not target.is_relative_to(root):
        raise FormatError(f"{path} is a link that leads outside {root}; copy the file into the folder")
    return path


def parse_json(text: bytes, where: str | Path) -> dict:
    """A JSON object. Raises FormatError for anything else, for repeated keys, NaN and infinities."""

    def unique(pairs):
        found = {}
        for key, value in pairs:
            if key in found:
                raise FormatError(f"{where}: the key {key!r} occurs twice")
            found[key] = value
        return found

    def refuse(constant):
        raise FormatError(f"{where}: {constant} is not a number JSON knows")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # ValueError covers bad UTF-8 and bad JSON
        raise FormatError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{where} must hold a JSON object, not a {type(value).__name__}")
    return value


def read_json(folder: Path, name: str, *, optional: bool = False) -> dict:
    """The JSON object in folder/name; {} where an optional file is absent."""
    path = inside(folder, name)
    if not path.is_file():
        if optional:
            return {}
        raise FormatError(f"{path} does not exist; a model folder needs it")
    try:
        if path.stat().st_size > MAX_JSON:
            raise FormatError(f"{path} has {path.stat().st_size} bytes, more than {MAX_JSON} allowed for such a file")
        return parse_json(path.read_bytes(), path)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from error


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, every claim of its header checked against the file's size."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise FormatError(f"{path} is truncated or no safetensors file: a header of {length} bytes, a file of {size}")
            header = parse_json(file.read(length), path)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from error
    header.pop("__metadata__", None)
    data = 8 + length
    entries = {name: _entry(path, name, value, data, size) for name, value in header.items()}
    end = data
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            fault = "overlaps the tensor before it" if entry.start < end else "leaves a hole before it"
            raise FormatError(f"{path}: tensor {name!r} at byte {entry.start} {fault}, which ends at {end}")
        end = entry.stop
    if end != size:
        raise FormatError(f"{path}: {size - end} bytes after the last tensor belong to none")
    return entries


def _entry(path: Path, name: str, value: object, data: int, size: int) -> Entry:
    where = f"{path}: tensor {name!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise FormatError(f"{where} has unknown dtype {dtype!r}; known are {', '.join(ITEM_BYTES)}")
    whole = lambda x: isinstance(x, list) and all(type(n) is int and n >= 0 for n in x)
    if not whole(shape) or not whole(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise FormatError(f"{where} needs a shape of at most 8 sizes and two data_offsets, all whole and not negative")
    start, stop = offsets
    if start > stop or data + stop > size:
        raise FormatError(f"{where} lies at bytes {start}..{stop}, but the file has {size - data}; was the download cut short?")
    if math.prod(shape) * ITEM_BYTES[dtype] != stop - start:
        raise FormatError(f"{where} of shape {shape} and dtype {dtype} cannot fill bytes {start}..{stop}")
    return Entry(path, dtype, tuple(shape), data + start, data + stop)


def tensors(folder: Path) -> dict[str, Entry]:
    """Every tensor of a folder's safetensors files and where it lies."""
    if inside(folder, WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if not inside(folder, INDEX).is_file():
        raise FormatError(f"{folder} has neither {WEIGHTS} nor {INDEX}")
    where = read_json(folder, INDEX).get("weight_map")
    if not isinstance(where, dict):
        raise FormatError(f"{folder / INDEX}: weight_map must be an object")
    found: dict[str, Entry] = {}
    for file in dict.fromkeys(map(str, where.values())):
        path = inside(folder, file)
        if not path.is_file():
            raise FormatError(f"{path} is named in {INDEX} but does not exist; was the download cut short?")
        held = read_header(path)
        if stray := sorted(name for name in held if where.get(name) != file):
            raise FormatError(f"{path} holds {some(stray)}, which {INDEX} places elsewhere or not at all")
        found |= held
    if missing := sorted(where.keys() - found.keys()):
        raise FormatError(f"{folder}: {INDEX} names {some(missing)}, which its files do not hold")
    return found


def some(names: list[str]) -> str:
    """The first names of a long list, for messages."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


KINDS = {  # what a setting may be: a test and its name
    "size": (lambda x: type(x) is int and 0 < x < 2**28, "a whole number from 1 to 2**28"),
    "layers": (lambda x: type(x) is int and 0 < x <= 10_000, "a whole number from 1 to 10000"),
    "count": (lambda x: type(x) is int and x >= 0, "a whole number, not negative"),
    "amount": (lambda x: type(x) in (int, float) and 0 <= x < math.inf, "a number, not negative"),
    "number": (lambda x: type(x) in (int, float) and 0 < x < math.inf, "a positive number"),
    "cap": (lambda x: x is None or (type(x) in (int, float) and 0 < x < math.inf), "a positive number or null"),
    "flag": (lambda x: type(x) is bool, "true or false"),
    "word": (lambda x: type(x) is str, "a word"),
}
NEEDED = object()  # stands for a default where there is none


def setting(raw: dict, key: str, kind: str, default: object = NEEDED, where: str = "config.json"):
    """raw[key] or its default, once it is of the kind. null stands for absence where the default is None."""
    value = raw.get(key, default)
    if value is NEEDED:
        raise FormatError(f"{where}: {key} is missing")
    if value is None and default is None:
        return None
    fits, wanted = KINDS[kind]
    if not fits(value):
        raise FormatError(f"{where}: {key} must be {wanted}, not {value!r:.200}")
    return float(value) if kind in ("number", "cap") and value is not None else value
