"""The cost curve of a model on a machine, and the files in which such measurements are kept, in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lithe.errors import FormatError
from lithe.model.corpus import cache as cache_folder
from lithe.model.header import parse_json

VERSION = 1  # of the files
NOISY = 0.25  # share of the median that the quartiles may lie apart


@dataclass(frozen=True, kw_only=True)
class CostCurve:
    """Seconds of a pass by its rows: medians, and how far apart the quartiles lie."""

    rows: tuple[int, ...]
    medians: tuple[float, ...]
    spreads: tuple[float, ...]
    context: int
    threads: int

    def seconds(self, n: float) -> float:
        """T(n), straight between the rows measured and on beyond the last two."""
        if n > self.rows[-1] and len(self.rows) > 1:
            slope = (self.medians[-1] - self.medians[-2]) / (self.rows[-1] - self.rows[-2])
            return self.medians[-1] + max(slope, 0.0) * (n - self.rows[-1])
        return float(np.interp(n, self.rows, self.medians))

    def ratio(self, n: float) -> float:
        """T(n) / T(1)."""
        return self.seconds(n) / self.seconds(1)

    @property
    def noisy(self) -> bool:
        """Whether something else must have run beside it."""
        return float(np.median(np.divide(self.spreads, self.medians))) > NOISY


@dataclass(kw_only=True)
class Runtime:
    """What was measured. threads: the best number of those allowed; tried: T(1) and T(8) by number; curves: by number."""

    threads: int
    tried: dict[int, tuple[float, float]]
    curves: dict[int, CostCurve] = field(default_factory=dict)


def read(key: dict[str, Any]) -> Runtime | None:
    """What was kept under a key. A file that cannot be used is told of and left aside."""
    path = _path(key)
    try:
        return _parse(parse_json(path.read_bytes(), path), key, path)
    except FileNotFoundError:
        return None
    except (FormatError, OSError) as problem:
        print(f"lithe: a stored measurement is not used, and will be made anew when asked for: {problem}", file=sys.stderr)
        return None


def keep(made: Runtime, key: dict[str, Any]) -> None:
    """Written whole or not at all; where nothing can be written, that is said and no loss."""
    path, content = _path(key), {"version": VERSION, "key": key} | asdict(made)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(file.name, path)
    except OSError as problem:
        print(f"lithe: what was measured cannot be kept: {problem}; set LITHE_CACHE to a folder you may write to",
              file=sys.stderr)


def _parse(raw: dict, key: dict[str, Any], path: Path) -> Runtime:
    """A Runtime from a file's content. Raises FormatError for any other than this lithe wrote under this key."""
    if raw.get("version") != VERSION or raw.get("key") != json.loads(json.dumps(key)):
        raise FormatError(f"{path} is of another version, model or machine")
    try:
        curves = {int(n): _curve_of(curve, int(n)) for n, curve in raw["curves"].items()}
        tried = {int(n): (_time(one), _time(eight)) for n, (one, eight) in raw["tried"].items()}
        threads = raw["threads"]
        if type(threads) is not int or not 1 <= threads <= key["threads"]:
            raise ValueError(f"{threads!r} threads")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
        raise FormatError(f"{path} is broken: {type(problem).__name__} {problem}") from None
    return Runtime(threads=threads, tried=tried, curves=curves)


def _curve_of(raw: dict, threads: int) -> CostCurve:
    rows, medians = tuple(raw["rows"]), tuple(_time(t) for t in raw["medians"])
    spreads = tuple(_time(t, least=0.0) for t in raw["spreads"])
    if any(type(n) is not int for n in (*rows, raw["context"])) or rows[:1] != (1,) or list(rows) != sorted(set(rows)):
        raise ValueError(f"rows {rows}")
    if not len(rows) == len(medians) == len(spreads) or raw["threads"] != threads:
        raise ValueError("its parts are not of one curve")
    return CostCurve(rows=rows, medians=medians, spreads=spreads, context=raw["context"], threads=threads)


def _time(value: object, least: float = 1e-9) -> float:
    if type(value) not in (int, float) or not least <= value < 1e6:  # type: ignore[operator]
        raise ValueError(f"{value!r:.80} is no time")
    return float(value)  # type: ignore[arg-type]


def _path(key: dict[str, Any]) -> Path:
    return cache_folder() / "runtime" / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.json"
