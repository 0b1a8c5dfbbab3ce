"""Differences of two checkpoints, tensor by tensor: coded by methods, packed, added to a base, merged with others.

A method on the shelf `tune/delta` is made as `Method(knobs)` for one difference and has

| verb | |
|---|---|
| `encode(name, delta, dice) -> Coded` | what is left of one tensor's difference, written in one of coding.py's forms |
| `read(name, delta, turn)`, if it wants | every tensor beforehand, `turns` times over, for what needs the whole difference |
| `combine(deltas, weights) -> Tensor`, if it merges | one tensor's differences, each already through `encode`, as one |

`encode` draws from `dice` alone and changes nothing, so that it may be asked again; RANDOM says that it draws; GRID names
values of a knob to try where held-out data is given. Several methods work one after the other. No more than a few tensors
of the largest's size are ever held.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lithe import __version__, registry
from lithe.errors import FormatError, UnsupportedError, UsageError
from lithe.model import checkpoint
from lithe.model.load import resolve
from lithe.model.writing import writing
from lithe.ops import golomb
from lithe.tune import coding, packed, source
from lithe.tune.coding import Coded
from lithe.tune.packed import Notes, Packed
from lithe.tune.source import ADAPTER, FRESH, MODEL, NOTHING, Source

SHELF = "delta"
RECEIPT = "lithe.json"
Made = Iterator[tuple[str, Tensor]]


@dataclass
class Change:
    """A difference: `before`, what it is added to, and how a tensor's is coded. dtypes: of what comes out. late: what comes
    out, where it lies in a folder and need not be decoded."""

    before: Source
    dtypes: dict[str, torch.dtype]
    coded: Callable[[str], Coded]
    late: Callable[[str], Tensor] | None = None
    papers: dict[str, dict[str, Any]] | None = None
    methods: tuple[str, ...] = ()
    seed: int = 0

    @property
    def names(self) -> list[str]:
        return sorted(self.before.shapes)

    def base(self, name: str) -> Tensor:
        """The tensor that the difference is added to, in the type of what comes out."""
        return self.before.read(name).to(self.dtypes[name])

    def delta(self, name: str) -> Tensor:
        """In wide floats."""
        base = self.base(name)
        if self.late is None:
            return coding.decode(self.coded(name), base)
        wide = coding.wide(base)
        return self.late(name).to(wide) - base.to(wide)

    def after(self, name: str) -> Tensor:
        return coding.restore(self.coded(name), self.base(name)) if self.late is None else self.late(name)


def between(base: str | Path, after: str | Path, *, start: str | None = None, offline: bool = False) -> Change:
    """The difference of two model folders, of two adapters, or of an adapter and its start; or one that was packed.

    Raises FormatError where they do not fit each other, or a packed one another base.
    """
    folder = resolve(after, offline=offline)
    if packed.is_packed_difference(folder):
        if start is not None:
            raise UsageError(f"{after} is packed, and knows its start")
        return _of_packed(base, packed.read(folder), offline)
    late = source.open_source(after, offline=offline)
    early = source.starting(base, late, start, offline=offline)
    source.same_kind(early, late)
    read = lambda name: _finite(late.read(name), name, late)
    whole = lambda name: coding.exact(early.read(name).to(late.dtypes[name]), read(name))
    return Change(early, late.dtypes, whole, read, late.papers)


def parse(specs: Sequence[str]) -> list[registry.Spec]:
    """The methods of these specs. Raises UsageError for one that is not on the shelf."""
    found = [registry.parse(spec) for spec in specs]
    for spec in found:
        if (spec.entry.room, spec.entry.shelf) != ("tune", SHELF):
            raise UsageError(f"{spec.entry.address} is no method for differences; lithe methods tells which are")
    return found


def through(change: Change, specs: Sequence[registry.Spec], seed: int = 0) -> Change:
    """The difference as these methods leave it, one after the other."""
    for number, spec in enumerate(specs):
        change = _stage(change, spec, seed, number)
    return change


def pack(change: Change, out: Path) -> Path:
    """Write the difference as a folder."""
    before, order = change.before, [name for name in change.before.shapes]
    notes = Notes(what=before.what, base=before.digest, start=before.start, methods=change.methods, seed=change.seed,
                  model=checkpoint.fingerprint(before.folder) if _on_model(before) else None)  # type: ignore[arg-type]
    coded = ((name, change.coded(name)) for name in order)
    return packed.write(out, notes, coded, before.shapes, change.dtypes, change.papers or {})


def save(change: Change, made: Made, out: Path, receipt: dict[str, Any]) -> Path:
    """Write a model's or an adapter's folder of these tensors, which come in the base's order. The base gives all else."""
    packed.fresh(out)
    before = change.before
    with writing(out) as draft:
        if before.what == ADAPTER:
            for name, paper in (change.papers or before.papers).items():
                (draft / name).write_text(json.dumps(paper, indent=2) + "\n", encoding="utf-8")
            source.write_tensors(draft / "adapter_model.safetensors", before.shapes, change.dtypes, made)
            return out
        assert before.folder is not None
        source.write_tensors(draft / "model.safetensors", before.shapes, change.dtypes, made)
        for name in checkpoint.COMPANIONS:
            if (before.folder / name).is_file():
                shutil.copyfile(before.folder / name, draft / name)
        config: dict[str, Any] = json.loads((before.folder / "config.json").read_text(encoding="utf-8"))
        dtype = str(next(iter(change.dtypes.values()))).removeprefix("torch.")
        config |= {key: dtype for key in ("torch_dtype", "dtype") if key in config}
        own = before.folder / RECEIPT
        held: dict[str, Any] = json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {"version": checkpoint.VERSION}
        held["receipts"] = [*held.get("receipts", []), {**receipt, "parent": before.digest, "lithe": __version__}]
        for name, paper in (("config.json", config), (RECEIPT, held)):
            (draft / name).write_text(json.dumps(paper, indent=2) + "\n", encoding="utf-8")
    return out


def apply(change: Change, out: Path) -> Path:
    """Write what the base becomes with the difference added."""
    receipt = {"verb": "delta", "method": " + ".join(change.methods) or "exact", "knobs": {}, "seed": change.seed}
    return save(change, ((name, change.after(name)) for name in change.before.shapes), out, receipt)


def merged(changes: Sequence[Change], weights: Sequence[float], specs: Sequence[registry.Spec], seed: int = 0) -> Change:
    """Several differences from one base as one: each through the methods, then what the last of them that merges makes of them.

    Without such a method it is their weighted sum.
    """
    first = changes[0]
    for other in changes[1:]:
        if other.before.shapes != first.before.shapes or other.before.digest != first.before.digest:
            raise FormatError("differences from two bases cannot be merged: they must be of the same one")
        if other.dtypes != first.dtypes or (other.papers or {}).keys() != (first.papers or {}).keys():
            raise FormatError("these differences are of unlike types and cannot be merged")
    if len(weights) != len(changes):
        raise UsageError(f"{len(changes)} differences need as many weights, not {len(weights)}")
    parts = [through(change, specs, _seed(seed, "part", number)) for number, change in enumerate(changes)]
    mergers = [method for spec in specs if hasattr(method := spec.entry.module.Method(spec.knobs), "combine")]

    def coded(name: str) -> Coded:
        deltas = [part.delta(name) for part in parts]
        if mergers:
            return coding.floats(mergers[-1].combine(deltas, weights), coding.SINGLE)
        total = sum((w * d for w, d in zip(weights, deltas, strict=True)), torch.zeros_like(deltas[0]))
        return coding.floats(total, coding.SINGLE)

    return Change(first.before, first.dtypes, coded, None, first.papers, tuple(spec.exact for spec in specs), seed)


def _stage(change: Change, spec: registry.Spec, seed: int, number: int) -> Change:
    """One method over a difference: it reads all of it as often as it wants, then codes a tensor whenever one is asked for."""
    method = spec.entry.module.Method(spec.knobs)
    for turn in range(getattr(method, "turns", 0)):
        for name in change.names:
            method.read(name, change.delta(name), turn)
    dice = lambda name: torch.Generator().manual_seed(_seed(seed, number, name))
    coded = lambda name: method.encode(name, change.delta(name), dice(name))
    return Change(change.before, change.dtypes, coded, None, change.papers, (*change.methods, spec.exact), seed)


def _of_packed(base: str | Path, made: Packed, offline: bool) -> Change:
    before, notes = source.open_source(base, offline=offline), made.notes
    if notes.what == ADAPTER and before.what == MODEL and notes.start in (FRESH, NOTHING):
        if notes.model not in (None, before.digest):
            raise FormatError(f"{made.folder} is of an adapter for other weights than {base} ({str(notes.model)[:12]}, not "
                              f"{before.digest[:12]}): give its own base")
        packed.bounded(made)
        receipt = source.receipt_of(made.papers)
        like = Source(ADAPTER, made.shapes, made.dtypes, before.read, papers=made.papers)
        before = source.begin(notes.start, before, receipt, like)
    if before.what != notes.what:
        raise FormatError(f"{made.folder} is the difference of an {notes.what}, and {base} is a {before.what}")
    if before.shapes != made.shapes and dict(sorted(before.shapes.items())) != dict(sorted(made.shapes.items())):
        raise FormatError(f"{made.folder} was packed for tensors of other names or shapes than {base} has")
    if before.digest != notes.base:
        raise FormatError(f"{made.folder} was packed for other weights than those of {base} ({notes.base[:12]}, not "
                          f"{before.digest[:12]}): give the base that it was taken from")
    return Change(before, made.dtypes, made.coded, None, made.papers, notes.methods, notes.seed)


def _finite(tensor: Tensor, name: str, late: Source) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise UnsupportedError(f"{late.folder}: {name} holds what is no finite number, so there is no difference to take")
    return tensor


def _on_model(before: Source) -> bool:
    return before.what == ADAPTER and before.start in (FRESH, NOTHING)


def _seed(*words: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:7], "little")


def cosine(one: Packed, other: Packed) -> float | None:
    """The cosine of two packed ternary differences, by bit masks; None where one of them is not ternary or they are unlike.

    Sizes differ between tensors, so that their dot products are taken a tensor at a time.
    """
    ternary = lambda made: all(form in coding.TERNARY for form, *_ in made.places.values())
    if one.shapes != other.shapes or one.notes.base != other.notes.base or not ternary(one) or not ternary(other):
        return None
    for made in (one, other):
        packed.bounded(made)
    dots = [0.0, 0.0, 0.0]
    for name in one.shapes:
        (p, a), (q, b) = coding.masks(one.coded(name)), coding.masks(other.coded(name))
        for i, (x, y, size) in enumerate(((a, b, p * q), (a, a, p * p), (b, b, q * q))):
            dots[i] += size * golomb.mask_dot(x, y)
    return dots[0] / (dots[1] * dots[2]) ** 0.5 if dots[1] and dots[2] else None
