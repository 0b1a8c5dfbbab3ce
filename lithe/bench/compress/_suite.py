"""A matrix of runs, one ledger record each. What the ledger holds is not run again, so an interrupted matrix goes on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lithe.bench import provenance
from lithe.bench.compress import DENSE, SUITE
from lithe.bench.compress._plan import Cell, Plan, cells
from lithe.bench.compress._score import Documents
from lithe.bench.ledger import Ledger, Record
from lithe.bench.tuning._plan import data_folder
from lithe.compress import calibrate
from lithe.compress.api import compress
from lithe.compress.calibrate import Calibration
from lithe.compress.mixture import parse
from lithe.compress.rescale import outliers
from lithe.compress.surgery import copied
from lithe.errors import LitheError, UsageError
from lithe.model.checkpoint import fingerprint
from lithe.model.decoder import Decoder
from lithe.model.load import load, resolve
from lithe.model.narrow import widen
from lithe.train.loop import Interrupted

Tell = Callable[[str], None]


@dataclass
class Matrix:
    """A plan on a model, and what is known of it so far: records by cell."""

    model: str
    plan: Plan
    ledger: Ledger
    root: Path = field(default_factory=data_folder)
    offline: bool = False
    tell: Tell = lambda line: None
    known: dict[Cell, Record] = field(default_factory=dict)
    _texts: dict[tuple[int, int], Calibration] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain = load(self.model, dtype="float32", fast=False, offline=self.offline)
        if plain.tokenizer is None:
            raise UsageError(f"{self.model} has no tokenizer, which reading text needs")
        self.models = {"plain": plain, "twin": outliers(copied(plain))}
        self.documents = Documents(plain, self.root / self.plan.held_out, self.plan.documents, self.plan.context)
        self._hash = fingerprint(resolve(self.model, offline=self.offline))
        wanted = set(cells(self.plan))
        for record in self.ledger.read():
            if (cell := self.cell_of(record)) is not None and cell in wanted:
                self.known[cell] = record

    def run(self, most: int | None = None) -> int:
        """Run what is missing, at most so many cells; how many were run."""
        done = 0
        for cell in list(self.missing())[:most]:
            self.measure(cell)
            done += 1
        return done

    def missing(self) -> Iterator[Cell]:
        yield from (cell for cell in cells(self.plan) if cell not in self.known)

    def measure(self, cell: Cell) -> Record:
        """Run a cell and keep its record. A method that cannot run here is a record too, which says why."""
        model = self.models[cell.on]
        began, cpu = time.perf_counter(), time.process_time()
        try:
            measured = self._dense(model) if cell.method == DENSE else self._compressed(cell, model)
            measured |= {"seconds": round(time.perf_counter() - began, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        except Interrupted:  # a signal that came while something trained: the cell is not done
            raise KeyboardInterrupt from None
        except Exception as problem:  # a fault of one method is its own result, and the matrix goes on
            measured = {"error": str(problem) if isinstance(problem, LitheError) else repr(problem)}
        record = provenance.record(
            SUITE, model, measured=measured, inputs=self.inputs(cell), seed=cell.seed, method=cell.method,
            settings={**self.plan.sizes, **dataclasses.asdict(cell)}, parts=() if "error" in measured else _parts(cell))
        self.ledger.append(record)
        self.known[cell] = record
        self.tell(told(cell, record))
        return record

    def _dense(self, model: Decoder) -> dict[str, Any]:
        assert model.folder is not None
        return {"bytes": sum(path.stat().st_size for path in model.folder.glob("*.safetensors")), **self.documents.score(model)}

    def _compressed(self, cell: Cell, model: Decoder) -> dict[str, Any]:
        """Compressed, saved, loaded again, scored."""
        with TemporaryDirectory() as place:
            found = compress(model, cell.steps.split(" ; "), calibration=self.text(cell), out=Path(place) / "m", seed=cell.seed)
            notes = [{key: value for key, value in note.items() if key != "health"} for note in found.report.get("steps", ())]
            return {"bytes": found.report["bytes"], "values": sum(w.numel() for w in found.model.parameters()),
                    **self.documents.score(widen(found.model)), "steps": notes,
                    "search_tokens": sum(plan.notes.get("search_tokens", 0) for plan in found.allocations)}

    def text(self, cell: Cell) -> Calibration | None:
        """The calibration text of a seed; none for what is not compressed."""
        if not cell.tokens:
            return None
        if (key := (cell.seed, cell.tokens)) not in self._texts:
            self._texts[key] = calibrate.read(self.root / self.plan.calibration, self.models["plain"], length=self.plan.length,
                                              tokens=cell.tokens, seed=cell.seed)
        return self._texts[key]

    def inputs(self, cell: Cell) -> Any:
        text = self.text(cell)
        return [self.documents.ids, None if text is None else text.digest]

    def cell_of(self, record: Record) -> Cell | None:
        """The cell of a record, None where it is of another suite, model, size or text."""
        names = [f.name for f in dataclasses.fields(Cell)]
        if record.suite != SUITE or record.model_hash != self._hash or not set(names) <= record.settings.keys():
            return None
        if any(record.settings.get(name) != value for name, value in self.plan.sizes.items()):
            return None
        cell = Cell(**{name: record.settings[name] for name in names})
        return cell if record.prompts_hash == provenance.digest(self.inputs(cell)) else None


def _parts(cell: Cell) -> list[Any]:
    """The methods that did the work."""
    steps = [parse(text) for text in filter(None, cell.steps.split(" ; "))]
    return [method for step in steps for method in step.parts]


def told(cell: Cell, record: Record) -> str:
    """A line for whoever watches."""
    found, what = record.measured, f"{cell.method} {'' if cell.ratio is None else cell.ratio} on {cell.on}, seed {cell.seed}"
    if "error" in found:
        return f"{what}: {found['error']}"
    return f"{what}: loss {found['loss']:.4f}, KL {found['kl']:.4f}, {found['bytes']:,} bytes, {found['seconds']:.0f} s"
