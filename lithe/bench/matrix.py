"""A matrix of runs, one ledger record each. What the ledger holds is not run again, so an interrupted matrix goes on."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from lithe.bench import provenance
from lithe.bench.ledger import Ledger, Record
from lithe.errors import FormatError, LitheError, UsageError
from lithe.model.checkpoint import fingerprint
from lithe.model.decoder import Decoder
from lithe.model.load import resolve
from lithe.registry import near
from lithe.train.loop import Interrupted


class Run(Protocol):
    """What a cell must tell: the method by its name in the plan, and its dice."""

    @property
    def method(self) -> str: ...

    @property
    def seed(self) -> int: ...


class Sizes(Protocol):
    @property
    def sizes(self) -> dict[str, int]: ...


CellT = TypeVar("CellT", bound=Run)
PlanT = TypeVar("PlanT", bound=Sizes)


def data_folder() -> Path:
    """$LITHE_DATA. Raises UsageError where it is not said or no folder."""
    folder = os.environ.get("LITHE_DATA")
    if folder is None or not Path(folder).is_dir():
        raise UsageError(f"the plan's texts are looked for in $LITHE_DATA, which is {folder!r}: let it name their folder")
    return Path(folder)


@dataclass
class Matrix(ABC, Generic[PlanT, CellT]):
    """A plan on a model, and what is known of it so far: records by cell."""

    model: str
    plan: PlanT
    ledger: Ledger
    root: Path = field(default_factory=data_folder)
    offline: bool = False
    tell: Callable[[str], None] = lambda line: None
    known: dict[CellT, Record] = field(default_factory=dict)

    suite: ClassVar[str]
    cell_kind: ClassVar[type]

    def __post_init__(self) -> None:
        self._hash = fingerprint(resolve(self.model, offline=self.offline))
        self.open()
        for record in self.ledger.read():
            if (cell := self.cell_of(record)) is not None:
                self.known[cell] = record

    @abstractmethod
    def open(self) -> None:
        """Load what all cells share. Raises UsageError for a model without a tokenizer."""

    @abstractmethod
    def missing(self) -> Iterator[CellT]:
        """What to run next, given all that is known by then."""

    @abstractmethod
    def opened(self, cell: CellT) -> Decoder:
        """The model that a cell runs on."""

    @abstractmethod
    def attempt(self, cell: CellT, model: Decoder) -> tuple[dict[str, Any], Iterable[Any]]:
        """What came out, and the methods that did the work."""

    @abstractmethod
    def inputs(self, cell: CellT) -> Any:
        """The texts that decide a result. Raises UsageError for a cell of which this plan knows nothing."""

    @abstractmethod
    def told(self, cell: CellT, found: dict[str, Any]) -> str:
        """A line for whoever watches."""

    def beside(self, cell: CellT) -> dict[str, Any]:
        """What is recorded however the run ends."""
        return {}

    def run(self, most: int | None = None) -> int:
        """Run what is missing, at most so many cells; how many were run."""
        return sum(1 for _ in map(self.measure, islice(self.missing(), most)))

    def measure(self, cell: CellT) -> Record:
        """Run a cell and keep its record. A method that cannot run here is a record too, which says why."""
        model, measured = self.opened(cell), self.beside(cell)
        parts: Iterable[Any] = ()
        try:
            came, parts = self.attempt(cell, model)
            measured |= came
        except Interrupted:  # a signal that came while something trained: the cell is not done
            raise KeyboardInterrupt from None
        except Exception as problem:  # a fault of one method is its own result, and the matrix goes on
            measured |= {"error": str(problem) if isinstance(problem, LitheError) else repr(problem)}
        record = provenance.record(self.suite, model, measured=measured, inputs=self.inputs(cell), seed=cell.seed,
                                   method=cell.method, settings=self.plan.sizes | vars(cell), parts=parts)
        self.ledger.append(record)
        self.known[cell] = record
        self.tell(self.told(cell, measured))
        return record

    def cell_of(self, record: Record) -> CellT | None:
        """The cell of a record, None where it is of another suite, model, size or text."""
        names = [f.name for f in dataclasses.fields(self.cell_kind)]
        if record.suite != self.suite or record.model_hash != self._hash or not set(names) <= record.settings.keys():
            return None
        if any(record.settings.get(name) != value for name, value in self.plan.sizes.items()):
            return None
        cell: CellT = self.cell_kind(**{name: record.settings[name] for name in names})
        try:
            return cell if record.prompts_hash == provenance.digest(self.inputs(cell)) else None
        except UsageError:
            return None


def made(kind: Any, said: dict[str, Any]) -> Any:
    """A part of a plan from its table. Raises TypeError for a name that it does not have."""
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in said.items()})


def read_plan(path: Path, make: Callable[[dict[str, Any]], PlanT]) -> PlanT:
    """A plan from a TOML file. Raises FormatError for a file that is none, UsageError for one that is not there."""
    try:
        return make(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as problem:
        raise UsageError(f"cannot read the plan {path}: {problem.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as problem:
        raise FormatError(f"{path} is no plan: {problem}") from None


def in_plan(names: Iterable[str], known: list[str]) -> None:
    """Raises UsageError for a name that the plan does not have."""
    for name in names:
        if name not in known:
            raise UsageError(f"the plan has no {name!r}{near(name, known)}")
