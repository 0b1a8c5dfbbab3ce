"""How a method is found: its path is its name. Cards are read with `ast`; nothing is imported until it is used.

A spec reads `name:knob=value,knob=value`, or `shelf=name:knob=value` where the shelf must be said. A name may also be
`room/shelf/name`, the path of a user's own file, or an entry point of the group `lithe.methods`.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import re
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from lithe.card import Card, check_knobs
from lithe.errors import UsageError

ROOT = Path(__file__).parent
ENTRY_POINTS = "lithe.methods"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method on a shelf, known without importing it."""

    name: str
    room: str
    shelf: str
    path: Path
    card: Card
    summary: str

    @property
    def address(self) -> str:
        return f"{self.room}/{self.shelf}/{self.name}"

    @property
    def reference(self) -> str:
        """What finds this very method again: its address, or the path of a user's own file."""
        return self.address if self.card.shelf is None else str(self.path)

    @property
    def module(self) -> ModuleType:
        """Import the method's file."""
        return _import(self.path)

    def knobs(self, **values: Any) -> Any:
        """The method's knobs with these values; strings are converted to the knob's type."""
        kind = self.module.Knobs
        known = {field.name: field for field in dataclasses.fields(kind)}
        hints = typing.get_type_hints(kind)
        for key in values:
            if key not in known:
                raise UsageError(f"{self.name} has no knob {key!r}{near(key, known)}")
        made = kind(**{key: _convert(value, hints[key], f"{self.name}: knob {key}") for key, value in values.items()})
        check_knobs(made, self.name)
        return made


def entries(room: str | None = None, shelf: str | None = None) -> list[Entry]:
    """All methods, sorted by address; `room` and `shelf` narrow them down."""
    return [e for e in _all() if room in (None, e.room) and shelf in (None, e.shelf)]


def find(name: str, shelf: str | None = None) -> Entry:
    """The one method of that name, address or file path. Raises UsageError that lists what is known or near."""
    if name.endswith(".py"):
        return read(Path(name).expanduser().resolve())
    known = entries(shelf=shelf)
    hits = [e for e in known if name in (e.name, e.address, f"{e.shelf}/{e.name}")]
    if len(hits) == 1:
        return hits[0]
    if hits:
        raise UsageError(f"{name!r} is on several shelves; say which: {', '.join(e.address for e in hits)}")
    where = f" on shelf {shelf!r}" if shelf else ""
    raise UsageError(f"there is no method {name!r}{where}{near(name, [e.name for e in known])}")


@dataclass(frozen=True)
class Spec:
    """A method and the knob values asked for, still as text."""

    entry: Entry
    values: dict[str, Any]

    @property
    def knobs(self) -> Any:
        return self.entry.knobs(**self.values)

    def __str__(self) -> str:
        """The short text people read."""
        return self._text(self.entry.name)

    @property
    def exact(self) -> str:
        """Text that parses back to this very spec."""
        return self._text(self.entry.reference)

    def _text(self, name: str) -> str:
        return ":".join(filter(None, [name, ",".join(f"{key}={value}" for key, value in self.values.items())]))


def parse(text: str, shelf: str | None = None) -> Spec:
    """Read a spec. Raises UsageError for what is unknown or malformed.

    >>> parse("token_recycling:nodes=8").values
    {'nodes': '8'}
    """
    text = text.strip()
    head, _, tail = _split_path(text)
    if head.partition("=")[0].isidentifier() and "=" in head:
        said, _, head = head.partition("=")
        if shelf is not None and said != shelf:
            raise UsageError(f"{text!r} names shelf {said!r} where {shelf!r} is wanted")
        if said not in {e.shelf for e in entries()}:
            raise UsageError(f"{text!r}: there is no shelf {said!r}{near(said, {e.shelf for e in entries()})}; "
                             "a spec reads name:knob=value,knob=value")
        shelf = said
    if not head:
        raise UsageError(f"{text!r} names no method; a spec reads name:knob=value,knob=value")
    values: dict[str, Any] = {}
    for item in tail.split(",") if tail else ():
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key:
            raise UsageError(f"{text!r}: {item!r} is not knob=value")
        if key in values:
            raise UsageError(f"{text!r} gives knob {key!r} twice")
        values[key] = value
    spec = Spec(find(head, shelf), values)
    _ = spec.knobs  # unknown knobs and bad values are told at once
    return spec


def read(path: Path, root: Path = ROOT) -> Entry:
    """Read a method's card and first docstring line without importing it."""
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"cannot read method file {path}: {problem}") from None
    try:
        tree = ast.parse(_brief(source) or _head(source), filename=str(path))
    except SyntaxError as problem:
        raise UsageError(f"{path}: {problem}") from None
    doc = ast.get_docstring(tree)
    card = next((node.value for node in tree.body if isinstance(node, ast.Assign)
                 and any(isinstance(t, ast.Name) and t.id == "CARD" for t in node.targets)), None)
    if not doc or not isinstance(card, ast.Call):
        raise UsageError(f"{path} is no method: it needs a docstring and CARD = Card(...) before its first class or function")
    try:
        if card.args or any(word.arg is None for word in card.keywords):
            raise ValueError
        fields = {word.arg: ast.literal_eval(word.value) for word in card.keywords if word.arg}
    except ValueError:
        raise UsageError(f"{path}: the card must hold literals only, since it is read without running the file") from None
    if path.parts[: len(root.parts)] == root.parts:  # pathlib's own ways are ten times slower
        room, shelf = path.parts[len(root.parts) :][:2]
    elif str(fields.get("shelf", "")).count("/") == 1:
        room, shelf = fields["shelf"].split("/")
    else:
        raise UsageError(f"{path}: a method outside the package says where it belongs, as in Card(shelf='decode/draft', ...)")
    try:
        made = Card(**fields)
    except TypeError as problem:
        raise UsageError(f"{path}: {problem}") from None
    return Entry(name=path.stem, room=room, shelf=shelf, path=path, card=made, summary=doc.splitlines()[0].strip())


def near(word: str, known: Any) -> str:
    """A tail for an error message: near names if there are some, else all that is known."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; known: {', '.join(names)}" if names else ""


@cache
def _all() -> tuple[Entry, ...]:
    found = [read(path) for path in _files()]
    for point in metadata.entry_points(group=ENTRY_POINTS):
        found.append(_from_entry_point(point))
    return tuple(sorted(found, key=lambda e: e.address))


def _files() -> Iterator[Path]:
    """lithe/<room>/<shelf>/<name>.py, names with a leading underscore left out. A shelf holds methods only."""
    for path in ROOT.glob("*/*/*.py"):
        if not path.name.startswith("_"):
            yield path


def _from_entry_point(point: metadata.EntryPoint) -> Entry:
    """An entry point's value is a module; its file is read, not imported."""
    spec = importlib.util.find_spec(point.value)
    if spec is None or not spec.origin:
        raise UsageError(f"entry point {point.name!r} names module {point.value!r}, which cannot be found")
    return dataclasses.replace(read(Path(spec.origin)), name=point.name)


def _head(source: str) -> str:
    """The file up to its first class, function or decorator: docstring, imports and card."""
    quote = source.find('"""', source.find('"""') + 3)  # where the docstring ends: it may hold anything
    end = re.compile(r"^(class |def |async def |@)", re.MULTILINE).search(source, max(quote, 0))
    return source[: end.start()] if end else source


def _brief(source: str) -> str:
    """The docstring's first line and the card, where they are plain to see; parsing all else would take twice as long."""
    end = source.find('"""', 3) if source.startswith('"""') else -1
    summary, head = source[3:end].partition("\n")[0], _head(source)
    card = head.find("\nCARD = Card(", end)
    return "" if end < 0 or card < 0 or set(summary) & {'"', "\\"} else f'"""{summary}"""{head[card:]}'


def _split_path(text: str) -> tuple[str, str, str]:
    """Split a spec at its colon; a file path may itself hold colons or equals signs."""
    file = re.match(r"([^:]*\.py)(?::|$)", text)
    return (file[1], ":", text[file.end() :]) if file else text.partition(":")


@cache
def _import(path: Path) -> ModuleType:
    if path.is_relative_to(ROOT):
        return importlib.import_module(".".join(("lithe", *path.relative_to(ROOT).with_suffix("").parts)))
    spec = importlib.util.spec_from_file_location(f"lithe_user_{path.stem}_{hash(path) & 0xFFFFFFFF:x}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        del sys.modules[spec.name]
        raise UsageError(f"{path} cannot be imported: {type(problem).__name__}: {problem}") from problem
    if not dataclasses.is_dataclass(getattr(module, "Knobs", None)):
        raise UsageError(f"{path} is no method: it has no dataclass Knobs")
    if not isinstance(getattr(module, "Method", None), type):
        raise UsageError(f"{path} is no method: it has no class Method")
    return module


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Turn text into the knob's type; values that are not text must already fit."""
    options = [k for k in typing.get_args(kind) if k is not type(None)] or [kind]
    target = kind if typing.get_origin(kind) is tuple else options[0]
    if value is None or (isinstance(value, str) and value.lower() == "none" and type(None) in typing.get_args(kind)):
        return None
    try:
        if target is bool and isinstance(value, str):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
        if isinstance(value, bool) and target is not bool:
            raise ValueError
        if target in (int, float):
            if target is int and float(value) != int(float(value)):
                raise ValueError
            return target(float(value)) if target is int else target(value)
        if typing.get_origin(target) is tuple and isinstance(value, str):
            inner = typing.get_args(target)[0]
            return tuple(inner(part) for part in value.split("+"))
        if target is str or isinstance(value, target):
            return value
        raise ValueError
    except (ValueError, KeyError, TypeError, OverflowError):
        name = getattr(target, "__name__", str(target))
        raise UsageError(f"{where}={value!r} is not of type {name}") from None
