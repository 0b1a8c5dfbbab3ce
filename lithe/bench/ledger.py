"""The ledger: what was measured, one JSON line a measurement, only ever appended to."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lithe.errors import FormatError, LitheError, UsageError

SCHEMA = 1
DEFAULT = Path(".lithe") / "ledger.jsonl"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measurement: what ran, on what, with which settings, and what came out.

    weights: hash of every further model that a knob names. code_hash: of the sources the method rests on. prompts_hash: of the
    prompts, or the text, that were really used, so that a shortened list differs from the whole one.
    """

    suite: str
    model: str
    model_hash: str | None
    method: str
    knobs: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    prompts_hash: str
    code_hash: str
    machine: dict[str, Any]
    device: str
    precision: str
    threads: int
    torch: str
    lithe: str
    commit: str | None
    kernels: str = "torch"  # which compiled path ran
    measured: dict[str, Any]
    time: str = field(default_factory=_now)
    schema: int = SCHEMA


class Ledger:
    """An append-only JSONL file. Made before the work starts, so that a place that cannot be written is told at once."""

    def __init__(self, path: str | Path | None = None):
        """path: by default $LITHE_LEDGER, else .lithe/ledger.jsonl. Raises UsageError where it cannot be written."""
        self.path = Path(path or os.environ.get("LITHE_LEDGER") or DEFAULT).expanduser()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(self._open())
        except OSError as problem:
            raise UsageError(f"cannot write the ledger {self.path}: {problem.strerror}; give another with --ledger FILE, "
                             "or --no-ledger to keep no record") from None

    def append(self, record: Record) -> None:
        """Add a line in a single write, so that lines of processes that write at once never mix."""
        line = json.dumps(dataclasses.asdict(record), ensure_ascii=False, allow_nan=False) + "\n"
        data = ("" if self._ends_well() else "\n").encode() + line.encode()
        target = self._open()
        try:
            if os.write(target, data) != len(data):
                raise LitheError(f"the ledger {self.path} took only part of a record: is the disk full?")
        except OSError as problem:
            raise LitheError(f"cannot write the ledger {self.path}: {problem.strerror}") from None
        finally:
            os.close(target)

    def read(self) -> list[Record]:
        """All records, oldest first. Warns of a torn line; raises FormatError for one that a newer lithe wrote."""
        lines = self.path.read_bytes().split(b"\n")
        return [record for number, line in enumerate(lines, 1) if line.strip() and (record := self._parse(number, line))]

    def _parse(self, number: int, line: bytes) -> Record | None:
        where = f"{self.path} line {number}"
        try:
            data = json.loads(line)
        except ValueError:  # a write cut short by a full disk or a power cut
            warnings.warn(f"{where} is torn and was left out", stacklevel=3)
            return None
        schema = data.get("schema") if isinstance(data, dict) else None
        if not isinstance(schema, int):
            raise FormatError(f"{where} is not a ledger record")
        if schema > SCHEMA:
            raise FormatError(f"{where} has schema {schema}: a newer lithe wrote it, and this one reads up to {SCHEMA}")
        try:
            return Record(**data)
        except TypeError as problem:
            raise FormatError(f"{where} is not a record of schema {schema}: {problem}") from None

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def _ends_well(self) -> bool:
        """Whether the file is empty or ends its last line: else that one is torn, and must not swallow the next."""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return True
            file.seek(size - 1)
            return file.read(1) == b"\n"
